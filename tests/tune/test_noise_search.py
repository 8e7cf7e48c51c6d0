"""What the noise of gradients makes a search do: with a worker whose rounding errors add up to a bar."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from amptune.core.choice import BF16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import SiteCost
from amptune.tune.quality.gate import GradientGate
from amptune.tune.quality.noise import Noise
from amptune.tune.quality.quality import Quality
from amptune.tune.running.recipes import Candidate
from amptune.tune.search import Search
from amptune.tune.workers.job import Measured

from .test_search import SITES, FormulaWorker, make_search, step

TENSORWISE = Choice(Format.FP8_E4M3, "tensorwise")
MS = {FP32: 4.0, BF16: 1.0, TENSORWISE: 0.5}
ERRORS = {BF16: RoundingError(2e-3), TENSORWISE: RoundingError(6e-2)}


class SummingWorker(FormulaWorker):
    """FP8 is the fastest everywhere; so many sites of it reach the bar, and the worst gradients are the last site's."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def num_fp8(self, candidate: Candidate) -> int:
        if candidate.plan is None:
            return len(SITES) if candidate.float8 else 0
        return sum(candidate.plan.sites[name].format.is_fp8 for name in SITES)

    def milliseconds(self, candidate: Candidate) -> float:
        if candidate.plan is None:
            return 60.0 if candidate.float8 else 30.0 if candidate.autocast else 42.0
        return 10 + sum(MS[candidate.plan.sites[name].choice] for name in SITES)

    def trial(self, candidate: Candidate) -> Measured:
        self.measured.append(candidate)
        share = self.num_fp8(candidate) / self.most + 0.01
        failing = (f"{SITES[-1]}.weight",) if share > 1 else ()
        gate = GradientGate(0.9 if failing else 0.99, failing, failing, Noise(share, share / 2))
        quality = Quality(0.0, 0.0, 0.005, gate, 0, 60, "the gradient points elsewhere" if failing else "")
        return Measured(step(self.milliseconds(candidate)), None, quality)


def summing_search(folder: Path, worker: FormulaWorker, budget: int, existing: str = "refuse") -> Search:
    search = make_search(folder, worker, budget, existing)
    search.recipes["fp8-tensorwise"] = Candidate("fp8-tensorwise", autocast=Format.BF16, float8="tensorwise")
    groups = [dataclasses.replace(g, choices=tuple(MS), fp8=frozenset(g.sites), multiplies=True)
              for g in search.space.groups]  # fmt: skip
    search.space = dataclasses.replace(search.space, groups=tuple(groups), losses=())
    sites = {name: {choice: SiteCost(ms) for choice, ms in MS.items()} for name in SITES}
    search.table = dataclasses.replace(search.table, sites=sites)
    search.sensitivity = Sensitivity({name: SiteSensitivity(ERRORS) for name in SITES})
    return search


@pytest.mark.parametrize("most", [0.7, 7.5])
def test_the_first_plans_have_as_much_fp8_as_the_recipe_says_is_right(tmp_path: Path, most: float) -> None:
    """In both cases the recipe is refused: once by far, once by little."""
    worker = SummingWorker(most)
    search = summing_search(tmp_path, worker, budget=6)
    search.run()
    numbers = [worker.num_fp8(candidate) for candidate in worker.measured if not candidate.is_stock]
    assert max(numbers) <= 1 if most < 1 else max(numbers) >= 5


def test_no_layer_is_blamed_for_a_sum(tmp_path: Path) -> None:
    """The last site's gradients are the first to miss the bar in every plan, whatever its own format is."""
    worker = SummingWorker(most=7.9)
    search = summing_search(tmp_path, worker, budget=20)
    search.study.enqueue(search.space.uniform(TENSORWISE), "search")
    search.recipes.pop("fp8-tensorwise")
    for budget in range(3, 20):
        search.options = dataclasses.replace(search.options, budget=budget)
        search.run()
        known = search.knowledge()
        assert known is not None
        assert not any(known.banned.values())
    assert search.plans()[0].outcome.failing
    best = search.best_plans(1)[0].outcome
    assert best.ranked_ms == pytest.approx(10 + 7 * MS[TENSORWISE] + MS[BF16], rel=0.01)

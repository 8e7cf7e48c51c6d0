"""What the trials so far teach, and which plan they make the next one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.adapt import Knowledge, learn
from amptune.tune.running.recipes import Candidate
from amptune.tune.study.trial import Outcome, TrialRecord
from tests.tune.test_search import FormulaWorker, make_search

NAMES = tuple("abcd")
MODEL = CostModel(
    Space(
        tuple(Group(name, (name,), "module", ("swap",), (FP32, BF16, FP16)) for name in NAMES),
        tf32=False, channels_last=False, meets=(frozenset(NAMES),),
    ),
    CostTable({name: {FP32: SiteCost(40.0), BF16: SiteCost(20.0), FP16: SiteCost(20.0)} for name in NAMES}, {}),
    [],
)  # fmt: skip


def recipe(number: int, name: str, choice: Choice, ms: float) -> TrialRecord:
    times = {"median": ms, "low": ms, "high": ms, "repeats": 10}
    return TrialRecord(number, MODEL.space.uniform(choice), Outcome("stock", "valid", recipe=name, step_ms=times))


def known(*, compiled: bool) -> Knowledge:
    stock = [recipe(0, "fp32", FP32, 170.0), recipe(1, "autocast-bf16", BF16, 90.0),
             recipe(2, "autocast-fp16", FP16, 102.0)]  # fmt: skip
    return learn(Encoding(MODEL), [], stock, compiled=compiled)


def test_a_compiled_recipe_says_what_plans_of_its_format_take() -> None:
    """The compiler fuses autocast's casts; in eager mode they are what is slow about it."""
    space = MODEL.space
    for compiled, slower_by in ((True, 12.0), (False, 0.0)):
        knowledge = known(compiled=compiled)
        half, other = (knowledge.predicted(space.uniform(choice)) for choice in (BF16, FP16))
        assert other - half == pytest.approx(slower_by, abs=3.0)


LARGE = {"big": 20.2, "other": 30.0}
"""What they take in FP8 by the costs; 20 ms in BF16."""


class Fp8IsFast(FormulaWorker):
    """``big`` takes less in FP8 than the costs say; which formats the small ones have makes next to no difference."""

    def milliseconds(self, candidate: Candidate) -> float:
        sites = candidate.plan.sites if candidate.plan else {}
        low = Choice(candidate.autocast or Format.FP32)
        big, other = (sites[name].choice if sites else low for name in ("big", "other"))
        return 10 + {FP32: 40.0, BF16: 20.0}.get(big, 12.0) + {FP32: 40.0, BF16: 20.0}.get(other, 30.0)

    def trial(self, candidate: Candidate) -> Any:
        self.fragile = False
        return super().trial(candidate)


def test_the_front_gives_way_to_what_promises_far_more(tmp_path: Path) -> None:
    """Its plans differ in what takes no time, and a choice of the largest layer, about as fast by the costs, waits."""
    small = [f"small{i}" for i in range(6)]
    costs = {n: {FP32: SiteCost(40.0), BF16: SiteCost(20.0), FP8[0]: SiteCost(ms)} for n, ms in LARGE.items()}
    costs |= {name: {FP32: SiteCost(0.1), BF16: SiteCost(0.05)} for name in small}
    groups = [Group(n, (n,), "module", ("swap",), (FP32, BF16, FP8[0]), frozenset({n})) for n in LARGE]
    groups += [Group(name, (name,), "module", ("swap",), (FP32, BF16)) for name in small]
    search = make_search(tmp_path, Fp8IsFast(), budget=14)
    search = dataclasses.replace(
        search,
        space=Space(tuple(groups), tf32=False, channels_last=False, losses=("fp32", "follow")),
        table=CostTable(costs, search.table.casts),
        sensitivity=Sensitivity(
            {
                n: SiteSensitivity({c: RoundingError((1 + i) * c.format.epsilon) for c in costs[n] if c != FP32})
                for i, n in enumerate(costs)
            }
        ),
    )
    search.run()
    first = next(r for r in search.records() if r.point.get("big", "").startswith("fp8"))
    assert first.number <= 4, "two recipes and two plans of the front came before it"
    assert first.outcome.kind == "search"

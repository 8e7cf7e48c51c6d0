"""When the stock recipes in FP8 are measured: before any plan, or after the first ones where they are slow."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from amptune.core.choice import BF16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.sensitivity import Sensitivity, SiteSensitivity
from amptune.core.tables import SiteCost
from amptune.tune.finalists.finals import decide
from amptune.tune.learning.stockorder import FIRST_PLANS
from amptune.tune.outputs.result import result_json
from amptune.tune.running.recipes import Candidate, float8_candidate
from amptune.tune.search import Search
from amptune.tune.workers.job import Measured
from tests.tune.test_noise_search import ERRORS, MS, SITES, TENSORWISE, SummingWorker, summing_search

RECIPE = "fp8-tensorwise"
ROWWISE = Choice(Format.FP8_E4M3, "rowwise")


def search_with(folder: Path, worker: SummingWorker, fp8_ms: float, budget: int, existing: str = "refuse") -> Search:
    """A search whose cost table says that FP8 takes so long in each site."""
    search = summing_search(folder, worker, budget, existing)
    costs = {choice: SiteCost(ms) for choice, ms in (MS | {TENSORWISE: fp8_ms}).items()}
    search.table = dataclasses.replace(search.table, sites=dict.fromkeys(SITES, costs))
    return search


def order(worker: SummingWorker) -> list[str]:
    return [candidate.name for candidate in worker.measured]


@pytest.fixture
def worker() -> SummingWorker:
    return SummingWorker(most=100.0)


def test_a_recipe_that_is_slow_by_the_costs_comes_after_the_first_plans(tmp_path: Path, worker: SummingWorker) -> None:
    search_with(tmp_path, worker, fp8_ms=3.5, budget=12).run()
    assert order(worker)[:6] == ["fp32", "autocast-bf16", "plan", "plan", "plan", RECIPE]


def test_a_recipe_that_may_be_the_best_comes_first(tmp_path: Path, worker: SummingWorker) -> None:
    search_with(tmp_path, worker, fp8_ms=0.9, budget=12).run()
    assert order(worker)[:4] == ["fp32", "autocast-bf16", RECIPE, "plan"]


def test_a_small_budget_is_for_the_recipes(tmp_path: Path, worker: SummingWorker) -> None:
    search_with(tmp_path, worker, fp8_ms=3.5, budget=4).run()
    assert order(worker) == ["fp32", "autocast-bf16", "plan", RECIPE]


def test_a_space_of_fewer_plans_ends_with_all_recipes(tmp_path: Path, worker: SummingWorker) -> None:
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=30)
    only, *others = search.space.groups
    groups = (
        dataclasses.replace(only, choices=(FP32, BF16)),
        *(dataclasses.replace(g, choices=(FP32,)) for g in others),
    )
    search.space = dataclasses.replace(search.space, groups=groups)
    search.run()
    assert order(worker).count("plan") < FIRST_PLANS
    assert order(worker).count(RECIPE) == 1


def test_memory_is_not_predicted_by_time(tmp_path: Path, worker: SummingWorker) -> None:
    worker.memory = lambda candidate: 10 if candidate.float8 else 20
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=8)
    search.options = dataclasses.replace(search.options, objective="memory")
    search.run()
    assert order(worker)[2] == RECIPE


def test_a_recipe_that_time_left_out_is_said(tmp_path: Path, worker: SummingWorker) -> None:
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=12)
    search.options = dataclasses.replace(search.options, timeout=0.2)
    whole = worker.trial

    def trial(candidate):  # type: ignore[no-untyped-def]
        if len(worker.measured) == 3:
            time.sleep(0.3)
        return whole(candidate)

    worker.trial = trial  # type: ignore[method-assign]
    search.run()
    assert search.stopped == "timeout"
    data = result_json(search, decide(search), 1.0, "plan.json")
    assert data["not_measured"] == [RECIPE]
    (note,) = data["notes"]
    assert note.startswith(f"not measured before the time was used up: the stock recipe {RECIPE} (")
    assert "ms a step by the measured costs" in note


def test_tf32_is_what_the_recipes_in_fp32_differ_in(tmp_path: Path, worker: SummingWorker) -> None:
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=12)
    search.recipes["tf32"] = Candidate("tf32", tf32=True)
    search.space = dataclasses.replace(search.space, tf32=True)
    fp32, tf32 = (search.stock_point(name) for name in ("fp32", "tf32"))
    assert (fp32[":tf32"], tf32[":tf32"]) == ("off", "on")


class LimitedWorker(SummingWorker):
    """Keeps from which step on each trial was to be given up."""

    def __init__(self) -> None:
        super().__init__(most=100.0)
        self.limits: list[float | None] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            self.limits.append(arguments[1])
        return super().request(name, *arguments, timeout=timeout)


def test_where_time_is_limited_the_recipe_that_may_be_the_best_is_the_first(tmp_path: Path) -> None:
    """Those in FP32 alone took all of the time with a large model, and no plan was tried."""
    worker = LimitedWorker()
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=12)
    search.options = dataclasses.replace(search.options, timeout=60.0)
    search.run()
    assert order(worker)[:3] == ["autocast-bf16", "fp32", "plan"]
    assert worker.limits[:2] == [None, None], "predictions need the second, however slow it is"
    assert worker.limits[2] == pytest.approx(90.0)
    assert RECIPE in order(worker)


def test_tf32_tells_nothing_of_a_model_where_it_is_no_choice(tmp_path: Path) -> None:
    worker = LimitedWorker()
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=12)
    search.recipes["tf32"] = Candidate("tf32", tf32=True)
    search.options = dataclasses.replace(search.options, timeout=60.0)
    search.run()
    assert order(worker)[:3] == ["autocast-bf16", "fp32", "plan"]


def test_recipes_take_a_part_of_the_time_where_it_is_limited(tmp_path: Path) -> None:
    worker = CompiledWorker(seconds=20.0)
    search = search_with(tmp_path, worker, fp8_ms=0.9, budget=12)
    search.options = dataclasses.replace(search.options, timeout=60.0)
    search.run()
    assert order(worker)[:3] == ["autocast-bf16", "fp32", "plan"], "in FP8 another would be beyond half of the time"


def test_nothing_is_said_where_all_were_measured(tmp_path: Path, worker: SummingWorker) -> None:
    search = search_with(tmp_path, worker, fp8_ms=3.5, budget=8)
    search.run()
    data = result_json(search, decide(search), 1.0, "plan.json")
    assert (data["not_measured"], data["notes"]) == ([], [])


@pytest.mark.parametrize("first", range(1, 8))
def test_a_resumed_search_measures_each_recipe_once(tmp_path: Path, worker: SummingWorker, first: int) -> None:
    search_with(tmp_path, worker, fp8_ms=3.5, budget=first).run()
    search_with(tmp_path, worker, fp8_ms=3.5, budget=10, existing="resume").run()
    assert len(worker.measured) == 10
    for recipe in ("fp32", "autocast-bf16", RECIPE):
        assert order(worker).count(recipe) == 1


class CompiledWorker(SummingWorker):
    """Says what its trials took, and refuses some recipes."""

    def __init__(self, most: float = 100.0, seconds: float = 1.0) -> None:
        super().__init__(most)
        self.seconds = seconds
        self.refused: set[str] = set()

    def milliseconds(self, candidate: Candidate) -> float:
        if candidate.plan is None:
            return {"fp8-tensorwise": 17.0, "fp8-rowwise": 17.5, "autocast-bf16": 19.0}.get(candidate.name, 43.0)
        choices = [candidate.plan.sites[name].choice for name in SITES]
        return 10 + sum(MS.get(choice, MS[TENSORWISE]) for choice in choices)

    def trial(self, candidate: Candidate) -> Measured:
        found = dataclasses.replace(super().trial(candidate), seconds={"step": self.seconds})
        if candidate.name not in self.refused or found.quality is None:
            return found
        return dataclasses.replace(found, quality=dataclasses.replace(found.quality, reason="does not train"))


def compiled_search(
    folder: Path, worker: SummingWorker, fp8_ms: float, budget: int, timeout: float | None = None
) -> Search:
    """The same in compile mode, with ``tf32`` among the recipes, which is as slow as ``fp32`` by the costs."""
    search = search_with(folder, worker, fp8_ms, budget)
    search.options = dataclasses.replace(search.options, compile_with="inductor", timeout=timeout)
    search.recipes["tf32"] = Candidate("tf32", tf32=True)
    return search


def give_rowwise(search: Search) -> None:
    """Offer FP8 with a scale for each row, at the price and error of the other."""
    choices = (*MS, ROWWISE)
    groups = tuple(dataclasses.replace(group, choices=choices) for group in search.space.groups)
    search.space = dataclasses.replace(search.space, groups=groups)
    costs = {site: {**known, ROWWISE: known[TENSORWISE]} for site, known in search.table.sites.items()}
    search.table = dataclasses.replace(search.table, sites=costs)
    errors = SiteSensitivity(ERRORS | {ROWWISE: ERRORS[TENSORWISE]})
    search.sensitivity = Sensitivity(dict.fromkeys(SITES, errors))


def test_compile_mode_begins_with_the_fastest_and_lets_the_slow_wait(tmp_path: Path) -> None:
    worker = CompiledWorker()
    compiled_search(tmp_path, worker, fp8_ms=0.9, budget=20).run()
    assert order(worker)[:5] == ["autocast-bf16", RECIPE, "plan", "plan", "plan"]
    assert set(order(worker)[5:7]) == {"fp32", "tf32"}


def test_recipes_take_a_part_of_the_time_in_compile_mode(tmp_path: Path) -> None:
    worker = CompiledWorker(seconds=20.0)
    search = compiled_search(tmp_path, worker, fp8_ms=0.9, budget=12, timeout=100.0)
    search.run()
    assert order(worker)[:2] == ["autocast-bf16", RECIPE], "40 of 50 seconds"
    assert set(order(worker)[2:10]) == {"plan"}
    assert set(order(worker)[10:]) == {"fp32", "tf32"}, "time is left when the budget is used up"


def test_a_recipe_that_time_left_out_is_said_in_compile_mode(tmp_path: Path) -> None:
    worker = CompiledWorker(seconds=40.0)
    search = compiled_search(tmp_path, worker, fp8_ms=0.9, budget=12, timeout=100.0)
    whole = search.study.num_waiting

    def num_waiting() -> int:
        if len(worker.measured) == 4:
            search.limit.seconds = 0.0
        return whole()

    search.study.num_waiting = num_waiting  # type: ignore[method-assign]
    search.run()
    assert order(worker)[:3] == ["autocast-bf16", "plan", "plan"]
    data = result_json(search, decide(search), 1.0, "plan.json")
    assert set(data["not_measured"]) == {"fp32", "tf32", RECIPE}


def test_another_recipe_is_measured_where_the_first_does_not_train(tmp_path: Path) -> None:
    """A plan that trains has to be compared with a recipe that does."""
    worker = CompiledWorker()
    worker.refused = {"autocast-bf16"}
    search = compiled_search(tmp_path, worker, fp8_ms=3.5, budget=20)
    search.run()
    assert order(worker)[0] == "autocast-bf16"
    assert order(worker)[1] in {"fp32", "tf32"}
    assert search.best_stock().outcome.valid


def test_fp8_that_did_not_train_by_far_lets_another_recipe_in_it_wait(tmp_path: Path) -> None:
    for most, second in ((0.7, "plan"), (100.0, "fp8-rowwise")):
        worker = CompiledWorker(most)
        folder = tmp_path / str(most)
        folder.mkdir()
        search = compiled_search(folder, worker, fp8_ms=0.9, budget=20)
        search.recipes["fp8-rowwise"] = float8_candidate("rowwise")
        give_rowwise(search)
        search.run()
        assert order(worker)[:3] == ["autocast-bf16", RECIPE, second]
        assert order(worker).count("fp8-rowwise") == 1


def test_autocast_alone_says_enough_of_a_compiled_step(tmp_path: Path) -> None:
    search = compiled_search(tmp_path, CompiledWorker(), fp8_ms=3.5, budget=6)
    search.run()
    first = search.plans()[0].outcome
    assert first.predicted_ms == pytest.approx(first.ranked_ms, rel=0.1)

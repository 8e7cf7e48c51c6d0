"""When the stock recipes in FP8 are measured: before any plan, or after the first ones where they are slow."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from amptune.core.choice import BF16, FP32
from amptune.core.tables import SiteCost
from amptune.tune.finals import decide
from amptune.tune.result import result_json
from amptune.tune.search import Search
from amptune.tune.stockorder import FIRST_PLANS

from .test_noise_search import MS, SITES, TENSORWISE, SummingWorker, summing_search

RECIPE = "fp8-tensorwise"


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

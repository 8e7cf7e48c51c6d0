"""The search against a worker that answers from a formula: no model, no clock, so every run is the same."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amptune.capture import TargetSpec
from amptune.core.choice import BF16, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import LOSS
from amptune.core.plan import PARAMS
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import EDGE_FORMATS, CastPrice, CostTable, Edge, SiteCost
from amptune.tune.choices.space import Group, Space
from amptune.tune.finalists.finals import decide
from amptune.tune.learning.acquire import Acquisition
from amptune.tune.learning.steering import Steering
from amptune.tune.outputs.pareto import pareto_numbers, prediction_json
from amptune.tune.outputs.stockplan import plan_of_stock
from amptune.tune.quality.gate import GradientGate
from amptune.tune.quality.quality import Quality
from amptune.tune.running.recipes import Candidate, params_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.search import Search
from amptune.tune.study.progress import Progress
from amptune.tune.study.study import locked_folder, open_study
from amptune.tune.workers.job import Measured, Prepared
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.process import TrialError

Capsys = pytest.CaptureFixture[str]
SITES = [f"block.{i}.fc" for i in range(8)]
TRUE_MS = {name: {FP32: 4.0, BF16: 1.0 if i % 3 else 6.0} for i, name in enumerate(SITES)}
"""Every third site is really slower in bf16, which the table of the test does not know."""
FRAGILE = "block.1.fc"
"""A site that does not train in bf16."""


def step(ms: float) -> StepTime:
    return StepTime.of([ms * 0.999, ms, ms * 1.001])


class FormulaWorker:
    """Times and judges a candidate by formula; counts what it was asked."""

    def __init__(self) -> None:
        self.measured: list[Candidate] = []
        self.crash_on: set[int] = set()
        self.fragile = True
        self.memory: Callable[[Candidate], int | None] = lambda _candidate: None

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            return self.trial(arguments[0])
        assert name == "repeat"
        return [[step(self.milliseconds(c))] * 3 for c in arguments[0]]

    def milliseconds(self, candidate: Candidate) -> float:
        if candidate.plan is None:
            low = Choice(candidate.autocast or Format.FP32)
            return 10 + sum(TRUE_MS[name][low] for name in SITES)
        return 10 + sum(TRUE_MS[name][candidate.plan.sites[name].choice] for name in SITES)

    def trial(self, candidate: Candidate) -> Measured:
        self.measured.append(candidate)
        if len(self.measured) in self.crash_on:
            raise TrialError("the worker process died (signal 9)", worker_lost=True)
        broken = self.fragile and candidate.plan is not None and candidate.plan.sites[FRAGILE].choice != FP32
        failing = (f"{FRAGILE}.weight",) if broken else ()
        gate = GradientGate(0.5 if broken else 1.0, failing, failing)
        quality = Quality(0.0, 0.0, 0.005, gate, 0, 60, gate.failures[0] if broken else "")
        return Measured(step(self.milliseconds(candidate)), self.memory(candidate), quality)


def make_search(folder: Path, worker: FormulaWorker, budget: int, existing: str = "refuse") -> Search:
    groups = tuple(Group(name, (name,), "module", ("swap",), (FP32, BF16)) for name in SITES)
    table = CostTable(
        {name: {FP32: SiteCost(4.0), BF16: SiteCost(1.0)} for name in SITES},
        {frozenset((Format.FP32, Format.BF16)): CastPrice(0.1, 0.0)},
    )
    options = TuneOptions(TargetSpec("m.py"), folder, budget=budget)
    recipes = {"fp32": Candidate("fp32"), "autocast-bf16": Candidate("autocast-bf16", autocast=Format.BF16)}
    return Search(
        options=options,
        study=open_study(folder, existing, seed=0),
        worker=worker,  # type: ignore[arg-type]
        prepared=Prepared({"gpu": "formula"}, 0.0, 3.0, 2.0, "train_batches", ()),
        recipes=recipes,
        space=Space(groups, tf32=False, channels_last=False, losses=("fp32", "follow")),
        table=table,
        edges=[],
        plan_header={"target": "m.py"},
        progress=Progress(budget),
    )


@pytest.fixture
def worker() -> FormulaWorker:
    return FormulaWorker()


def test_stock_recipes_come_first_and_the_budget_counts_all(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=10)
    search.run()
    assert [c.name for c in worker.measured[:3]] == ["fp32", "autocast-bf16", "plan"]
    assert len(worker.measured) == 10
    assert len(search.records()) == 10


def test_it_finds_what_the_cost_table_does_not_know(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=50)
    search.run()
    best = search.plan_of(search.best_plans(1)[0])
    expected = {name: FP32 if name == FRAGILE or i % 3 == 0 else BF16 for i, name in enumerate(SITES)}
    assert {name: site.choice for name, site in best.sites.items()} == expected


def test_formats_of_a_recipe_that_the_costs_get_wrong_are_tried_as_a_plan(
    tmp_path: Path, worker: FormulaWorker
) -> None:
    """The table says that half of the sites are slower in BF16; in truth all of them are faster, as autocast shows."""
    worker.fragile = False
    worker.milliseconds = lambda candidate: (
        10
        + sum(  # type: ignore[method-assign]
            1.0 if is_low else 4.0 for is_low in lowered(candidate)
        )
    )
    search = make_search(tmp_path, worker, budget=6)
    wrong = {name: {FP32: SiteCost(4.0), BF16: SiteCost(1.0 if i % 2 else 40.0)} for i, name in enumerate(SITES)}
    search.table = dataclasses.replace(search.table, sites=wrong)
    products = tuple(dataclasses.replace(group, multiplies=True) for group in search.space.groups)
    search.space = dataclasses.replace(search.space, groups=products)
    search.run()
    plans = search.plans()
    assert plans[0].outcome.ranked_ms > search.best_stock().outcome.ranked_ms
    assert plans[1].outcome.ranked_ms == pytest.approx(search.best_stock().outcome.ranked_ms)


def test_a_choice_that_ran_has_a_kernel_whatever_the_costs_say(tmp_path: Path, worker: FormulaWorker) -> None:
    """Each BF16 kernel but one was timed in a slow moment of the host. What autocast shows is then the best plan, and
    all that is left to gain is in the sites that are slower in BF16."""
    search = make_search(tmp_path, worker, budget=30)
    worker.fragile = False
    hopeless = {name: {FP32: SiteCost(4.0), BF16: SiteCost(math.inf if i else 1.0)} for i, name in enumerate(SITES)}
    search.table = dataclasses.replace(search.table, sites=hopeless)
    products = tuple(dataclasses.replace(group, multiplies=True) for group in search.space.groups)
    search.space = dataclasses.replace(search.space, groups=products)
    search.run()
    assert search.best_plans(1)[0].outcome.ranked_ms == pytest.approx(
        10 + sum(min(ms.values()) for ms in TRUE_MS.values())
    )
    resumed = make_search(tmp_path, worker, budget=30, existing="resume")
    resumed.table = dataclasses.replace(resumed.table, sites=hopeless)
    resumed.run()
    assert resumed.table.sites == search.table.sites


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "with formats of its own"])
def test_a_plan_in_fp32_is_the_recipe_by_another_name(tmp_path: Path, worker: FormulaWorker, is_plain: bool) -> None:
    """Where 16 bits are slower everywhere, nothing that could be handed over as a gain is a plan in FP32."""
    worker.milliseconds = lambda candidate: 10.0 + 5.0 * sum(lowered(candidate))  # type: ignore[method-assign]
    search = make_search(tmp_path, worker, budget=20)
    slow = {name: {FP32: SiteCost(4.0), BF16: SiteCost(9.0)} for name in SITES}
    search.table, search.is_plain = dataclasses.replace(search.table, sites=slow), is_plain
    search.edges = [Edge((SITES[-1],), (LOSS,), 1)]
    search.run()
    in_fp32 = [c for c in worker.measured if c.plan is not None and c.plan.is_fp32]
    assert len(in_fp32) == (0 if is_plain else 1), "a loss that follows FP32 is no other plan either"
    assert len(search.plans()) > 1
    assert decide(search).kind == "stock"


def test_a_plan_in_fp32_with_kernels_of_its_own_is_no_recipe(tmp_path: Path, worker: FormulaWorker) -> None:
    """A norm by hand is one kernel under a plan, whatever the format."""
    worker.milliseconds = lambda candidate: (  # type: ignore[method-assign]
        10.0 + 5.0 * sum(lowered(candidate)) - 2.0 * (candidate.plan is not None)
    )
    search = make_search(tmp_path, worker, budget=20)
    slow = {name: {FP32: SiteCost(4.0), BF16: SiteCost(9.0)} for name in SITES}
    search.table, search.is_plain = dataclasses.replace(search.table, sites=slow), True
    search.space = dataclasses.replace(search.space, rewritten=frozenset(SITES[:1]))
    search.run()
    assert any(c.plan is not None and c.plan.is_fp32 for c in worker.measured)
    verdict = decide(search)
    assert (verdict.kind, search.plan_of(verdict.record).is_fp32) == ("plan", True)


def lowered(candidate: Candidate) -> list[bool]:
    if candidate.plan is None:
        return [candidate.autocast is not None] * len(SITES)
    return [candidate.plan.sites[name].choice != FP32 for name in SITES]


def test_a_loss_that_ends_plans_in_an_error_is_not_tried_again_at_once(tmp_path: Path, worker: FormulaWorker) -> None:
    """The plans of the front are alike but for it."""
    measure = worker.trial

    def trial(candidate: Candidate) -> Measured:
        if candidate.plan is not None and candidate.plan.loss_format is None:
            worker.measured.append(candidate)
            raise TrialError("mse_loss takes tensors of one dtype, and got FP32 and BF16")
        return measure(candidate)

    worker.trial = trial  # type: ignore[method-assign]
    worker.fragile = False
    search = make_search(tmp_path, worker, budget=8)
    search.table = dataclasses.replace(search.table, losses={"fp32": 1.0, "follow": 0.1})
    search.run()
    states = [record.outcome.state for record in search.plans()]
    first = states.index("failed")
    assert states[first:] == ["failed"] + ["valid"] * (len(states) - first - 1), "one error tells"


def test_formats_that_end_in_an_error_are_not_blamed_on_the_loss(tmp_path: Path, worker: FormulaWorker) -> None:
    measure = worker.trial

    def trial(candidate: Candidate) -> Measured:
        if candidate.plan is not None and candidate.plan.sites[FRAGILE].choice == BF16:
            worker.measured.append(candidate)
            raise TrialError("addcmul takes tensors of one dtype, and got FP32 and BF16")
        return measure(candidate)

    worker.trial = trial  # type: ignore[method-assign]
    search = make_search(tmp_path, worker, budget=30)
    search.table = dataclasses.replace(search.table, losses={"fp32": 1.0, "follow": 0.1})
    search.run()
    states = [record.outcome.state for record in search.plans()]
    assert states[:2] == ["failed", "failed"]
    assert search.best_plans(1), "plans without it are found"
    known = search.knowledge()
    assert known is not None
    assert not known.failing


def test_no_plan_is_measured_twice(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=50)
    search.run()
    keys = [candidate.key for candidate in worker.measured]
    assert len(keys) == len(set(keys))


def test_a_small_space_ends_early(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=2000)
    search.options = dataclasses.replace(search.options, budget=2000)
    search.space = Space(search.space.groups[:1], tf32=False, channels_last=False, losses=("fp32", "follow"))
    for name in SITES[1:]:
        TRUE_MS.setdefault(name, {})
    worker.milliseconds = lambda candidate: 5.0  # type: ignore[method-assign]
    worker.trial = lambda c: (  # type: ignore[method-assign]
        worker.measured.append(c) or Measured(step(5.0), None, Quality(0.0, 0.0, 0.005, None, 0, 60, ""))
    )
    search.run()
    assert len(worker.measured) == 2 + 4, "two recipes, and two groups of choices (site, loss) of two values each"


def test_a_crash_fails_one_trial_only(tmp_path: Path, worker: FormulaWorker) -> None:
    worker.crash_on = {3, 5}
    search = make_search(tmp_path, worker, budget=12)
    search.run()
    failed = [record for record in search.records() if record.outcome.state == "failed"]
    assert [record.outcome.reason for record in failed] == ["the worker process died (signal 9)"] * 2
    assert len(search.records()) == 12


def test_wrong_gradients_are_repaired_at_their_site(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=7)
    search.run()
    plans = [c.plan for c in worker.measured if c.plan]
    assert any(p.sites[FRAGILE].choice == FP32 and p.sites["block.2.fc"].choice == BF16 for p in plans)


def test_what_a_recipe_shows_of_a_format_is_not_found_out_again(tmp_path: Path, worker: FormulaWorker) -> None:
    """Where autocast in BF16 does not train and in FP16 does, the first plans are not in BF16, though it is cheaper."""
    search = make_search(tmp_path, worker, budget=7)
    groups = [
        dataclasses.replace(g, choices=(FP32, BF16, FP16), multiplies="fc" in g.name) for g in search.space.groups
    ]
    search.space = dataclasses.replace(search.space, groups=tuple(groups))
    costs = {name: {**costs, FP16: SiteCost(1.01)} for name, costs in search.table.sites.items()}
    casts = {frozenset(pair): CastPrice(0.1, 0.0) for pair in itertools.combinations(EDGE_FORMATS, 2)}
    search.table = CostTable(costs, casts)
    search.recipes["autocast-fp16"] = Candidate("autocast-fp16", autocast=Format.FP16)

    def trial(candidate: Candidate) -> Measured:
        worker.measured.append(candidate)
        sites = candidate.plan.sites.values() if candidate.plan else ()
        formats = {candidate.autocast, *(site.format for site in sites)}
        wrong = "the gradients point elsewhere" if Format.BF16 in formats else ""
        return Measured(step(10.0), None, Quality(0.0, 0.0, 0.005, None, 0, 60, wrong))

    worker.trial = trial  # type: ignore[method-assign]
    search.run()
    plans = [record for record in search.plans() if record.outcome.kind == "front"]
    assert plans
    assert plans[0].outcome.valid


def test_an_invalid_plan_never_wins(tmp_path: Path, worker: FormulaWorker) -> None:
    honest = worker.milliseconds
    worker.milliseconds = lambda c: honest(c) - (1 if c.plan else 0)  # type: ignore[method-assign]
    search = make_search(tmp_path, worker, budget=4)
    search.run()
    verdict = decide(search)
    assert verdict.record.outcome.valid
    invalid = [record for record in search.records() if record.outcome.state == "invalid"]
    assert invalid
    assert min(r.outcome.ranked_ms for r in invalid) < verdict.record.outcome.ranked_ms


def test_the_winner_beats_the_best_stock_recipe(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=40)
    search.run()
    verdict = decide(search)
    assert verdict.kind == "plan"
    assert verdict.stock.outcome.recipe == "autocast-bf16"
    assert verdict.speedup > 1
    assert verdict.speedup_low <= verdict.speedup


def test_nothing_gained_is_said(tmp_path: Path, worker: FormulaWorker) -> None:
    worker.milliseconds = lambda candidate: 8.0 if candidate.autocast else 9.0  # type: ignore[method-assign]
    search = make_search(tmp_path, worker, budget=12)
    search.run()
    verdict = decide(search)
    assert verdict.kind == "stock"
    assert verdict.record.outcome.recipe == "autocast-bf16"
    assert verdict.speedup == 1.0


def test_a_resumed_search_measures_only_what_is_left(tmp_path: Path, worker: FormulaWorker) -> None:
    with locked_folder(tmp_path, "refuse"):
        make_search(tmp_path, worker, budget=7).run()
    with locked_folder(tmp_path, "resume"):
        search = make_search(tmp_path, worker, budget=12, existing="resume")
        search.run()
    assert len(worker.measured) == 12
    assert len({candidate.key for candidate in worker.measured}) == 12


def test_a_stock_recipe_whose_worker_was_lost_is_tried_again(tmp_path: Path, worker: FormulaWorker) -> None:
    worker.crash_on = {2, 4}
    with locked_folder(tmp_path, "refuse"):
        make_search(tmp_path, worker, budget=7).run()
    assert [c.name for c in worker.measured[:3]] == ["fp32", "autocast-bf16", "plan"]
    with locked_folder(tmp_path, "resume"):
        search = make_search(tmp_path, worker, budget=7, existing="resume")
        assert search.study.requeue_lost() == ["autocast-bf16"]
        search.run()
    assert [c.name for c in worker.measured[7:]] == ["autocast-bf16"], "in place of its first trial, not beside it"
    stock = [record.outcome for record in search.records() if record.outcome.recipe]
    assert [(o.recipe, o.state) for o in stock] == [("fp32", "valid"), ("autocast-bf16", "valid")]
    assert len(search.records()) == 7
    assert search.study.requeue_lost() == [], "a plan is not tried again: the search goes on without it"


def test_a_resumed_search_goes_on_as_it_would_have(tmp_path: Path, worker: FormulaWorker) -> None:
    whole_folder, folder = tmp_path / "whole", tmp_path / "parts"
    whole_folder.mkdir()
    folder.mkdir()
    make_search(whole_folder, worker, budget=22).run()
    whole = [candidate.key for candidate in worker.measured]
    worker.measured.clear()
    measure = worker.trial

    def interrupted(candidate: Candidate) -> Measured:
        if len(worker.measured) == 12:
            raise KeyboardInterrupt
        return measure(candidate)

    worker.trial = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        make_search(folder, worker, budget=22).run()
    worker.trial = measure  # type: ignore[method-assign]
    resumed = make_search(folder, worker, budget=22, existing="resume")
    resumed.study.requeue_interrupted()
    resumed.run()
    assert [candidate.key for candidate in worker.measured] == whole


def test_the_prediction_adds_what_the_sites_do_not_explain(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=3)
    search.run()
    first = search.plans()[0]
    # The first plan is predicted by the table alone: 10 ms beside the sites, which take 1 ms each in bf16.
    assert first.outcome.table_ms == pytest.approx(10 + 8 * 1.0, rel=0.02)
    assert first.outcome.predicted_ms == first.outcome.table_ms


def test_predictions_learn_from_what_was_measured(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=30)
    search.run()
    known = search.knowledge()
    assert known is not None
    wrong = {i: {**search.best_plans(1)[0].point, name: "bf16"} for i, name in enumerate(SITES) if i % 3 == 0}
    best_ms = search.best_plans(1)[0].outcome.ranked_ms
    for point in wrong.values():
        assert known.base_ms + known.model.predicted(point) < best_ms, "the table still takes it for a gain"
        assert known.predicted(point) > best_ms, "what was measured says otherwise"


def test_the_expected_gain_is_the_mean_over_what_is_not_known(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=12)
    search.run()
    known, best = search.knowledge(), search.best_plans(1)[0].point
    assert known is not None
    for name in SITES[2:5]:
        point = {**best, name: "bf16" if best[name] == "fp32" else "fp32"}
        rng, rows = np.random.default_rng(0), known.encoding.rows([best, point])
        draws = [known.step.sample(rng) for _ in range(4000)]
        times = [known.encoding.milliseconds(rows) + known.step.corrections(rows, w) for w in draws]
        saved = [max(0.0, float(of_best - of_point)) for of_best, of_point in times]
        found = Acquisition(known.encoding, known.step, known.validity, rows[0]).improvements(rows[1][None])
        assert found == pytest.approx([statistics.fmean(saved)], rel=0.1, abs=0.02)


def test_fp16_plans_are_measured_with_the_scale_that_their_gradients_ask_for(
    tmp_path: Path, worker: FormulaWorker
) -> None:
    search = make_search(tmp_path, worker, budget=3)
    search.sensitivity = Sensitivity(loss_scale=2.0**21)
    groups = tuple(dataclasses.replace(g, choices=(FP32, FP16)) for g in search.space.groups)
    search.space = dataclasses.replace(search.space, groups=groups)
    assert search.plan_at(search.space.uniform(FP16)).scaler.init_scale == 2.0**21
    assert not search.plan_at(search.space.point({})).scaler.enabled


def test_a_point_of_the_sampler_that_is_far_slower_is_taken_back(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=12)
    search.run()
    known, best = search.knowledge(), search.best_plans(1)[0]
    assert known is not None
    turned = {"fp32": "bf16", "bf16": "fp32", "follow": "fp32"}
    other = {":loss": "follow" if best.point[":loss"] == "fp32" else "fp32"}
    slow = {name: turned[value] for name, value in best.point.items()} | other
    assert known.predicted(slow) > 1.05 * best.outcome.ranked_ms
    search.is_tried = lambda _point: False  # type: ignore[method-assign]
    found = Steering(search).without_hopeless(slow)
    assert known.predicted(found) <= 1.05 * best.outcome.ranked_ms
    assert found[":loss"] == other[":loss"], "only what makes it slow"
    search.is_tried = lambda _point: True  # type: ignore[method-assign]
    back = slow | {FRAGILE: "fp32"}
    assert Steering(search).without_hopeless(slow) == back, "rather something slow than nothing new"


def test_no_loss_is_computed_in_fp16(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=3)
    groups = tuple(dataclasses.replace(g, choices=(FP32, BF16, FP16)) for g in search.space.groups)
    search.space = dataclasses.replace(search.space, groups=groups)
    search.edges = [Edge((SITES[-1],), (LOSS,), 100)]
    follow = {":loss": "follow"}
    assert search.costs.made_legal(search.space.uniform(FP16) | follow)[":loss"] == "fp32"
    assert search.costs.made_legal(search.space.uniform(BF16) | follow)[":loss"] == "follow"


def test_a_choice_that_did_not_train_is_left_alone(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=40)
    search.run()
    tried = [r.point[FRAGILE] for r in search.plans() if r.outcome.kind == "search"]
    assert "bf16" not in tried


def test_it_stops_when_nothing_is_left_to_gain(tmp_path: Path, worker: FormulaWorker, capsys: Capsys) -> None:
    worker.milliseconds = lambda candidate: (
        10
        + sum(  # type: ignore[method-assign]
            (1.0 if candidate.plan.sites[n].choice == BF16 else 4.0) if candidate.plan else 4.0 for n in SITES
        )
    )
    worker.fragile = False
    search = make_search(tmp_path, worker, budget=200)
    search.run()
    assert len(search.records()) < 60
    assert search.stopped == "no gain"
    assert "less than the noise" in capsys.readouterr().err


def test_a_plan_over_the_memory_limit_is_not_valid(tmp_path: Path, worker: FormulaWorker) -> None:
    worker.memory = lambda c: 100 * sum(2 if c.plan and c.plan.sites[n].choice == BF16 else 4 for n in SITES)
    search = make_search(tmp_path, worker, budget=20)
    search.options = dataclasses.replace(search.options, max_memory=2600)
    search.run()
    large = [r for r in search.records() if r.outcome.state == "too_large"]
    assert large
    assert all(r.outcome.memory_bytes > 2600 and r.outcome.memory_excess > 0 for r in large)  # type: ignore[operator]
    assert all(r.outcome.memory_bytes <= 2600 for r in search.best_plans(100))  # type: ignore[operator]
    assert search.best_stock().outcome.state == "too_large", "no recipe fits, so those that train stand"


def test_the_objective_may_be_memory(tmp_path: Path, worker: FormulaWorker) -> None:
    """Plans in bf16 take less memory, and are made slower here."""
    worker.milliseconds = lambda c: (
        20.0
        if c.plan is None
        else 20
        + sum(  # type: ignore[method-assign]
            1.0 for n in SITES if c.plan.sites[n].choice == BF16
        )
    )
    worker.memory = lambda c: 100 * sum(2 if c.plan and c.plan.sites[n].choice == BF16 else 4 for n in SITES)
    search = make_search(tmp_path, worker, budget=20)
    search.options = dataclasses.replace(search.options, objective="memory")
    search.run()
    best = search.best_plans(1)[0].outcome
    assert best.memory_bytes == min(r.outcome.memory_bytes for r in search.records() if r.outcome.valid)  # type: ignore[type-var]
    verdict = decide(search)
    assert verdict.kind == "plan"
    assert verdict.record.outcome.memory_bytes == best.memory_bytes


def test_parameters_in_bf16_may_win_by_memory(tmp_path: Path, worker: FormulaWorker) -> None:
    worker.memory = lambda candidate: 100 if candidate.params == "bf16" else 200
    search = make_search(tmp_path, worker, budget=12)
    search.options = dataclasses.replace(search.options, objective="memory")
    search.recipes |= {c.name: c for c in map(params_candidate, PARAMS)}
    search.run()
    verdict = decide(search)
    assert (verdict.kind, verdict.record.outcome.recipe) == ("stock", "params-bf16")
    assert plan_of_stock(search.recipes["params-bf16"], {}).params == "bf16"


def test_the_pareto_front_holds_what_nothing_beats(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=20)
    search.run()
    records = {record.number: record.outcome for record in search.records()}
    front = pareto_numbers(search.records())
    fastest = min(records, key=lambda number: records[number].ranked_ms)
    assert records[fastest].ranked_ms == records[front[0]].ranked_ms
    for number in set(records) - set(front):
        assert any(records[other].ranked_ms < records[number].ranked_ms for other in front)


def test_the_error_of_predictions_is_reported(tmp_path: Path, worker: FormulaWorker) -> None:
    search = make_search(tmp_path, worker, budget=20)
    search.run()
    report = prediction_json(search.records())
    assert report["trials"] == len(search.plans())
    assert 0 <= report["median_error"] < 0.2


class Float8Worker(FormulaWorker):
    """FP8 is the fastest everywhere, and ``trains`` says whether the recipe does; plans with it never do."""

    def __init__(self, trains: bool) -> None:
        super().__init__()
        self.trains = trains

    def milliseconds(self, candidate: Candidate) -> float:
        if candidate.plan is None:
            return 60.0 if candidate.float8 else 30.0 if candidate.autocast else 42.0
        return 10 + sum(FLOAT8_MS[candidate.plan.sites[name].choice] for name in SITES)

    def trial(self, candidate: Candidate) -> Measured:
        self.measured.append(candidate)
        is_wrong = bool(candidate.float8) and not self.trains
        failing = tuple(f"{name}.weight" for name in SITES) if is_wrong else ()
        gate = GradientGate(0.8 if is_wrong else 1.0, failing, failing)
        quality = Quality(0.0, 0.0, 0.005, gate, 0, 60, "the gradient points elsewhere" if is_wrong else "")
        return Measured(step(self.milliseconds(candidate)), None, quality)


FP8_TENSORWISE = Choice(Format.FP8_E4M3, "tensorwise")
FLOAT8_MS = {FP32: 4.0, BF16: 1.0, FP8_TENSORWISE: 0.9}


@pytest.mark.parametrize("trains", [True, False])
def test_what_the_fp8_recipe_showed_decides_whether_fp8_is_tried_first(tmp_path: Path, trains: bool) -> None:
    """It is slow in eager mode, where nothing fuses its casts, but a plan may do better."""
    worker = Float8Worker(trains)
    search = make_search(tmp_path, worker, budget=4)
    fp8 = Candidate("fp8-tensorwise", autocast=Format.BF16, float8="tensorwise")
    search.recipes[fp8.name] = fp8
    groups = tuple(
        dataclasses.replace(g, choices=tuple(FLOAT8_MS), fp8=frozenset(g.sites), multiplies=True)
        for g in search.space.groups
    )
    search.space = dataclasses.replace(search.space, groups=groups)
    search.table = dataclasses.replace(
        search.table, sites={name: {c: SiteCost(ms) for c, ms in FLOAT8_MS.items()} for name in SITES}
    )
    errors = {BF16: RoundingError(2e-3), FP8_TENSORWISE: RoundingError(3e-2)}
    search.sensitivity = Sensitivity({name: SiteSensitivity(errors) for name in SITES})
    search.run()
    first = worker.measured[3].plan
    assert first is not None
    assert any(first.sites[name].format.is_fp8 for name in SITES) is trains

"""What Python takes to queue a step, and steps that are the longer of that and of the GPU's time."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, Edge
from amptune.tune.learning.host import Seen, learn_fixed, likeliest, waited_for_host
from amptune.tune.outputs.pareto import prediction_json
from amptune.tune.running.recipes import Candidate
from amptune.tune.search import Search
from amptune.tune.study.trial import Outcome
from tests.tune.hosts import Host
from tests.tune.test_search import SITES, FormulaWorker, make_search

BOTH = frozenset((Format.FP32, Format.BF16))


def outcome(ms: float, launch_ms: float | None, apart: float = 0.002, recipe: str | None = None) -> Outcome:
    """A trial whose quartiles are ``apart`` as a share of the median."""
    step = {"median": ms, "low": ms * (1 - apart / 2), "high": ms * (1 + apart / 2), "repeats": 20}
    bound = launch_ms is not None and launch_ms >= 0.9 * ms
    return Outcome("front", "valid", recipe=recipe, step_ms=step, launch_ms=launch_ms, launch_bound=bound)


def test_steps_that_queue_as_long_as_they_take_or_that_waver_waited_for_the_host() -> None:
    assert waited_for_host(outcome(30.0, 29.0))
    assert waited_for_host(outcome(30.0, 20.0, apart=0.1))
    assert not waited_for_host(outcome(30.0, 20.0))
    assert not waited_for_host(outcome(30.0, None, apart=0.1)), "a CPU, or steps that wait for the GPU in between"


def test_the_fixed_part_is_what_waiting_steps_took_without_their_casts() -> None:
    stock = [outcome(150.0, 24.0, recipe="fp32"), outcome(36.0, 34.0, apart=0.1, recipe="autocast-bf16")]
    before = learn_fixed(stock, [])
    assert before is not None
    assert before.ms == pytest.approx(36, rel=0.06), "autocast launches about as much as a plan"
    plans = [(outcome(30.0 + casts, 29.0, apart=0.08), casts) for casts in (0.0, 1.0, 2.0, 0.5)]
    after = learn_fixed(stock, plans)
    assert after is not None
    assert after.ms == pytest.approx(30, rel=0.03)


def test_nothing_is_known_of_a_host_that_was_never_timed() -> None:
    assert learn_fixed([outcome(150.0, None, recipe="fp32")], [(outcome(30.0, None, apart=0.2), 0.0)]) is None


def test_steps_of_the_gpu_say_that_the_host_takes_less() -> None:
    """Of a host with slow moments the waiting steps alone would be the slow ones."""
    waiting = [Seen(ms) for ms in (40.0, 42.0, 44.0)]
    steady = [Seen(39.0, is_limit=True)] * 7
    assert likeliest(waiting).ms == pytest.approx(42, rel=0.02)
    assert likeliest([*waiting, *steady]).ms < 39


class TwoSidedWorker(FormulaWorker):
    """The formula is what the GPU takes; the host takes ``host_ms`` and a little for each cast."""

    def __init__(self, host_ms: float, host: Host) -> None:
        super().__init__()
        self.host_ms, self.host = host_ms, host

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        found = super().request(name, *arguments, timeout=timeout)
        if name != "trial":
            return found
        queued = self.host_ms + 0.2 * num_casts(arguments[0])
        step = self.host.block(queued, self.milliseconds(arguments[0]), count=24)
        return dataclasses.replace(found, step=dataclasses.replace(step, launch_ms=self.host.step(queued)))


def num_casts(candidate: Candidate) -> int:
    if candidate.plan is None:
        return 0
    formats = [candidate.plan.sites[name].format for name in SITES]
    return sum(a is not b for a, b in itertools.pairwise(formats))


def searched(folder: Path, host_ms: float, host: Host) -> Search:
    search = make_search(folder, TwoSidedWorker(host_ms, host), budget=24)
    search.table = dataclasses.replace(search.table, casts={BOTH: CastPrice(0.01, 0.0)}, launching=0.2)
    search.edges = [Edge((a,), (b,), 1000) for a, b in itertools.pairwise(SITES)]
    search.run()
    return search


@pytest.mark.parametrize("calm", [True, False])
def test_a_plan_is_predicted_to_take_no_less_than_the_host_does(tmp_path: Path, calm: bool) -> None:
    """By the GPU's time alone the first plan was predicted to take 18 ms; on the calm host steps are steady too."""
    search = searched(tmp_path, 36.0, Host(0, calm=calm))
    plans = search.plans()
    assert plans[0].outcome.predicted_ms == pytest.approx(36.0, rel=0.02 if calm else 0.25)
    errors = [abs(r.outcome.predicted_ms / r.outcome.ranked_ms - 1) for r in plans if r.outcome.predicted_ms]
    assert statistics.median(errors) < (0.02 if calm else 0.17), "a third is what the host's moments make"
    assert prediction_json(plans)["median_error"] == pytest.approx(statistics.median(errors), abs=1e-4)
    assert num_casts_of(search) <= 2, "each cast costs Python more than it saves"


def num_casts_of(search: Search) -> int:
    best = search.plan_of(search.best_plans(1)[0])
    return num_casts(Candidate("plan", plan=best))


def test_where_the_gpu_is_slower_its_time_is_learnt_as_without_a_host(tmp_path: Path) -> None:
    fast = searched(tmp_path, 5.0, Host(0, calm=True))
    assert fast.best_plans(1)[0].outcome.ranked_ms == pytest.approx(10 + 3 * 4 + 1 * 4 + 4 * 1, rel=0.02)
    known = fast.knowledge()
    assert known is not None
    assert known.host is not None
    for record in fast.plans():
        on_gpu, on_host = known.predicted_by_part(record.point)
        assert on_host < 0.5 * on_gpu
        assert known.predicted(record.point) == on_gpu


def test_a_faster_kernel_gains_nothing_where_the_host_is_waited_for(tmp_path: Path) -> None:
    search = searched(tmp_path, 60.0, Host(0, calm=True))
    known, best = search.knowledge(), search.best_plans(1)[0]
    assert known is not None
    encoding = known.encoding
    for row in encoding.single_changes(encoding.encode(best.point)[None])[0]:
        point = encoding.decode(row)
        assert known.predicted(point) >= 0.995 * best.outcome.ranked_ms
    gain = known.promising(0, best.point, search.is_tried)[1]
    assert gain < 0.01 * best.outcome.ranked_ms, "what is not known of the host; the table promises 3 ms a layer"


def test_a_table_keeps_what_queueing_a_cast_takes() -> None:
    table = CostTable({}, {BOTH: CastPrice(0.5, 1e-6)}, launching=0.25)
    assert CostTable.from_json(table.to_json()) == table
    assert table.on_the_host().cast(Format.FP32, Format.BF16, 1 << 20) == 0.25
    assert table.with_launches().cast(Format.FP32, Format.BF16, 0) == 0.75


def test_rows_are_priced_on_the_host_by_their_casts(tmp_path: Path) -> None:
    search = make_search(tmp_path, FormulaWorker(), budget=2)
    search.table = dataclasses.replace(search.table, launching=0.2)
    search.edges = [Edge((a,), (b,), 1000) for a, b in itertools.pairwise(SITES)]
    points = [search.space.point({}), search.space.point({SITES[3]: "bf16"})]
    rows = np.array([search.encoding.encode(point) for point in points])
    assert search.encoding.on_the_host.milliseconds(rows) == pytest.approx([0.0, 0.4])

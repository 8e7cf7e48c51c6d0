from __future__ import annotations

import dataclasses
import gc
import time
from typing import Any

import pytest

from amptune.tune.running import timing
from amptune.tune.running.batches import Batches
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.timing import (
    StepTime,
    Yardstick,
    compared,
    measure_interleaved,
    measure_step,
    pooled,
    queueing_ms,
    roughly_ms,
)
from amptune.tune.running.training import Run, Workbench, training
from tests.tune.conftest import MLP, Make
from tests.tune.hosts import Host

SLOW = MLP.replace("def forward(self, ids):", "def forward(self, ids):\n        import time; time.sleep(0.02)")


def test_a_step_time_has_median_and_quartiles() -> None:
    step = StepTime.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (step.low, step.median, step.high) == (2.0, 3.0, 4.0)
    assert step.to_json() == {"median": 3.0, "low": 2.0, "high": 4.0, "repeats": 5}


def test_a_step_is_timed_as_a_whole(make_bench: Make) -> None:
    bench, batches = make_bench(SLOW)
    step, memory, compiling = measure_step(bench, Candidate("fp32"), batches)
    assert step is not None
    assert 20 <= step.median < 200
    assert compiling is None
    assert memory is None, "torch does not count a CPU's memory"


def test_a_hopeless_candidate_is_given_up(make_bench: Make) -> None:
    bench, batches = make_bench(SLOW)
    started = time.perf_counter()
    assert measure_step(bench, Candidate("fp32"), batches, limit_ms=5.0) == (None, None, None)
    assert time.perf_counter() - started < 1.0


def test_timing_leaves_the_weights_as_they_were(make_bench: Make) -> None:
    bench, batches = make_bench()
    measure_interleaved(bench, [Candidate("fp32"), Candidate("fp32")], batches, rounds=2)
    bench.restore()
    assert all(bool((bench.initial[k] == v).all()) for k, v in bench.model.state_dict().items())


def test_pooling_keeps_every_repeat() -> None:
    assert pooled([StepTime.of([m] * 3) for m in (1.0, 3.0)]).repeats == (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)


def test_a_step_is_launch_bound_where_queueing_it_takes_as_long() -> None:
    step = StepTime.of([10.0, 10.0, 10.0])
    assert not step.launch_bound, "nothing is known on a CPU"
    assert dataclasses.replace(step, launch_ms=9.5).launch_bound
    assert not dataclasses.replace(step, launch_ms=3.0).launch_bound


def test_queueing_is_the_quickest_of_a_few_steps(make_bench: Make) -> None:
    """On a CPU a step is over when it is queued. The first call, which is slow here, is not what counts."""
    bench, batches = make_bench(SLOW.replace("time.sleep(0.02)", "time.sleep(0.02 + (ids is Net.first) * 0.3)"))
    type(bench.model).first = batches.train[0][0]
    with training(bench, Candidate("fp32")) as run:
        started = time.perf_counter()
        run.step(batches.train[0])
        assert time.perf_counter() - started >= 0.3, "the first batch must be slow for the test to say something"
        assert 20 <= queueing_ms(run, batches) < 200


MS = {"fp32": 27.0, "tf32": 27.0 / 1.08}


@pytest.fixture
def timed_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Steps of a candidate take what ``MS`` says, on a host with a clock of its own."""

    def use(host: Host) -> list[str]:
        steps: list[str] = []

        def step(run: Run, _batch: object) -> None:
            steps.append(run.candidate.name)
            host.step(MS[run.candidate.name])

        clock = type("Clock", (), {"perf_counter": staticmethod(lambda: host.now)})
        monkeypatch.setattr(timing, "time", clock)
        monkeypatch.setattr(Run, "step", step)
        return steps

    return use


def beside(bench: Workbench, batches: Batches, yardstick: Yardstick) -> StepTime:
    """The step of a candidate as a trial measures it that trains."""
    candidate = Candidate("tf32", tf32=True)
    step, _, _ = measure_step(bench, candidate, batches, yardstick=yardstick)
    assert step is not None
    return compared(bench, candidate, batches, step, yardstick)


@pytest.mark.parametrize("dwell", [0.3, 1.5, 30.0])
def test_an_unsteady_step_is_compared_with_its_neighbours(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch, dwell: float
) -> None:
    """By itself a step is off by up to a third; its ratio to the yardstick beside it by a percent."""
    bench, batches = make_bench()
    monkeypatch.setattr(StepTime, "launch_bound", True)
    yardstick = Yardstick(Candidate("fp32"), 27.0)
    alone, paired = [], []
    for seed in range(40):
        timed_by(Host(seed, dwell))
        step = beside(bench, batches, yardstick)
        alone.append(abs(step.median / MS["tf32"] - 1))
        paired.append(abs(yardstick.milliseconds_of(step) / MS["tf32"] - 1))
    assert sum(alone) / len(alone) > 0.1
    assert sum(paired) / len(paired) < 0.02


def test_a_calm_host_needs_fewer_pairs(make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, batches = make_bench()
    monkeypatch.setattr(StepTime, "launch_bound", True)
    monkeypatch.setattr(Host, "step", lambda self, ms: self.wait(ms / 1e3))
    timed_by(Host(0))
    step = beside(bench, batches, Yardstick(Candidate("fp32"), 27.0))
    assert step.ratios == pytest.approx([1 / 1.08] * 4)


def test_a_steady_step_is_not_paired(make_bench: Make, timed_by: Any) -> None:
    bench, batches = make_bench()
    steps = timed_by(Host(0, calm=True))
    step = beside(bench, batches, Yardstick(Candidate("fp32"), 1.0))
    assert not step.unsteady
    assert step.ratios == ()
    assert set(steps) == {"tf32"}
    assert Yardstick(Candidate("fp32"), 1.0).milliseconds_of(step) == step.median


def test_a_candidate_that_is_clearly_slower_is_not_paired_to_the_end(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    monkeypatch.setitem(MS, "tf32", 40.0)
    monkeypatch.setattr(StepTime, "launch_bound", True)
    steps = timed_by(Host(0, calm=True))
    step = beside(bench, batches, Yardstick(Candidate("fp32"), 9.0))
    assert len(step.ratios) == 2
    assert steps.count("fp32") < 10


def test_rounds_are_measured_there_and_back(make_bench: Make, timed_by: Any) -> None:
    bench, batches = make_bench()
    steps = timed_by(Host(0, calm=True))
    measure_interleaved(bench, [Candidate("fp32"), Candidate("tf32", tf32=True)], batches, rounds=2)
    blocks = [name for name, before in zip(steps, ["", *steps], strict=False) if name != before]
    assert blocks == ["fp32", "tf32", "fp32"]


def test_garbage_is_collected_before_the_timed_steps(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not within them: what a plan's making left behind is nothing that a step of the user's pays for."""
    bench, batches = make_bench()
    steps = timed_by(Host(0, calm=True))
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda _generation: collected.append(len(steps)))
    measure_step(bench, Candidate("fp32"), batches)
    assert collected == [timing.WARMUP_STEPS]


@pytest.mark.parametrize(("ms", "num_steps"), [(40.0, 3 + 25), (700.0, 2 + 5)])
def test_a_slow_candidate_takes_fewer_steps(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch, ms: float, num_steps: int
) -> None:
    bench, batches = make_bench()
    monkeypatch.setitem(MS, "tf32", ms)
    steps = timed_by(Host(0, calm=True))
    step, _, _ = measure_step(bench, Candidate("tf32", tf32=True), batches)
    assert step is not None
    assert step.median == pytest.approx(ms, rel=0.01)
    assert len(steps) == num_steps


def test_an_unsteady_slow_candidate_takes_as_many_as_others(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    monkeypatch.setitem(MS, "tf32", 700.0)
    steps = timed_by(Host(0, dwell=1.5))
    measure_step(bench, Candidate("tf32", tf32=True), batches)
    assert len(steps) == 2 + timing.MIN_STEPS


@pytest.mark.parametrize(("limit", "num_steps"), [(40.0, 3), (400.0, 3 + 3)])
def test_a_candidate_is_looked_at_again_only_where_it_may_have_been_unlucky(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch, limit: float, num_steps: int
) -> None:
    """A step in FP16 on a CPU may take a hundred times as long, and seconds."""
    bench, batches = make_bench()
    monkeypatch.setitem(MS, "tf32", 700.0)
    steps = timed_by(Host(0, calm=True))
    assert measure_step(bench, Candidate("tf32", tf32=True), batches, limit) == (None, None, None)
    assert len(steps) == num_steps


def test_one_step_that_another_program_held_up_is_no_reason_to_give_up(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    steps = timed_by(Host(0, calm=True))
    step, held_up = Host.step, 1e3
    monkeypatch.setattr(Host, "step", lambda host, ms: step(host, held_up if len(steps) == 2 else ms))
    measured, _, _ = measure_step(bench, Candidate("tf32", tf32=True), batches, 40.0)
    assert measured is not None
    assert measured.median == pytest.approx(25.0, rel=0.01)


def test_an_unsteady_step_counts_as_at_the_yardsticks_moment_before_it_is_compared(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    timed_by(Host(0, calm=True))
    step = StepTime.of([25.0, 25.0, 25.0])
    twice_as_fast_then = Yardstick(Candidate("fp32"), 13.5)
    assert roughly_ms(bench, batches, step, twice_as_fast_then) == 25.0, "steady"
    monkeypatch.setattr(StepTime, "launch_bound", True)
    assert roughly_ms(bench, batches, step, None) == 25.0
    assert roughly_ms(bench, batches, step, twice_as_fast_then) == pytest.approx(12.5, rel=0.01)


def test_nothing_is_given_up_because_the_host_is_slower_now(
    make_bench: Make, timed_by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    monkeypatch.setitem(MS, "tf32", 60.0)
    timed_by(Host(0, calm=True))
    candidate, limit = Candidate("tf32", tf32=True), 40.0
    twice_as_fast_then, as_fast_then = (Yardstick(Candidate("fp32"), ms) for ms in (13.5, 27.0))
    step, _, _ = measure_step(bench, candidate, batches, limit, twice_as_fast_then)
    assert step is not None
    assert step.median == pytest.approx(60.0, rel=0.01)
    assert measure_step(bench, candidate, batches, limit, as_fast_then) == (None, None, None)
    assert measure_step(bench, candidate, batches, limit) == (None, None, None)

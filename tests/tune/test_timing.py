from __future__ import annotations

import dataclasses
import time

import pytest

from amptune.tune.recipes import Candidate
from amptune.tune.timing import StepTime, measure_interleaved, measure_step, pooled, queueing_ms, speedup_interval
from amptune.tune.training import training

from .conftest import MLP, Make

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


def rounds(*medians: float) -> list[StepTime]:
    return [StepTime.of([m, m, m]) for m in medians]


def test_a_speedup_beyond_the_noise_has_a_lower_end_above_one() -> None:
    mean, low = speedup_interval(rounds(2.0, 2.02, 1.98), rounds(1.0, 1.01, 1.0))
    assert mean == pytest.approx(2.0, rel=0.01)
    assert 1.9 < low < mean


def test_paired_rounds_cancel_a_drift() -> None:
    _, low = speedup_interval(rounds(2.0, 4.0, 8.0), rounds(1.9, 3.8, 7.6))
    assert low > 1.05


def test_noise_is_no_speedup() -> None:
    _, low = speedup_interval(rounds(1.0, 1.3, 0.9), rounds(1.1, 0.9, 1.0))
    assert low < 1.0


def test_no_speedup_is_negative() -> None:
    _, low = speedup_interval(rounds(1.0, 9.0), rounds(1.0, 1.0))
    assert low == 0.0


def test_pooling_keeps_every_repeat() -> None:
    assert pooled(rounds(1.0, 3.0)).repeats == (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)


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

from __future__ import annotations

import math

import pytest

from amptune.tune.finalists.speedup import Speedup
from amptune.tune.running.timing import StepTime
from tests.tune.hosts import Host


def rounds(*medians: float) -> list[StepTime]:
    return [StepTime.of([m, m, m]) for m in medians]


def test_a_speedup_beyond_the_noise_has_a_lower_end_above_one() -> None:
    found = Speedup.of(rounds(2.0, 2.02, 1.98), rounds(1.0, 1.01, 1.0))
    assert found.ratio == pytest.approx(2.0, rel=0.01)
    assert 1.9 < found.low < found.ratio < found.high < 2.1


def test_paired_rounds_cancel_a_drift() -> None:
    assert Speedup.of(rounds(2.0, 4.0, 8.0), rounds(1.9, 3.8, 7.6)).low > 1.05


@pytest.mark.parametrize("count", [3, 6])
def test_noise_is_no_speedup(count: int) -> None:
    slower, faster = (1.0, 1.3, 0.9, 1.0, 1.1, 0.9), (1.1, 0.9, 1.0, 0.9, 1.2, 1.0)
    found = Speedup.of(rounds(*slower[:count]), rounds(*faster[:count]))
    assert found.low < 1.0 < found.high


def test_two_rounds_far_apart_say_next_to_nothing() -> None:
    found = Speedup.of(rounds(1.0, 9.0), rounds(1.0, 1.0))
    assert 0.0 < found.low < 0.01
    assert found.high > 100


def test_a_single_round_has_no_interval() -> None:
    assert Speedup.of(rounds(2.0), rounds(1.0)) == Speedup(2.0, 0.0, math.inf)


def test_one_round_in_a_slow_moment_changes_little() -> None:
    """Its mean would be 1.17."""
    found = Speedup.of(rounds(1.1, 1.11, 1.09, 1.1, 1.1, 1.5), rounds(*[1.0] * 6))
    assert found.ratio == pytest.approx(1.1)
    assert found.low == pytest.approx(1.09)


def test_an_interval_leaves_out_as_many_ratios_as_a_sign_test_allows() -> None:
    """One of 8 to 10 on each side, none of fewer: a fair coin shows at most 1 head of 8 with a chance of 9 / 256."""
    for count, low in ((5, 1), (7, 1), (8, 2), (10, 2), (11, 3), (24, 8)):
        slower = rounds(*map(float, range(1, count + 1)))
        found = Speedup.of(slower, rounds(*[1.0] * count))
        assert (found.low, found.high) == (low, count + 1 - low), count


def share_of_gains(speedup: float, count: int, dwell: float, calm: bool = False) -> tuple[float, float]:
    """How often a speedup is found to be beyond the noise, and how far its estimates are off (mean)."""
    found = []
    for seed in range(200):
        host = Host(seed, dwell, calm)
        pairs = [(host.block(27.0), host.block(27.0 / speedup)) for _ in range(count)]
        found.append(Speedup.of([a for a, _ in pairs], [b for _, b in pairs]))
    errors = [abs(one.ratio / speedup - 1) for one in found]
    return sum(one.low > 1.003 for one in found) / len(found), sum(errors) / len(errors)


@pytest.mark.parametrize("dwell", [1.5, 6.0, 30.0])
def test_a_gain_is_found_on_a_host_with_slow_moments(dwell: float) -> None:
    """A gain of a twentieth, while the same step takes a third longer at some moments."""
    share, error = share_of_gains(1.05, 24, dwell)
    assert share > 0.9
    assert error < 0.01


@pytest.mark.parametrize("dwell", [1.5, 6.0, 30.0])
@pytest.mark.parametrize("count", [6, 24])
def test_slow_moments_are_no_gain(dwell: float, count: int) -> None:
    share, _ = share_of_gains(1.0, count, dwell)
    assert share <= 0.05


def test_on_a_calm_host_a_gain_of_two_percent_is_found_in_six_rounds() -> None:
    share, error = share_of_gains(1.02, 6, 1.0, calm=True)
    assert share > 0.95
    assert error < 0.003

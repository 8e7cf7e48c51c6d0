from __future__ import annotations

from typing import Any

import pytest

from amptune.tune.study.moments import at_usual_moments
from amptune.tune.study.trial import Outcome, TrialRecord


def record(
    number: int, step_ms: float, beside: tuple[int, float, float] | None = None, kind: str = "search"
) -> TrialRecord:
    """A trial's; ``beside``: the trial that it was timed in turns with, the ratio, and what that one's step took."""
    step = {"median": step_ms, "low": step_ms, "high": step_ms, "repeats": 8}
    paired: dict[str, Any] | None = None
    if beside:
        trial, ratio, beside_ms = beside
        paired = {"trial": trial, "ratio": ratio, "low": ratio, "high": ratio, "count": 8, "beside_ms": beside_ms}
    outcome = Outcome(kind, "valid", step_ms=step, paired=paired, paired_ms=None if not beside else 99.0)
    return TrialRecord(number, {}, outcome)


def milliseconds(*records: TrialRecord) -> list[float]:
    return [each.outcome.ranked_ms for each in at_usual_moments(records)]


def test_a_trial_in_a_slow_moment_makes_those_timed_beside_it_no_slower() -> None:
    """A ResNet-50: the first plan's own trial took 28.2 ms, and 22.8 beside each later one."""
    slow, steady = record(2, 28.2), record(3, 22.76)
    later = [record(n, 24.3, (2, ratio, 22.8)) for n, ratio in ((4, 1.066), (5, 1.08), (6, 0.95))]
    found = milliseconds(slow, steady, *later)
    assert found == pytest.approx([22.8, 22.76, 24.3, 24.6, 21.7], abs=0.05)


def test_a_yardstick_that_was_timed_beside_another_keeps_what_was_timed_beside_it_on_its_scale() -> None:
    """The first yardstick was far slower than what came later. The second one's blocks met slow moments."""
    first, second = record(0, 30.0), record(1, 20.0, (0, 0.5, 30.0))
    same, slower = record(2, 22.0, (1, 1.0, 22.0)), record(3, 24.0, (1, 1.1, 21.0))
    assert milliseconds(first, second, same, slower) == pytest.approx([30.0, 15.0, 15.0, 16.5])


def test_what_was_timed_once_counts_once() -> None:
    first, *pairs = record(0, 30.0), record(1, 22.0, (0, 1.0, 22.0)), record(2, 26.0, (0, 1.0, 26.0))
    again = [record(number, 22.0, (0, 1.0, 22.0), "duplicate") for number in (3, 4)]
    assert milliseconds(first, *pairs, *again) == pytest.approx([26.0] * 5)


def test_the_records_that_are_given_stay_as_they_are() -> None:
    first, second = record(0, 30.0), record(1, 20.0, (0, 0.5, 32.0))
    found = at_usual_moments([first, second])
    assert [each.outcome.usual_ms for each in found] == pytest.approx([31.0, 15.5])
    assert [each.outcome.usual_ms for each in (first, second)] == [None, None]


def test_without_pairs_steps_are_as_the_clock_had_them() -> None:
    assert milliseconds(record(0, 30.0), record(1, 20.0)) == [30.0, 20.0]


def test_a_study_that_did_not_write_down_what_the_other_took_goes_on() -> None:
    old = record(1, 24.0, (0, 0.8, 30.0))
    assert old.outcome.paired
    paired = {key: value for key, value in old.outcome.paired.items() if key != "beside_ms"}
    object.__setattr__(old.outcome, "paired", paired)
    assert milliseconds(record(0, 30.0), old) == [30.0, 99.0]

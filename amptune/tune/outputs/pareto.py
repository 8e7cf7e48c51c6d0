"""What all trials together say: the plans that nothing beats, and how well their times were predicted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from amptune.tune.study.trial import Outcome, TrialRecord


def pareto_numbers(records: Sequence[TrialRecord]) -> list[int]:
    """Numbers of the measured trials that no other one beats in step time, loss gap and memory at once.

    Invalid ones take part: a plan that is faster than any valid one and trains worse is one end of the trade.
    """
    measured = [record for record in records if record.outcome.step_ms and record.outcome.loss_gap is not None]
    values = {record.number: _values(record.outcome) for record in measured}
    return [number for number, mine in values.items() if not any(_beats(other, mine) for other in values.values())]


def prediction_json(records: Sequence[TrialRecord]) -> dict[str, Any]:
    """How far predictions were off: median of |predicted / measured - 1| over all measured plans.

    ``median_error`` is of what was predicted before each trial, with what earlier trials had taught;
    ``median_error_of_table`` of the cost table alone.
    """
    outcomes = [record.outcome for record in records if not record.outcome.recipe and record.outcome.step_ms]
    learnt = [abs(o.predicted_ms / o.compared_ms - 1) for o in outcomes if o.predicted_ms]
    table = [abs(o.table_ms / o.compared_ms - 1) for o in outcomes if o.table_ms]
    return {"trials": len(learnt), "median_error": _median(learnt), "median_error_of_table": _median(table)}


def _values(outcome: Outcome) -> tuple[float, float, float]:
    return outcome.ranked_ms, outcome.loss_gap or 0.0, float(outcome.memory_bytes or 0)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _median(errors: Sequence[float]) -> float | None:
    finite = [error for error in errors if math.isfinite(error)]
    return round(statistics.median(finite), 4) if finite else None

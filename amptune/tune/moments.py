"""Trials that were timed at different moments of a host, on one scale.

Unsteady steps are timed in turns with the step of one earlier trial, and their ratios to it hold at any moment. What
they are multiplied by has to be that trial's usual step: its own trial may have met a slow moment, and then all others
came out slower than those that were timed by themselves.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Sequence

from amptune.tune.study import TrialRecord


def at_usual_moments(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records, with the milliseconds of paired ones, and of the trial that they were timed beside, by what that
    trial's step took in the middle of all that was timed of it."""
    besides: dict[int, list[float]] = defaultdict(list)
    for record in records:
        paired = record.outcome.paired
        if paired and "beside_ms" in paired:
            besides[paired["trial"]].append(float(paired["beside_ms"]))
    usual = {
        record.number: statistics.median([record.outcome.measured_ms, *besides[record.number]])
        for record in records
        if record.number in besides and record.outcome.step_ms
    }
    for record in records:
        record.outcome = dataclasses.replace(record.outcome, usual_ms=_milliseconds(record, usual))
    return list(records)


def _milliseconds(record: TrialRecord, usual: dict[int, float]) -> float | None:
    paired = record.outcome.paired
    if paired and paired["trial"] in usual:
        return float(paired["ratio"]) * usual[paired["trial"]]
    return usual.get(record.number)

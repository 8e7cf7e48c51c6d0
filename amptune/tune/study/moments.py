"""Trials that were timed at different moments of a host, on one scale.

Unsteady steps are timed in turns with the step of one earlier trial, and their ratios to it hold at any moment. What
they are multiplied by has to be that trial's usual step: its own trial may have met a slow moment, and then all others
came out slower than those that were timed by themselves.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from amptune.tune.study.trial import TrialRecord


def at_usual_moments(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records, by number, with ``usual_ms`` of paired ones, and of the trial that they were timed beside, by what
    that trial's step took in the middle of all that was timed of it.

    Where that trial was timed beside an earlier one itself, its milliseconds are by that one: two trials that are the
    same beside each other are so here.
    """
    besides: dict[int, list[float]] = defaultdict(list)
    for record in records:
        paired = record.outcome.paired
        if paired and "beside_ms" in paired and record.outcome.kind != "duplicate":  # which was timed once
            besides[paired["trial"]].append(float(paired["beside_ms"]))
    usual: dict[int, float] = {}
    for record in records:
        milliseconds = _milliseconds(record, besides, usual)
        if milliseconds is not None:
            usual[record.number] = milliseconds
    return [
        dataclasses.replace(each, outcome=dataclasses.replace(each.outcome, usual_ms=usual.get(each.number)))
        for each in records
    ]


def _milliseconds(
    record: TrialRecord, besides: Mapping[int, Sequence[float]], usual: Mapping[int, float]
) -> float | None:
    """``usual`` has those of earlier trials."""
    paired = record.outcome.paired
    if paired and paired["trial"] in usual:
        return float(paired["ratio"]) * usual[paired["trial"]]
    if record.number in besides and record.outcome.step_ms:
        return statistics.median([record.outcome.measured_ms, *besides[record.number]])
    return None

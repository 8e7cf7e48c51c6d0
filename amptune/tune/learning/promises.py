"""How often searched plans were expected to be better, and were: how far the next expectation is to be trusted.

What is expected of a plan comes of a model of the step, and the plan is the one of thousands that the model expects
most of. On a host with slow moments the model may expect a gain of every plan that it has not seen, without end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from amptune.tune.study.trial import Outcome, TrialRecord

if TYPE_CHECKING:
    from amptune.tune.learning.adapt import Knowledge

SURE = 3.0
"""How sure it is before any trial that as many plans are better as are expected to be, in such plans: the shape of a
gamma distribution of the share, whose mean is 1."""
MEMORY_NOISE = 0.01
"""Share of the memory that counts as a gain: an allocator rounds by less."""


def least_gain(known: Knowledge, best: Outcome) -> float:
    """What counts as a gain over the best plan: milliseconds, or bytes where memory is the objective."""
    return known.noise_ms if known.objective == "time" else MEMORY_NOISE * (best.memory_bytes or 0)


def share_kept(plans: Sequence[TrialRecord], least: float, size_of: Callable[[Outcome], float]) -> float:
    """How many plans are better for each one that is expected to be, after those since the last gain, which were not.

    The posterior mean of the rate of a Poisson process, of which nothing was seen: ``SURE / (SURE + expected)``.

    Args:
        plans: trials of plans, by number.
        least: what counts as a gain, in milliseconds or bytes.
        size_of: what is to be small of a valid plan, in the same unit.
    """
    best, expected = math.inf, 0.0
    for outcome in (record.outcome for record in plans):
        if outcome.valid and size_of(outcome) < best - least:
            best, expected = size_of(outcome), 0.0
        elif outcome.kind == "search":
            expected += outcome.gain_chance or 0.0
    return SURE / (SURE + expected)

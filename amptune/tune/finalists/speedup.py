"""How much faster one candidate is than another, by rounds in which both were timed in turns.

A host that other programs share has fast and slow moments: a step that waits for Python takes 27 or 36 ms, whichever
recipe it runs. Within a round both mostly meet the same moment, but not always, and such a round is off by a third. So
the middle ratio counts and not the mean, and its interval rests on the order of the ratios alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from amptune.tune.running.timing import StepTime

ERROR = 0.05
"""Chance that an end of the interval is passed, for each end by itself."""
T_95 = (6.31, 2.92, 2.35)
"""One-sided 95 % quantiles of Student's t for 1 to 3 degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class Speedup:
    """Ratio of step times: the median over paired rounds, with the ends of its two one-sided 95 % intervals."""

    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, slower: Sequence[StepTime], faster: Sequence[StepTime], error: float = ERROR) -> Speedup:
        """From paired rounds, at least one.

        From five rounds on (``error`` of 5 %; six with 2.5 %) the ends are ratios of rounds, chosen as in a sign test:
        whatever the noise is like, the true median lies beyond an end with a chance of at most ``error``, as long as
        rounds are independent and it was not these rounds that the two candidates were chosen by. Fewer rounds give
        Student's t of 5 % on the logarithms, and a single one an interval that says nothing.
        """
        ratios = sorted(a.median / b.median for a, b in zip(slower, faster, strict=True))
        middle = statistics.median(ratios)
        if len(ratios) == 1:
            return cls(middle, 0.0, math.inf)
        if len(ratios) > len(T_95) + 1:
            outside = _outside(len(ratios), error)
            return cls(middle, ratios[outside], ratios[-1 - outside])
        logs = [math.log(ratio) for ratio in ratios]
        reach = T_95[len(logs) - 2] * statistics.stdev(logs) / math.sqrt(len(logs))
        mean = statistics.fmean(logs)
        return cls(middle, min(middle, math.exp(mean - reach)), max(middle, math.exp(mean + reach)))


def _outside(count: int, error: float) -> int:
    """How many ratios on each side an interval may leave out: as many as a fair coin shows heads at most in ``count``
    throws with a chance of at most ``error``, and one throw of that is the end itself."""
    chance, heads = 0.5**count, 0
    while chance <= error:
        heads += 1
        chance += math.comb(count, heads) * 0.5**count
    return max(0, heads - 1)

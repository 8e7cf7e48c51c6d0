"""What Python takes to queue a step: a step is the longer of this and of what the GPU takes.

Hosts are noisy: the same step may take twice as long to queue a minute later. So the fixed part is the likeliest one
for all that was seen: steps that the GPU waited in, steps that were the GPU's and so were queued in less, and times of
queueing. On top of it casts are counted, and what else plans differ in is learnt from steps that the GPU waited in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from amptune.tune.allocation.encoded import Encoding, Rows
from amptune.tune.learning.base import AUTOCAST
from amptune.tune.learning.stepmodel import StepModel
from amptune.tune.study.trial import Outcome

UNSTEADY = 0.02
"""Distance of the quartiles, as a share of the median, from which on steps depend on the host's moment."""
QUEUED = 0.25
"""How far a time of queueing may be off, as a share: it is the least of three, at another moment than the steps."""
AUTOCASTS = 0.1
"""How far a plan's launches may differ from autocast's, as a share (reports/host_overhead.md)."""
SPREADS = (0.02, 0.04, 0.08, 0.16, 0.32)
"""Standard deviations that the logarithm of a host's time may have from moment to moment, all as likely."""
STEPS = 100
"""Of the grid of fixed parts."""
HOST_SCALES = (0.25, 1.0, 4.0)
"""Factors on how much plans may differ on the host: as a rule little beside their casts, which is seen from few."""


@dataclasses.dataclass(frozen=True)
class Host:
    """What the host takes for a step.

    Attributes:
        encoding: the rows of the space, priced by what queueing their casts takes.
        step: posterior of what plans take beyond that and the fixed part.
        fixed_ms: what a step takes before its casts.
    """

    encoding: Encoding
    step: StepModel
    fixed_ms: float

    def milliseconds(self, rows: Rows, weights: np.ndarray | None = None) -> np.ndarray:
        """Milliseconds of each row, by the mean of what is known or by sampled weights."""
        found: np.ndarray = self.fixed_ms + self.encoding.milliseconds(rows) + self.step.corrections(rows, weights)
        return found

    def saved(self, rows: Rows, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the milliseconds that each row saves over ``other``."""
        more, spread = self.step.differences(rows, other)
        return self.encoding.milliseconds(other[None]) - self.encoding.milliseconds(rows) - more, spread


@dataclasses.dataclass(frozen=True)
class Seen:
    """One piece of evidence of the fixed part: milliseconds, how far they may be off as a share beside the host's
    moments, and whether it was less than that."""

    ms: float
    spread: float = 0.0
    is_limit: bool = False


def waited_for_host(outcome: Outcome) -> bool:
    """Whether the GPU waited for Python in the steps of a trial, or may have."""
    if outcome.launch_ms is None or outcome.step_ms is None:
        return False
    apart = (float(outcome.step_ms["high"]) - float(outcome.step_ms["low"])) / outcome.measured_ms
    return apart > UNSTEADY or outcome.launch_bound


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What a step takes on the host before its casts: milliseconds, and the standard deviation of their logarithm from
    moment to moment."""

    ms: float
    moments: float

    def noise_of(self, outcome: Outcome) -> float:
        """Milliseconds by which the moment may have made a trial's steps longer or shorter than usual."""
        return 0.0 if outcome.paired or outcome.usual_ms is not None else self.moments * outcome.ranked_ms


def learn_fixed(stock: Sequence[Outcome], plans: Sequence[tuple[Outcome, float]]) -> Fixed | None:
    """The fixed part; None where no step was ever queued by itself.

    Args:
        stock: the stock recipes' trials. Autocast launches about as much as a plan does.
        plans: the plans' trials, each with the milliseconds of its casts on the host.
    """
    autocast = [(o, 0.0, AUTOCASTS) for o in stock if o.recipe in AUTOCAST]
    trials = [*autocast, *((o, casts, 0.0) for o, casts in plans)]
    seen = []
    for outcome, casts, off in trials:
        if outcome.step_ms and outcome.launch_ms:
            is_limit = not waited_for_host(outcome)
            seen.append(Seen(max(outcome.ranked_ms - casts, 1e-3), off, is_limit))
            seen.append(Seen(max(outcome.launch_ms - casts, 1e-3), QUEUED))
    return likeliest(seen) if seen else None


def likeliest(seen: Sequence[Seen]) -> Fixed:
    """Under which all that was seen is likeliest."""
    low, high = min(math.log(s.ms) for s in seen) - 0.2, max(math.log(s.ms) for s in seen) + 0.2
    centers = [low + (high - low) * step / STEPS for step in range(STEPS + 1)]
    grid = [(center, spread) for center in centers for spread in SPREADS]
    center, moments = max(grid, key=lambda at: sum(_log_likelihood(s, *at) for s in seen))
    return Fixed(math.exp(center), moments)


def _log_likelihood(seen: Seen, center: float, moments: float) -> float:
    spread = math.hypot(moments, seen.spread)
    z = (math.log(seen.ms) - center) / spread
    if seen.is_limit:
        return math.log(max(0.5 * math.erfc(-z / math.sqrt(2)), 1e-300))
    return -0.5 * z * z - math.log(spread)

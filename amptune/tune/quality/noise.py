"""How far a plan is from not training, by the direction of its gradients: evidence in numbers of where the limit is.

Rounding errors that are independent add up in squares, so a gradient whose cosine to the reference's is c holds
1 / c^2 - 1 of noise to 1 of signal, about proportional to the summed squared errors of the plan. As a share of what the
gate allows, 1 is the bar: a plan of error E that shows the share s puts the limit near E / s.

How near was measured on 200 plans of five small networks (tests/benchmarks/reports/gradient_noise.md), and what trials
of GPT-2 and BERT on an H200 recorded is alike. Within one network the logarithm of s / E has a standard deviation of
0.4 to 1.0 over plans with FP8. Over plans in 16 bits alone it has 0.1 to 2.7: what rounds there is mostly the stream
between the sites, which no site's error knows. And a network's 16-bit plans may show 30 times more for their error than
its FP8 plans do, so those in 16 bits that train say nothing of FP8.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

SPREAD = 0.5
"""Standard deviation of the logarithm of a plan's share over what its error says, beside what single choices are off
by."""
SPREAD_PARTLY = 1.0
"""The same where a plan with FP8 trains and the limit is larger than its share says: much of a small share may be that
of its layers in 16 bits (in BERT with FP8 in one group, two thirds)."""
SPREAD_16 = 1.5
"""The same for a plan in 16 bits alone."""
SATURATED = 24.0
"""From here on noise exceeds the signal and no longer grows with the error: the plan is that far beyond the bar or
more."""
WORST_TO_TYPICAL, WORST_SPREAD = 0.8, 0.7
"""Logarithm of the worst parameter's share over the median one's where errors add up: 0.5 to 1.3 in the mean of a
network's plans with FP8, 3.3 at most."""
BY_ITSELF = 1 / 8
"""Density of either logarithm where a single choice breaks a plan: anything from 1 to 3000."""
OTHERWISE = 0.01
"""Chance that a share is no evidence, for another cause."""
INDEPENDENT = 6
"""Plans are much alike, and what their shares are off by is so too: together they count for as many at most."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """What rounding adds to the direction of a plan's gradients, as a share of what their bars allow; 1 is the bar.

    Attributes:
        worst: of the parameter that is nearest to its bar, or furthest beyond it.
        typical: of the median parameter.
    """

    worst: float
    typical: float

    @property
    def adds_up(self) -> bool:
        """Whether a plan that this refuses has gradients off all over, so that no layer is to blame by itself."""
        return self.worst > 1 and self._log_ratio <= WORST_TO_TYPICAL + 2 * WORST_SPREAD

    @property
    def odds_of_sum(self) -> float:
        """How much likelier the distance of the worst from the typical share is where errors add up than where a single
        choice breaks the plan."""
        return _normal((self._log_ratio - WORST_TO_TYPICAL) / WORST_SPREAD) / WORST_SPREAD / BY_ITSELF

    @property
    def _log_ratio(self) -> float:
        return math.log(max(min(self.worst, SATURATED), 1e-9) / max(min(self.typical, SATURATED), 1e-9))


@dataclasses.dataclass(frozen=True)
class Shown:
    """What one plan's share says: the share, and standard deviations of its logarithm.

    ``below`` holds where the limit is lower than the share says, ``above`` where it is higher; ``odds`` multiplies the
    chance that errors add up to it.
    """

    share: float
    below: float
    above: float
    odds: float = 1.0

    def density(self, log_ratio: np.ndarray) -> np.ndarray:
        """Of the share, over that of a plan broken by a single choice, where the logarithm of the plan's error over the
        limit is ``log_ratio``."""
        off = log_ratio - math.log(max(min(self.share, SATURATED), 1e-9))
        if self.share >= SATURATED:  # that far or more
            found = np.exp(-0.5 * np.square(np.minimum(off, 0.0) / self.below))
        else:
            z = off / np.where(off > 0, self.below, self.above)
            found = np.exp(-0.5 * z**2) * (2 / (math.sqrt(2 * math.pi) * (self.below + self.above)) / BY_ITSELF)
        density: np.ndarray = (1 - OTHERWISE) * self.odds * found + OTHERWISE
        return density


def shown_by(noise: Noise | None, *, valid: bool, has_fp8: bool) -> Shown | None:
    """What a plan's noise says of the limit; None where that is nothing."""
    if noise is None or noise.worst <= 0 or (valid and not has_fp8) or (not valid and noise.worst <= 1):
        return None
    if valid:
        return Shown(noise.worst, SPREAD, SPREAD_PARTLY)
    spread = SPREAD if has_fp8 else SPREAD_16
    return Shown(noise.worst, spread, spread, noise.odds_of_sum)


def _normal(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

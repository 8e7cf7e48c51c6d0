"""What was seen of the values at the sites of a graph in a real forward and backward."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from amptune.core.bounds.intervals import Range
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph


@dataclasses.dataclass(frozen=True)
class Stat:
    """Values of one tensor, or of several together.

    Attributes:
        low, high: extremes of the finite values.
        count: all values. zeros: those that are zero. nonfinite: infinities and NaNs.
        exponents: floor(log2 |x|) -> how many of the finite values other than zero have it.
        spread: the largest channel maximum over the median one, along the last axis; 0 where there are few channels.
    """

    low: float
    high: float
    count: int
    zeros: int = 0
    nonfinite: int = 0
    exponents: Mapping[int, int] = dataclasses.field(default_factory=dict, hash=False)
    spread: float = 0.0

    @property
    def range(self) -> Range:
        """The extremes."""
        return Range(self.low, self.high)

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def joined(self, other: Stat) -> Stat:
        """Both together."""
        counts = collections.Counter(self.exponents)
        counts.update(other.exponents)
        return Stat(min(self.low, other.low), max(self.high, other.high), self.count + other.count,
                    self.zeros + other.zeros, self.nonfinite + other.nonfinite, counts,
                    max(self.spread, other.spread))  # fmt: skip

    def overflows(self, number_format: Format) -> bool:
        """Whether the largest value rounds out of a format."""
        return not math.isfinite(number_format.round(self.magnitude))

    def underflow(self, number_format: Format, scale: float = 1.0) -> float:
        """The share of the values other than zero that become zero in a format, after a multiplication by ``scale``."""
        edge = math.log2(number_format.smallest_subnormal) - 1 - math.log2(scale)
        return self._below(edge)

    def subnormal(self, number_format: Format, scale: float = 1.0) -> float:
        """The share of the values other than zero that lie under the format's normal numbers, and lose digits."""
        return self._below(math.log2(number_format.smallest_normal) - math.log2(scale))

    def _below(self, exponent: float) -> float:
        total = sum(self.exponents.values())
        return sum(number for key, number in self.exponents.items() if key < exponent) / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """As the ``ranges`` section of the report has it."""
        return {
            "low": self.low, "high": self.high, "count": self.count, "zeros": self.zeros, "nonfinite": self.nonfinite,
            "exponents": {str(key): self.exponents[key] for key in sorted(self.exponents)},
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Observed:
    """A recorded step in FP32.

    Attributes:
        forward: site id -> values that the site gave.
        gradient: site id -> gradients of the loss with respect to them, without a loss scale.
        device: where it ran.
        loss: its loss; ``None`` where it was not finite.
    """

    forward: Mapping[str, Stat] = dataclasses.field(hash=False)
    gradient: Mapping[str, Stat] = dataclasses.field(hash=False)
    device: str = "cpu"
    loss: float | None = None

    def of_calls(self, calls: PrecisionGraph) -> Observed:
        """The same by the ids of calls."""
        seen = [
            {site.id: stats[site.site_id] for site in calls if site.site_id in stats}
            for stats in (self.forward, self.gradient)
        ]
        return dataclasses.replace(self, forward=seen[0], gradient=seen[1])

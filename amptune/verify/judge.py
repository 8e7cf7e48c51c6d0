"""When two training runs have parted: their paired difference against the noise of two FP32 seeds. Pure Python.

A loss near zero would make any rounding a large part of it, hence the tolerance is one of the progress made. But of a
loss that fell from 94 to 1e-4, half a percent of the progress is 5000 times the loss: it may be twice as large at most.
Where one batch is learnt by heart, FP32 goes on to a loss that no rounded model reaches (of a regression 1e-13, where
BF16 ends at 6e-4), so there it may also be what rounding the original's own weights makes of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

NUM_BLOCKS = 5
T_95_FOUR_DEGREES = 2.132
"""One-sided 95 % quantile of Student's t for the means of five blocks."""
FEWEST = 20
"""Steps before a verdict: five blocks of at least two steps in the later half."""

ROUNDINGS = 4
"""Weights, inputs, outputs and output gradients are rounded, where the rounded original has one of the four."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far the patched run is from the original over the later half of the steps so far.

    Attributes:
        mean: mean of the paired differences, patched minus original, in units of the loss.
        low, high: one-sided 95 % bounds of it.
        noise: what is allowed: what two FP32 runs with different seeds differ by there, or the tolerance.
        scale: the loss that a relative gap refers to, max(|L|, L_initial - L).
    """

    mean: float
    low: float
    high: float
    noise: float
    scale: float

    @property
    def relative(self) -> float:
        """The mean, relative to the loss."""
        return self.mean / self.scale if self.scale else math.inf

    @property
    def is_worse(self) -> bool:
        """Whether the patched run is worse beyond the noise, with 95 % confidence."""
        return self.low > self.noise

    @property
    def is_beyond(self) -> bool:
        """Whether the patched run is worse beyond the noise, with or without that confidence."""
        return self.mean > self.noise

    @property
    def is_settled(self) -> bool:
        """Whether it is within the noise, with 95 % confidence."""
        return self.high <= self.noise


def measure_gap(
    original: Sequence[float],
    patched: Sequence[float],
    other_seed: Sequence[float],
    tolerance: float,
    rounded: Sequence[float] = (),
) -> Gap:
    """The gap of runs of equal length, at least ``FEWEST`` steps.

    Losses of one run hang together, so what is averaged are the means of a few blocks of steps. ``rounded`` are the
    losses that the original's weights have when they are off by a rounding, where only these say what is nearly zero.
    """
    start = len(original) // 2
    differences = [b - a for a, b in zip(original[start:], patched[start:], strict=True)]
    noises = [b - a for a, b in zip(original[start:], other_seed[start:], strict=True)]
    means = _block_means(differences)
    mean = statistics.fmean(differences)
    error = T_95_FOUR_DEGREES * statistics.stdev(means) / math.sqrt(len(means))
    level = statistics.fmean(original[start:])
    scale = max(abs(level), original[0] - level)
    noise_means = _block_means(noises)
    noise = abs(statistics.fmean(noises)) + T_95_FOUR_DEGREES * statistics.stdev(noise_means) / math.sqrt(NUM_BLOCKS)
    tolerated = tolerance * scale
    if min(original) >= 0:  # others may pass through zero, where they are not nearly gone
        rounding = ROUNDINGS * (statistics.fmean(rounded[start:]) - level) if rounded else 0.0
        tolerated = max(tolerance * level, min(tolerated, max(level, rounding)))
    return Gap(mean, mean - error, mean + error, max(noise, tolerated), scale)


def _block_means(values: Sequence[float]) -> list[float]:
    edges = [round(index * len(values) / NUM_BLOCKS) for index in range(NUM_BLOCKS + 1)]
    return [statistics.fmean(values[a:b]) for a, b in itertools.pairwise(edges)]

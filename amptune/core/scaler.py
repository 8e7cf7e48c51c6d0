"""The loss scaler, chosen from recorded gradients and simulated against them before it is emitted.

FP16 gradients overflow and underflow where they are made, in the output gradient of a site and in its FP16 weight
gradient, not in the FP32 ``.grad`` that the optimizer sees. A record holds the magnitudes there, with any scale
divided out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from amptune.core.formats import Format
from amptune.core.plan import ScalerConfig

FP16_LOSS_SCALE = 2.0**15
"""Largest scale where the loss is computed in FP16: its own gradient, which is the scale, has to be an FP16 number."""
MARGIN = 8.0
"""How far the largest recorded gradient stays under FP16's largest number."""
DEFAULT = ScalerConfig(enabled=True)
"""torch's own settings."""
INTERVALS = (2000, 1000, 500, 4000, 250)
"""Growth intervals to compare where a record is long enough; the first is torch's default and wins a tie."""

# The scale multiplies an FP32 loss and divides FP32 gradients: both must stay far inside FP32.
SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-24, 2.0**48
_OVERFLOWS_FROM = 65520.0  # what rounds to infinity in FP16; 65504 is its largest number
_FLUSHED_BELOW = -25  # log2 of the largest magnitude that rounds to zero in FP16: half the smallest subnormal


@dataclasses.dataclass(frozen=True)
class GradientStep:
    """Magnitudes of the gradients of one training step, unscaled.

    Attributes:
        amax_log2: log2 of the largest magnitude; ``-inf`` where all are zero, ``inf`` where one is not finite.
        exponents: floor(log2(|g|)) -> number of elements, of the finite ones that are not zero.
    """

    amax_log2: float
    exponents: Mapping[int, int] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class GradientRecord:
    """The recorded steps of a training run, in order."""

    steps: tuple[GradientStep, ...] = ()

    @property
    def amax_log2(self) -> float:
        """log2 of the largest finite gradient of the run; ``-inf`` where there is none."""
        return max((step.amax_log2 for step in self.steps if step.amax_log2 < math.inf), default=-math.inf)


@dataclasses.dataclass(frozen=True)
class ScalerSimulation:
    """What a scaler would have done on a record.

    Attributes:
        skipped_steps: steps whose gradients overflow, so that the optimizer does not run.
        underflowed_share: share of the nonzero gradient elements that FP16 rounds to zero, over the steps that ran.
        steps_to_settle: steps until the scale stays within one growth factor of where it ends.
        final_scale: scale after the last step.
    """

    skipped_steps: int
    underflowed_share: float
    steps_to_settle: int
    final_scale: float

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return dataclasses.asdict(self)


def choose_scaler(record: GradientRecord, *, uses_fp16: bool = True, largest: float = math.inf) -> ScalerConfig:
    """The scaler for gradients such as the recorded ones.

    init_scale is the largest power of two that keeps the largest gradient a factor of MARGIN under 65504. The growth
    interval stays torch's 2000 unless at least two intervals were recorded: a shorter record says nothing about it.

    Args:
        record: gradients of real steps; without any nonzero one torch's init_scale is kept.
        uses_fp16: whether a site computes in FP16; without one no scaler is needed.
        largest: the scale starts no higher.
    """
    if not uses_fp16:
        return ScalerConfig(enabled=False)
    config = dataclasses.replace(DEFAULT, init_scale=min(static_scale(record), largest))
    intervals = [interval for interval in INTERVALS if 2 * interval <= len(record.steps)]
    candidates = [dataclasses.replace(config, growth_interval=interval) for interval in intervals] or [config]
    return min(candidates, key=lambda candidate: _badness(simulate(candidate, record)))


def static_scale(record: GradientRecord) -> float:
    """The power of two to multiply the loss by where the scale does not adapt; torch's 65536 without a record."""
    if record.amax_log2 == -math.inf:
        return DEFAULT.init_scale
    exponent = math.floor(math.log2(Format.FP16.max / MARGIN) - record.amax_log2)
    return min(max(2.0**exponent, SMALLEST_SCALE), _LARGEST_SCALE)


def simulate(config: ScalerConfig, record: GradientRecord) -> ScalerSimulation:
    """Run ``torch.amp.GradScaler``'s rule over the record, as its ``update`` has it.

    An overflow skips the step and multiplies the scale by backoff_factor; growth_interval steps in a row without one
    multiply it by growth_factor. A disabled scaler is a constant scale of 1.
    """
    scale, clean_steps = (config.init_scale if config.enabled else 1.0), 0
    scales: list[float] = []
    skipped = lost = total = 0
    for step in record.steps:
        scales.append(scale)
        if _overflows(step, scale):
            skipped += 1
            clean_steps = 0
            scale *= config.backoff_factor if config.enabled else 1.0
            continue
        total += sum(step.exponents.values())
        lost += _flushed(step, scale)
        clean_steps += 1
        if config.enabled and clean_steps == config.growth_interval:
            scale *= config.growth_factor
            clean_steps = 0
    return ScalerSimulation(skipped, lost / total if total else 0.0, _settled(scales, scale, config), scale)


def scaler_json(config: ScalerConfig, record: GradientRecord) -> dict[str, Any]:
    """The content of scaler.json, schema version 1: settings, the scale for a fixed one, and both simulations."""
    amax = [step.amax_log2 if math.isfinite(step.amax_log2) else None for step in record.steps]
    return {
        "version": 1,
        "gradscaler": config.to_json(),
        "static_scale": static_scale(record) if config.enabled else 1.0,
        "simulation": {"tuned": simulate(config, record).to_json(), "default": simulate(DEFAULT, record).to_json()},
        "recorded": {"steps": len(record.steps), "amax_log2": amax},
    }


def _badness(simulation: ScalerSimulation) -> tuple[int, float]:
    return simulation.skipped_steps, simulation.underflowed_share


def _overflows(step: GradientStep, scale: float) -> bool:
    return step.amax_log2 + math.log2(scale) >= math.log2(_OVERFLOWS_FROM)


def _flushed(step: GradientStep, scale: float) -> int:
    """Elements that become zero; a bin counts as a whole, by its lower end."""
    shift = math.log2(scale)
    return sum(count for exponent, count in step.exponents.items() if exponent + shift < _FLUSHED_BELOW)


def _settled(scales: list[float], final: float, config: ScalerConfig) -> int:
    """Index of the first step from which on the scale stays within one growth factor of ``final``."""
    low, high = final / config.growth_factor, final * config.growth_factor
    last_outside = [number for number, scale in enumerate(scales, 1) if not low <= scale <= high]
    return last_outside[-1] if last_outside else 0

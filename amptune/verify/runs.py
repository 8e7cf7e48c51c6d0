"""Three training runs side by side on the same batches: original, original with another seed, patched.

All start from the same weights. The other seed draws other random numbers (dropout) and starts a rounding error away.
What is judged of the patched run is the loss that its weights have in the original's FP32 forward.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from amptune.capture import Target
from amptune.core.plan import ScalerConfig
from amptune.errors import TuneError
from amptune.tune.running.batches import to_device
from amptune.tune.running.device import Device
from amptune.tune.running.training import seed_everything
from amptune.verify.judge import FEWEST, Gap, measure_gap
from amptune.verify.trainer import Trainer, Unpatched, built, copy_state, rounding_of

CHECK_EVERY = 10
"""Steps between two looks at the gap."""
OTHER_SEED = 1000
NUDGE = 1e-6
"""Relative change of the other seed's initial weights, about FP32's rounding: what training makes of it is noise.
Other weights altogether would be no measure for a pair that starts from the same ones."""


@dataclasses.dataclass
class Runs:
    """The losses of all three runs, and how they ended.

    Attributes:
        tolerance: the relative gap that is allowed in any case.
        original, other_seed, patched: loss of each step, as the model itself computes it.
        patched_in_fp32: loss that the patched model's weights have in the original's FP32 forward, on the same batch
            before the same step.
        rounded: loss of the original's weights with each off by what the patched model rounds it by, where one batch
            is used again and again; else empty.
        stopped: why the runs ended: ``steps``, ``time``, ``data``, ``worse`` or ``not finite``.
        seconds: how long they took.
    """

    tolerance: float
    original: list[float] = dataclasses.field(default_factory=list)
    other_seed: list[float] = dataclasses.field(default_factory=list)
    patched: list[float] = dataclasses.field(default_factory=list)
    patched_in_fp32: list[float] = dataclasses.field(default_factory=list)
    rounded: list[float] = dataclasses.field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0

    @property
    def gap(self) -> Gap | None:
        """How far the patched model's weights are from the original's; None where it is too early to tell."""
        return self._gap_of(self.patched_in_fp32, len(self.original))

    @property
    def own_gap(self) -> Gap | None:
        """The same of the loss that the patched model computes itself, rounded as its outputs are."""
        return self._gap_of(self.patched, len(self.original))

    @property
    def has_parted(self) -> bool:
        """Whether the patched model's weights were worse at two looks in a row, the second one now."""
        steps = len(self.original)
        gaps = [self._gap_of(self.patched_in_fp32, at) for at in (steps - CHECK_EVERY, steps)]
        return steps % CHECK_EVERY == 0 and all(gap is not None and gap.is_worse for gap in gaps)

    @property
    def is_finite(self) -> bool:
        """Whether the patched model's last losses are."""
        return math.isfinite(self.patched[-1]) and math.isfinite(self.patched_in_fp32[-1])

    def _gap_of(self, patched: Sequence[float], steps: int) -> Gap | None:
        if steps < FEWEST or self.stopped == "not finite":
            return None
        return measure_gap(
            self.original[:steps], patched[:steps], self.other_seed[:steps], self.tolerance, self.rounded[:steps]
        )


def train_side_by_side(
    original: Target, patched: Target, device: Device, *, steps: int, minutes: float | None, seed: int,
    tolerance: float, scaler: ScalerConfig | None, report: Callable[[int], None],
) -> tuple[Runs, dict[str, float | None]]:  # fmt: skip
    """Train until the steps, the time or the batches end, or the runs have parted twice in a row.

    Returns:
        The losses, and what ``evaluate`` says of the original and the patched model where there is one.

    Raises:
        TuneError: the original is not finite in FP32.
        CaptureError: the states of the two models do not match.
    """
    reference = Trainer(original, built(original, device, seed), device)
    other = Trainer(original, _nudged(reference.model, built(original, device, seed), seed), device)
    model = built(patched, device, seed)
    copy_state(reference.model, model)
    candidate = Trainer(patched, model, device, scaler)
    unpatched = Unpatched(original, built(original, device, seed))
    rounding = rounding_of(model) if original.train_batches is None else 0.0
    runs, started = Runs(tolerance), time.monotonic()
    for step, batch in enumerate(itertools.islice(_batches(original, device), steps)):
        if rounding and not _add_finite(runs.rounded, unpatched.rounded(reference.model, batch, seed + step, rounding)):
            rounding = 0.0
        runs.original.append(reference.step(batch, seed + step))
        runs.other_seed.append(other.step(batch, seed + OTHER_SEED + step))
        runs.patched_in_fp32.append(unpatched.loss(model, batch, seed + step))
        runs.patched.append(candidate.step(batch, seed + step))
        report(step + 1)
        if not math.isfinite(runs.original[-1]):
            raise TuneError(f"the loss of the original is {runs.original[-1]} at step {step}, in FP32",
                            hint="amptune debug names the operation")  # fmt: skip
        runs.seconds = time.monotonic() - started
        runs.stopped = _why_to_stop(runs, minutes)
        if runs.stopped:
            break
    else:
        runs.stopped = "steps" if len(runs.original) == steps else "data"
    return runs, {"original": reference.evaluation(), "patched": candidate.evaluation()}


def _add_finite(losses: list[float], loss: float) -> bool:
    """Add a finite loss; one that is not leaves none."""
    if math.isfinite(loss):
        losses.append(loss)
    else:
        losses.clear()
    return bool(losses)


def _why_to_stop(runs: Runs, minutes: float | None) -> str:
    if not runs.is_finite:
        return "not finite"
    if runs.has_parted:
        return "worse"
    return "time" if minutes is not None and runs.seconds > 60 * minutes else ""


def _nudged(source: nn.Module, model: nn.Module, seed: int) -> nn.Module:
    """``model`` with the weights of ``source``, each moved a little."""
    copy_state(source, model)
    seed_everything(seed + OTHER_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + NUDGE * torch.randn_like(parameter))
    return model


def _batches(target: Target, device: Device) -> Iterator[Any]:
    if target.train_batches is None:
        batch = to_device(target.make_batch(), device.torch)
        return itertools.repeat(batch)
    return (to_device(batch, device.torch) for batch in target.train_batches())

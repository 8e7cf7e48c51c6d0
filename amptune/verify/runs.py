"""Three training runs side by side on the same batches: original, original with another seed, patched.

All start from the same weights. The other seed draws other random numbers (dropout) and starts a rounding error away.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amptune.capture import Target
from amptune.capture.prepare import run_lazy_layers
from amptune.core.plan import ScalerConfig
from amptune.errors import CaptureError, TuneError, WorkError
from amptune.tune.batches import to_device
from amptune.tune.device import Device
from amptune.tune.recipes import backend_flags
from amptune.tune.training import make_optimizer, seed_everything
from amptune.verify.judge import FEWEST, Gap, measure_gap

CHECK_EVERY = 10
"""Steps between two looks at the gap."""
OTHER_SEED = 1000
NUDGE = 1e-6
"""Relative change of the other seed's initial weights, about FP32's rounding: what training makes of it is noise.
Other weights altogether would be no measure for a pair that starts from the same ones."""


class Trainer:
    """One model in training: a step gives its loss."""

    def __init__(self, target: Target, model: nn.Module, device: Device, scaler: ScalerConfig | None = None) -> None:
        self.target = target
        self.model = model
        self.device = device
        self.optimizer = make_optimizer(target, model, device)
        config = scaler or ScalerConfig()
        self.scaler = torch.amp.GradScaler(device.torch.type, **config.to_json())
        # A patched file carries the TF32 flags that were measured; they are process-wide, so each step sets them.
        self._set_flags: Callable[[], object] | None = getattr(target.module, "set_backend_flags", None)

    def step(self, batch: Any, seed: int) -> float:
        """One training step.

        Raises:
            WorkError: the user's code raises.
        """
        seed_everything(seed)
        with backend_flags(False):
            if self._set_flags is not None:
                self._set_flags()
            self.optimizer.zero_grad(set_to_none=True)
            try:
                loss = self.target.loss(self.target.call(self.model, batch), batch)
                self.scaler.scale(loss).backward()
            except torch.OutOfMemoryError:
                raise WorkError("out of memory: verify holds three models", hint="use a smaller batch") from None
            except (RuntimeError, ValueError, TypeError) as error:
                raise WorkError(f"{self.target.spec.text}: a training step raised {error}") from error
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return float(loss.detach())


@dataclasses.dataclass
class Runs:
    """The losses of all three runs, and how they ended.

    Attributes:
        original, other_seed, patched: loss of each step.
        stopped: why the runs ended: ``steps``, ``time``, ``data``, ``worse`` or ``not finite``.
        gap: at the end; None where it is too early to tell.
        seconds: how long they took.
    """

    original: list[float] = dataclasses.field(default_factory=list)
    other_seed: list[float] = dataclasses.field(default_factory=list)
    patched: list[float] = dataclasses.field(default_factory=list)
    stopped: str = "steps"
    gap: Gap | None = None
    seconds: float = 0.0


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
    reference = Trainer(original, _built(original, device, seed), device)
    other = Trainer(original, _nudged(reference.model, _built(original, device, seed), seed), device)
    model = _built(patched, device, seed)
    _copy_state(reference.model, model)
    candidate = Trainer(patched, model, device, scaler)
    runs, started, parted = Runs(), time.monotonic(), 0
    for step, batch in enumerate(itertools.islice(_batches(original, device), steps)):
        runs.original.append(reference.step(batch, seed + step))
        runs.other_seed.append(other.step(batch, seed + OTHER_SEED + step))
        runs.patched.append(candidate.step(batch, seed + step))
        report(step + 1)
        if not math.isfinite(runs.original[-1]):
            raise TuneError(f"the loss of the original is {runs.original[-1]} at step {step}, in FP32",
                            hint="amptune debug names the operation")  # fmt: skip
        if not math.isfinite(runs.patched[-1]):
            runs.stopped = "not finite"
            break
        if (step + 1) % CHECK_EVERY == 0 and step + 1 >= FEWEST:
            gap = measure_gap(runs.original, runs.patched, runs.other_seed, tolerance)
            parted = parted + 1 if gap.is_worse else 0
            if parted == 2:
                runs.stopped = "worse"
                break
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            runs.stopped = "time"
            break
    else:
        runs.stopped = "steps" if len(runs.original) == steps else "data"
    runs.seconds = time.monotonic() - started
    if len(runs.original) >= FEWEST and runs.stopped != "not finite":
        runs.gap = measure_gap(runs.original, runs.patched, runs.other_seed, tolerance)
    return runs, {"original": _evaluation(reference), "patched": _evaluation(candidate)}


def scaler_beside(patched: Path) -> ScalerConfig | None:
    """The loss scaler that tune wrote beside a patched file, if any."""
    import json

    path = patched.parent / "scaler.json"
    try:
        return ScalerConfig(**json.loads(path.read_bytes())["gradscaler"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(f"cannot read {path}: {error}", hint="it is what amptune tune writes; or remove it") from error


def _built(target: Target, device: Device, seed: int) -> nn.Module:
    seed_everything(seed)
    model = target.make_model().to(device.torch).train()
    run_lazy_layers(target, model, lambda: to_device(target.make_batch(), device.torch))
    return model


def _nudged(source: nn.Module, model: nn.Module, seed: int) -> nn.Module:
    """``model`` with the weights of ``source``, each moved a little."""
    _copy_state(source, model)
    seed_everything(seed + OTHER_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1 + NUDGE * torch.randn_like(parameter))
    return model


def _copy_state(source: nn.Module, model: nn.Module) -> None:
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise CaptureError(
            f"the two files are not one model: {text}", hint="give the file that the patch was made of"
        ) from error


def _batches(target: Target, device: Device) -> Iterator[Any]:
    if target.train_batches is None:
        batch = to_device(target.make_batch(), device.torch)
        return itertools.repeat(batch)
    return (to_device(batch, device.torch) for batch in target.train_batches())


def _evaluation(trainer: Trainer) -> float | None:
    if trainer.target.evaluate is None:
        return None
    with backend_flags(False):
        return float(trainer.target.evaluate(trainer.model))

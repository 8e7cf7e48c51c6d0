"""One model in training, and the loss of its weights in the original's FP32 forward."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from amptune.capture import Target
from amptune.capture.prepare import run_lazy_layers
from amptune.capture.usercode import place_of
from amptune.core.formats import Format
from amptune.core.plan import ScalerConfig
from amptune.errors import AmptuneError, CaptureError, WorkError
from amptune.tune.running.backwardplace import say_where
from amptune.tune.running.batches import to_device
from amptune.tune.running.device import Device
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.recipes import backend_flags
from amptune.tune.running.state import tensors_of
from amptune.tune.running.training import make_optimizer, seed_everything


class Trainer:
    """One model in training: a step gives its loss."""

    def __init__(self, target: Target, model: nn.Module, device: Device, scaler: ScalerConfig | None = None) -> None:
        self.target = target
        self.model = model
        self.optimizer = make_optimizer(target, model, device)
        config = scaler or ScalerConfig()
        self.scaler = torch.amp.GradScaler(device.torch.type, **config.to_json())
        # A patched file carries the TF32 flags that were measured; they are process-wide, so each step sets them.
        self._set_flags: Callable[[], object] | None = getattr(target.module, "set_backend_flags", None)

    def step(self, batch: Any, seed: int) -> float:
        """One training step; the loss is that of the weights before it.

        Raises:
            WorkError: the user's code raises.
        """
        with backend_flags(False), _raising(self.target):
            if self._set_flags is not None:
                self._set_flags()
            self.optimizer.zero_grad(set_to_none=True)
            seed_everything(seed)
            loss = self._loss(batch)
            try:
                self.scaler.scale(loss).backward()
            except Exception as error:
                say_where(error, lambda: self._loss(batch).backward())
                raise
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return float(loss.detach())

    def _loss(self, batch: Any) -> torch.Tensor:
        return self.target.loss(self.target.call(self.model, batch), batch)

    def evaluation(self) -> float | None:
        """What the user's ``evaluate`` says of the model, where there is one."""
        if self.target.evaluate is None:
            return None
        with backend_flags(False):
            return float(self.target.evaluate(self.model))


class Unpatched:
    """The original's FP32 forward at the weights of a patched model.

    A model that computes its own loss does so on the logits that it has: in 16 bits their rounding raises the loss of
    weights that are as good as any.
    """

    def __init__(self, target: Target, model: nn.Module) -> None:
        self._target = target
        self._model = model

    def loss(self, patched: nn.Module, batch: Any, seed: int) -> float:
        """The loss of one batch in train mode; ``seed`` is of what a forward draws.

        Raises:
            WorkError: the user's code raises.
        """
        self._copy(patched)
        return self._loss(batch, seed)

    def rounded(self, model: nn.Module, batch: Any, seed: int, relative: float) -> float:
        """The same of weights with normal noise of a relative size; NaN where they are to be exact, as a covariance."""
        self._copy(model)
        seed_everything(seed)
        with torch.no_grad():
            for parameter in self._model.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(1 + relative * torch.randn_like(parameter))
        try:
            return self._loss(batch, seed)
        except WorkError:
            return math.nan

    def _copy(self, patched: nn.Module) -> None:
        own = tensors_of(self._model)
        with torch.no_grad():
            for name, tensor in tensors_of(patched).items():
                if name in own and own[name].shape == tensor.shape:  # a buffer may grow with what is seen
                    own[name].copy_(tensor)

    def _loss(self, batch: Any, seed: int) -> float:
        # With gradients, as in a step: a forward may take some itself.
        with backend_flags(False), _raising(self._target):
            seed_everything(seed)
            return float(self._target.loss(self._target.call(self._model, batch), batch).detach())


def rounding_of(model: nn.Module) -> float:
    """Relative half-ulp of the coarsest format of a patched model: FP8 where a layer is in it, else BF16."""
    kinds = {base.__name__.lower() for module in model.modules() for base in type(module).__mro__}
    has_fp8 = any("fp8" in kind or "float8" in kind for kind in kinds)
    return (Format.FP8_E4M3 if has_fp8 else Format.BF16).epsilon / 2


def built(target: Target, device: Device, seed: int) -> nn.Module:
    """The target's model on the device, in train mode, with weights from ``seed``."""
    seed_everything(seed)
    model = target.make_model().to(device.torch).train()
    run_lazy_layers(target, model, lambda: to_device(target.make_batch(), device.torch))
    return model


def copy_state(source: nn.Module, model: nn.Module) -> None:
    """Give ``model`` the weights of ``source``.

    Raises:
        CaptureError: they are not one model.
    """
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        text = _difference(source, model) or " ".join(str(error).split())
        raise CaptureError(
            f"the two files are not one model: {text}", hint="give the file that the patch was made of"
        ) from error


def _difference(one: nn.Module, other: nn.Module) -> str:
    """The first tensor of the state that only one of the two has, or that has another shape there."""
    ours, theirs = one.state_dict(), other.state_dict()
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            return f"only one of them has {name}"
        shapes = ["x".join(map(str, getattr(state[name], "shape", ()))) for state in (ours, theirs)]
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0] or 'a number'} in one, {shapes[1] or 'a number'} in the other"
    return ""


@contextlib.contextmanager
def _raising(target: Target) -> Iterator[None]:
    """What a user's step raises, as a WorkError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise WorkError("out of memory: verify holds four models", hint="use a smaller batch") from None
    except AmptuneError:
        raise
    except Exception as error:
        reason = plain_reason(error, place_of(error))
        raise WorkError(f"{target.spec.text}: a training step failed: {reason}") from error

"""The recipes of ``--params bf16``: parameters in BF16 while a run lasts, and the model as it was afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

from amptune.core.formats import Format
from amptune.core.plan import BF16_MASTER
from amptune.errors import UsageError
from amptune.runtime import apply_plan, master_weights, masters_of, undo_plan
from amptune.tune.running.device import Device


@dataclasses.dataclass
class Lowered:
    """Parameters in BF16: the run's optimizer, which has the FP32 copies where there are any."""

    params: str | None
    optimizer: torch.optim.Optimizer | None = None

    def stepped_by(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer as the recipe uses it."""
        self.optimizer = master_weights(optimizer) if self.params == BF16_MASTER else optimizer
        return self.optimizer


@contextlib.contextmanager
def parameters_in(model: nn.Module, params: str | None) -> Iterator[Lowered]:
    """``model`` as ``params`` (one of ``core.plan.PARAMS``, None for no change) has it, in place.

    On leaving, every parameter and buffer has its dtype again; parameters have the values of their FP32 copies, else of
    their BF16 selves, which FP32 holds exactly. Buffers that are no part of the state are as they were.
    """
    lowered = Lowered(params)
    if params is None:
        yield lowered
        return
    dtypes = [(parameter, parameter.dtype) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, name not in module._non_persistent_buffers_set)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    apply_plan(model, {}, parameters=Format.BF16.label)
    try:
        yield lowered
    finally:
        undo_plan(model)
        model.zero_grad(set_to_none=True)
        pairs = masters_of(lowered.optimizer) if lowered.optimizer else []
        masters = {id(parameter): raised for parameter, raised in pairs}
        for parameter, dtype in dtypes:
            parameter.data = masters.get(id(parameter), parameter.data).to(dtype)
        for module, name, buffer, is_state in buffers:
            if is_state:
                buffer.copy_(module.get_buffer(name))
            module._buffers[name] = buffer
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()


def check_params(params: str | None, device: Device) -> None:
    """Raise UsageError where parameters in BF16 are asked for on a device that does not compute in it."""
    if params is not None and Format.BF16 not in device.formats():
        name = device.describe()["gpu"]
        raise UsageError(f"--params {params}: {name} ({device.name}) does not compute in BF16",
                         hint="leave it out, or choose another --device")  # fmt: skip

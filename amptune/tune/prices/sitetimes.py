"""Times one site by itself: forward, input gradient and weight gradient of a module in a choice.

On a GPU the work is queued behind a head start, so that what is timed is the GPU and not how fast Python launches
kernels, and the cache is flushed before each part: in a training step a layer finds its tensors in memory.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from amptune.capture.fakes import map_tensors
from amptune.core.choice import TF32, Choice
from amptune.core.formats import Format
from amptune.core.tables import SiteCost
from amptune.runtime import apply_plan
from amptune.tune.prices.functioncalls import FunctionModule
from amptune.tune.running.device import Device

REPEATS = 7
FEWEST_REPEATS = 3
WARMUPS = 3
FAR_BEYOND, FAR_BEYOND_MS = 10.0, 300.0
"""A run on a CPU that takes this many times what it may, and so long, is the last: setting up and noise take less."""
REPEATS_MS = 60.0
"""Milliseconds that all repeats of a site may take, unless the fewest of them take longer: long ones are much alike."""
HEAD_START_CYCLES = 60_000_000
"""GPU clock cycles, about 30 ms: longer than Python takes to queue all repeats of a site."""
CYCLES_PER_MS = 2_000_000
"""Of a GPU's clock: of faster ones a head start is shorter, by less than SLACK makes it longer."""
SLACK = 1.5
"""What Python takes to queue repeats may be this many times what it took before."""


@dataclasses.dataclass(frozen=True)
class FloatTensor:
    """Stands for a floating tensor argument of this shape.

    Attributes:
        order: its dimensions from the slowest to the fastest in memory, where that is not their own order: models
            that permute images to put the channels last pass them on so, and kernels depend on it.
        is_held: one that the model has in FP32, whatever arrives beside it.
    """

    shape: tuple[int, ...]
    requires_grad: bool
    order: tuple[int, ...] = ()
    is_held: bool = False

    @classmethod
    def like(cls, tensor: torch.Tensor) -> FloatTensor:
        """What stands for a tensor; one that has gaps in memory, or shares it, counts as in its own order."""
        strides = tensor.stride()
        order = tuple(sorted(range(tensor.ndim), key=lambda dim: (-strides[dim], dim)))
        is_dense = tensor.permute(order).is_contiguous()
        is_own = order == tuple(range(tensor.ndim))  # strides tell of images of 1 x 1 too, is_contiguous does not
        return cls(tuple(tensor.shape), tensor.requires_grad, order if is_dense and not is_own else ())

    def random(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A tensor of this shape and order."""
        if not self.order:
            return torch.randn(self.shape, device=device).to(dtype)
        made = torch.randn([self.shape[dim] for dim in self.order], device=device).to(dtype)
        return made.permute(sorted(range(len(self.order)), key=self.order.__getitem__))


@dataclasses.dataclass(frozen=True)
class Call:
    """Arguments of one call of a leaf module or a function, with tensors of floats replaced by their shapes to save
    memory."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a site.

    Attributes:
        choice: format and scaling.
        pad: multiple for output features, or channels of a convolution, 0 for none.
        pad_in: the same for input features.
        channels_last: memory format of images and of convolution weights.
    """

    choice: Choice
    pad: int = 0
    channels_last: bool = False
    pad_in: int = 0


def time_site(module: nn.Module, call: Call, variant: Variant, device: Device, limit: float = math.inf) -> SiteCost:
    """Medians in milliseconds, with the interquartile range of the whole as spread.

    Infinite where the variant has no kernel on this device, or where a call takes longer than ``limit``.
    """
    holder = nn.Sequential(copy.deepcopy(module))
    choice = variant.choice
    # TF32 is a flag of the process, and is set around this where it is what FP32 means.
    label = Format.FP32.label if choice == TF32 else choice.format.label
    entry = {"format": label, "scaling": choice.scaling, "pad": variant.pad, "pad_in": variant.pad_in}
    if isinstance(module, FunctionModule):
        entry["how"] = "autocast"
    try:
        apply_plan(holder, {"0": entry}, channels_last=variant.channels_last)
        cost = _Timer(holder[0], _filled(call, variant, device), device).cost(limit)
    except Exception:  # the layer's code may be the user's
        cost = SiteCost(math.inf)  # a legal answer of the table: it cannot run in this variant
    return dataclasses.replace(cost, pad=variant.pad, pad_in=variant.pad_in)


class _Timer:
    """Runs forward and backward of a module and keeps the times of each part."""

    def __init__(self, module: nn.Module, call: Call, device: Device) -> None:
        self.module, self.call, self.device = module, call, device
        self.inputs = [t for t in _tensors([*call.args, *call.kwargs.values()]) if t.requires_grad]
        self.weights = [p for p in module.parameters() if p.requires_grad]
        self.cache = torch.empty(device.flush_bytes(), dtype=torch.int8, device=device.torch)
        output = self._forward()
        self.gradient = torch.randn_like(output) if output is not None and output.requires_grad else None

    def cost(self, limit: float) -> SiteCost:
        """Medians over the repeats; infinite when a warm run takes longer than ``limit`` milliseconds."""
        warm: list[float] = []
        while len(warm) < WARMUPS:
            warm.append(self._waited())
            is_far = warm[-1] > max(FAR_BEYOND * limit, FAR_BEYOND_MS)
            if is_far and not self.device.is_cuda:  # a GPU's first run may compile something
                return SiteCost(math.inf)
        # The first run sets things up; one slow run among the others may be the machine's noise.
        fastest = min(warm[1:])
        if fastest > limit:
            return SiteCost(math.inf)
        repeats = min(REPEATS, max(FEWEST_REPEATS, int(REPEATS_MS / fastest)))
        # Python queues a run in less time than the run takes from beginning to end.
        self.device.head_start(min(HEAD_START_CYCLES, int(SLACK * repeats * fastest * CYCLES_PER_MS)))
        marks = [self._once() for _ in range(repeats)]
        self.device.synchronize()
        times = [[self.device.elapsed(a, b) for a, b in pairs] for pairs in marks]
        forward, both, alone = (statistics.median(column) for column in zip(*times, strict=True))
        whole = [one[0] + one[1] for one in times]
        low, _, high = statistics.quantiles(whole, n=4, method="inclusive")
        input_grad = min(alone, both)
        return SiteCost(forward, input_grad, both - input_grad, spread=high - low)

    def _waited(self) -> float:
        begin = time.perf_counter()
        self._once()
        self.device.synchronize()
        return (time.perf_counter() - begin) * 1e3

    def _once(self) -> list[tuple[Any, Any]]:
        """Marks around forward, around the whole backward, and around the input gradient alone."""
        forward = self._marked(self._forward)
        output = self._output
        both = self._marked(lambda: self._backward(output, [*self.inputs, *self.weights]))
        if not self.inputs:
            alone = (both[0], both[0])
        elif not self.weights:
            alone = both
        else:
            output = self._forward()
            alone = self._marked(lambda: self._backward(output, self.inputs))
        return [forward, both, alone]

    def _marked(self, function: Any) -> tuple[Any, Any]:
        self.cache.zero_()
        start = self.device.mark()
        self._output = function()
        return start, self.device.mark()

    def _forward(self) -> torch.Tensor | None:
        found = next(_tensors([self.module(*self.call.args, **self.call.kwargs)]), None)
        self._output = found
        return found

    def _backward(self, output: torch.Tensor | None, sources: Sequence[torch.Tensor]) -> None:
        if output is not None and self.gradient is not None and sources:
            torch.autograd.grad(output, sources, self.gradient, allow_unused=True)


def _filled(call: Call, variant: Variant, device: Device) -> Call:
    """The call with random tensors in the format that arrives where the neighbours have the same choice."""
    dtype = getattr(torch, variant.choice.output_format.torch_name)

    def fill(value: FloatTensor) -> torch.Tensor:
        made = value.random(torch.float32 if value.is_held else dtype, device.torch)
        if variant.channels_last and len(value.shape) == 4:
            made = made.to(memory_format=torch.channels_last)  # by its strides too where it is 1 x 1
        return made.requires_grad_(value.requires_grad)

    return Call(map_tensors(call.args, fill, FloatTensor), map_tensors(call.kwargs, fill, FloatTensor))


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, tuple | list):
            yield from _tensors(value)

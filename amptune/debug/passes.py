"""One training step's forward and backward, run and watched in the format asked about, or in FP32 as its twin."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from amptune import runtime
from amptune.capture.modulestack import ModuleStack
from amptune.capture.usercode import UserCodeError, user_code
from amptune.core.formats import Format
from amptune.debug.emulate import Emulation, emulating
from amptune.debug.record import Op, PassRecorder, Rewrite, Spot, run_backward
from amptune.tune.running.recipes import Candidate, autocast_region, backend_flags
from amptune.tune.running.state import dense
from amptune.tune.running.training import Workbench, seed_everything

_HALF = (torch.float16, torch.bfloat16)
FP32 = Candidate("fp32")


@dataclasses.dataclass
class Pass:
    """What one forward and backward did.

    Attributes:
        ops: in the order in which they ran.
        loss: unscaled; NaN where the forward raised.
        scale: what the loss was multiplied by before the backward.
        error: what the user's code raised, and at which op.
        in_loss: whether it was the loss that raised it.
        gradients_finite: whether every ``.grad`` is.
    """

    ops: list[Op]
    loss: float
    scale: float
    error: UserCodeError | None = None
    error_op: Op | None = None
    in_loss: bool = False
    gradients_finite: bool = True

    @property
    def finite(self) -> bool:
        """Whether it ran, and the loss and all gradients are finite."""
        return self.error is None and abs(self.loss) < float("inf") and self.gradients_finite


@dataclasses.dataclass
class Stage:
    """What every pass over one batch shares.

    Attributes:
        bench: the model at its current weights.
        candidate: the recipe whose formats are asked about.
        number_format: the format that is asked about.
        emulation: how the CPU computes in it.
    """

    bench: Workbench
    candidate: Candidate
    number_format: Format
    emulation: Emulation

    def run(
        self,
        batch: Any,
        seed: int,
        *,
        scale: float = 1.0,
        detail: bool = False,
        twin: bool = False,
        rewrites: tuple[Rewrite, ...] = (),
        candidate: Candidate | None = None,
    ) -> Pass:
        """A forward and backward; gradients are left in ``.grad``, buffers as the forward leaves them.

        Args:
            batch: on the device.
            seed: of the random numbers drawn inside, so that passes can be compared.
            scale: what the loss is multiplied by.
            detail: measure what goes into each op too, and what the format would lose.
            twin: everything in FP32, the model's own casts and autocast regions included.
            rewrites: changes to single calls.
            candidate: another recipe than the stage's.
        """
        bench = self.bench
        chosen = FP32 if twin else candidate or self.candidate
        stack = ModuleStack(bench.model)
        first: tuple[Rewrite, ...] = (in_fp32,) if twin else ()
        recorder = PassRecorder(
            stack, detail=detail, number_format=self.number_format, rewrites=(*first, *rewrites)
        )  # fmt: skip
        bench.model.zero_grad(set_to_none=True)
        seed_everything(seed)
        made = Pass(recorder.ops, float("nan"), scale)
        try:
            with contextlib.ExitStack() as around:
                if twin:
                    around.enter_context(without_autocast())
                    around.enter_context(stored_in_fp32(bench.model))
                around.enter_context(backend_flags(False))
                around.enter_context(emulating(bench.device.torch, self.emulation))
                around.enter_context(user_code())
                self._forward_and_backward(recorder, chosen, batch, scale, made)
                made.gradients_finite = _gradients_finite(bench.model)
        except UserCodeError as error:
            made.error, made.error_op, made.in_loss = error, recorder.raised, recorder.in_loss
            if recorder.raised is not None:
                recorder.raised.index = recorder.raised.call = len(recorder.ops)
                recorder.ops.append(recorder.raised)
        return made

    def _forward_and_backward(
        self, recorder: PassRecorder, candidate: Candidate, batch: Any, scale: float, made: Pass
    ) -> None:
        bench = self.bench
        with recorder.watch():
            with autocast_region(candidate, bench.device):
                output = bench.target.call(bench.model, batch)
                recorder.in_loss = True
                loss = bench.target.loss(output, batch)
                recorder.in_loss = False
            with torch._C.DisableTorchFunction():  # what we do is no call of the user's
                made.loss = float(loss.detach())
                scaled = loss * scale
            with recorder.backward():
                run_backward(scaled)


class Preserved:
    """Buffers (running statistics) and gradients are as they were when this is left, unless they are to be kept."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._kept = False

    def keep(self) -> None:
        """Leave what the pass made: it was a training step."""
        self._kept = True

    def __enter__(self) -> Preserved:
        model = self._bench.model
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return self

    def __exit__(self, *error: object) -> None:
        if self._kept:
            return
        with torch.no_grad():
            for name, buffer in self._bench.model.named_buffers():
                buffer.copy_(self._buffers[name])
        for name, parameter in self._bench.model.named_parameters():
            parameter.grad = self._gradients[name]


def twins(low: Pass, high: Pass) -> Callable[[Op], Op | None]:
    """For each op of ``low`` the same one of ``high``, where there is one.

    Both passes run the same program, so their forwards differ only where the user's code asks for dtypes.
    """
    forward_low = [op for op in low.ops if op.phase == "forward"]
    forward_high = [op for op in high.ops if op.phase == "forward"]
    pairs: dict[int, Op] = {}
    for start, other, size in _matching_blocks(forward_low, forward_high):
        pairs |= {forward_low[start + i].index: forward_high[other + i] for i in range(size)}
    backward: dict[tuple[int, str], list[Op]] = {}
    for op in high.ops:
        if op.phase == "backward" and op.call is not None:
            backward.setdefault((op.call, op.op), []).append(op)
    taken: dict[tuple[int, str], int] = {}
    for op in low.ops:
        owner = pairs.get(op.call) if op.phase == "backward" and op.call is not None else None
        if owner is None:
            continue
        key = (owner.index, op.op)
        position = taken.get(key, 0)
        taken[key] = position + 1
        if position < len(backward.get(key, ())):
            pairs[op.index] = backward[key][position]
    return lambda op: pairs.get(op.index)


def _matching_blocks(low: list[Op], high: list[Op]) -> list[tuple[int, int, int]]:
    keys, others = [op.key for op in low], [op.key for op in high]
    if keys == others:
        return [(0, 0, len(keys))]
    numbered: dict[Any, int] = {}
    a, b = ([numbered.setdefault(key, len(numbered)) for key in found] for found in (keys, others))
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in blocks]


def in_fp32(spot: Spot, func: Callable[..., Any]) -> Callable[..., Any]:
    """The rewrite that makes the FP32 twin: 16-bit tensors are raised, and casts to 16 bits are to FP32."""

    def run(*args: Any, **kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("half", "bfloat16"):
            return args[0].float()
        args, kwargs = _raised((args, kwargs))
        return func(*args, **kwargs)

    return run


def _raised(value: Any) -> Any:
    args, kwargs = runtime._map_tensors(_upcast, value)
    return tuple(map(_no_half, args)), {name: _no_half(item) for name, item in kwargs.items()}


def _no_half(argument: Any) -> Any:
    return torch.float32 if isinstance(argument, torch.dtype) and argument in _HALF else argument


def _upcast(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """The model's own autocast regions switched off."""
    region_class: Any = autocast
    kept = region_class.__init__

    def init(
        region: autocast, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
    ) -> None:
        kept(region, device_type, dtype, False, cache_enabled)

    region_class.__init__ = init
    try:
        yield
    finally:
        region_class.__init__ = kept


@contextlib.contextmanager
def stored_in_fp32(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers that the user keeps in 16 bits are in FP32 inside, and so are their gradients."""
    low = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in _HALF]
    kept = [tensor.data for tensor in low]
    for tensor in low:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, data in zip(low, kept, strict=True):
            tensor.grad = None  # of another dtype than the parameter is again
            tensor.data = data


def _gradients_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(dense(p.grad)).all()) for p in model.parameters() if p.grad is not None)

"""One forward and backward, watched: each call of a torch function, and each aten op of the backward, with its numbers.

Two passes over the same batch, one in the format asked about and one in FP32, make the same calls in the same order,
so that each op of the one has a twin in the other.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amptune import runtime
from amptune.capture.calls import CallRecorder
from amptune.capture.functions import FunctionCall
from amptune.capture.modulestack import ModuleStack
from amptune.capture.names import op_name, written_by
from amptune.capture.where import Place, current_place
from amptune.core.formats import Format
from amptune.core.graph import LOSS
from amptune.core.ops import Family, op_named
from amptune.debug.magnitude import Magnitude, measure

Phase = Literal["forward", "backward"]
_CASTS = frozenset({"_to_copy", "detach", "alias", "t", "view", "_unsafe_view", "expand", "transpose", "permute"})


@dataclasses.dataclass(frozen=True)
class Spot:
    """A place in the source that is one to whoever edits it.

    Attributes:
        op: its name in the op table.
        place: its line.
        role: of a layer; one line may call many of them, which are not alike. Of another op empty: whoever edits its
            line edits it for all modules that run it.
        module: the role of the module that holds the op, for messages.
    """

    op: str
    place: Place
    role: str
    module: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass
class Op:
    """One op that ran.

    Attributes:
        index: its place in ``Pass.ops``.
        call: index of the forward op that it is, or that it differentiates; None where unknown.
        phase: forward, or backward of the loss.
        op: name in the op table; in the backward, of the aten op.
        path: the leaf module that it is the work of, else the module whose forward makes it; LOSS in the loss.
        leaf: whether ``path`` is a leaf module.
        place: where in the source it is called; in the backward, where the op that it differentiates is.
        inputs, outputs: their floating tensors. Inputs are measured in a detailed pass alone.
        producers: for each input the index of the op that made it, if known.
        numbers: literal arguments, by name or position.
        function: what was called.
    """

    index: int
    call: int | None
    phase: Phase
    op: str
    path: str
    leaf: bool
    place: Place
    inputs: tuple[Magnitude, ...] = ()
    outputs: tuple[Magnitude, ...] = ()
    producers: tuple[int | None, ...] = ()
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    function: Callable[..., Any] | None = None

    @property
    def spot(self) -> Spot:
        """Where a change to the source would go."""
        return _spot(self.op, self.place, self.path, self.leaf)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same op of two passes."""
        return (self.phase, self.call if self.phase == "backward" else None, self.op, self.path, self.place)


class Rewrite(Protocol):
    """What a change does to a call: gives the call to make in its place, or None to leave it."""

    def __call__(self, spot: Spot, func: Callable[..., Any]) -> Callable[..., Any] | None:
        """The function to call instead of ``func`` at ``spot``."""


class PassRecorder(CallRecorder):
    """Watches a forward, and with ``backward`` the backward behind it.

    Args:
        stack: follows the modules.
        detail: measure inputs and losses as well.
        number_format: the format whose losses are counted.
        rewrites: changes to the calls.
    """

    def __init__(
        self, stack: ModuleStack, *, detail: bool, number_format: Format, rewrites: tuple[Rewrite, ...] = ()
    ) -> None:
        super().__init__(stack)
        self.ops: list[Op] = []
        self.detail = detail
        self.number_format = number_format if detail else None
        self.rewrites = rewrites
        self.raised: Op | None = None
        self._starts: list[int] = []  # autograd's sequence number when ops[_owners[i]] began
        self._owners: list[int] = []
        self._maker: dict[int, int] = {}
        self._known: dict[int, tuple[int, Magnitude]] = {}
        self._kept: list[torch.Tensor] = []  # an id is good only as long as its tensor lives
        self.functions.started = self._custom_started

    def on_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, changed where a rewrite says so, and note what came of it."""
        holder, leaf = self.stack.holder, self.stack.leaf
        op = op_name(func, args)
        place = leaf.place if leaf else current_place(3)
        path = leaf.path if leaf else LOSS if self.in_loss else holder.path if holder else ""
        spot = _spot(op, place, path, leaf is not None)
        run = func
        for rewrite in self.rewrites:
            run = rewrite(spot, run) or run
        if torch._C._current_autograd_node() is not None:  # a checkpointed region again, or a custom backward
            return run(*args, **kwargs)
        known = Op(len(self.ops), len(self.ops), "forward", op, path, leaf is not None, place, function=func)
        if self.detail:
            self._note_inputs(known, func, args, kwargs)
        start = torch._C._autograd._get_sequence_nr()
        self.raised = known
        result = run(*args, **kwargs)
        self.raised = None
        self._note_outputs(known, start, result, written_by(func, args, kwargs))
        return result

    def _note_inputs(self, op: Op, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = _floating((args, kwargs))
        op.inputs = tuple(map(self._measured_once, tensors))
        op.producers = tuple(self._maker.get(id(tensor)) for tensor in tensors)
        op.numbers = _numbers(func, args, kwargs)

    def _note_outputs(self, op: Op, start: int, result: Any, written: Sequence[torch.Tensor]) -> None:
        op.index = op.call = len(self.ops)
        outputs = _floating(result) or [each for each in written if _is_measurable(each)]
        if not outputs:
            return
        if op_named(op.op).family is Family.VIEW and not self.detail:
            op.outputs = ()
        else:
            op.outputs = tuple(measure(tensor, self.number_format) for tensor in outputs)
        self.ops.append(op)
        self._own(start, op.index)
        if self.detail:
            for tensor, magnitude in zip(outputs, op.outputs, strict=True):
                self._maker[id(tensor)] = op.index
                self._known[id(tensor)] = tensor._version, magnitude
                self._kept.append(tensor)

    def _measured_once(self, tensor: torch.Tensor) -> Magnitude:
        """The magnitude of an input; that of an earlier output, which is kept, unless it was written to since."""
        known = self._known.get(id(tensor))
        if known is not None and known[0] == tensor._version:
            return known[1]
        return measure(tensor, self.number_format)

    def _custom_started(self, custom: FunctionCall, args: tuple[Any, ...]) -> None:
        """The autograd node of a custom function is made before its forward runs."""
        holder = self.stack.holder
        path = LOSS if self.in_loss else holder.path if holder else ""
        op = Op(len(self.ops), len(self.ops), "forward", custom.name, path, False, custom.place)
        self.ops.append(op)
        self._own(torch._C._autograd._get_sequence_nr(), op.index)

    def _own(self, start: int, index: int) -> None:
        self._starts.append(start)
        self._owners.append(index)

    def owner_of(self, sequence: int) -> Op | None:
        """The forward op during which autograd made the node with this number."""
        found = bisect.bisect_right(self._starts, sequence) - 1
        return self.ops[self._owners[found]] if found >= 0 else None

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Watch the backward that runs inside."""
        with _Backward(self):
            yield

    def note_backward(self, name: str, inputs: list[Magnitude], result: Any, within: CodeType) -> None:
        """Note one aten op of the backward."""
        node = torch._C._current_autograd_node()
        owner = self.owner_of(node._sequence_nr()) if node is not None else None
        own = current_place(3, within)  # a backward that the user wrote
        place = own if own.reader else owner.place if owner else Place(None, None)
        path, leaf = (owner.path, owner.leaf) if owner else ("", False)
        op = Op(len(self.ops), owner.index if owner else None, "backward", name, path, leaf, place, tuple(inputs))
        op.outputs = tuple(_measured(result, self.number_format))
        op.function = owner.function if owner else None
        self.ops.append(op)


class _Backward(TorchDispatchMode):
    def __init__(self, recorder: PassRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self._recorder
        if torch._C._current_autograd_node() is None or recorder.stack.calls:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        known = recorder.detail and name not in _CASTS
        inputs = _measured((args, kwargs), recorder.number_format) if known else []
        result = func(*args, **kwargs)
        if name == "_to_copy" or name not in _CASTS:
            if name == "_to_copy" and recorder.detail:
                inputs = _measured(args, recorder.number_format)
            recorder.note_backward(name, inputs, result, run_backward.__code__)
        return result


def _measured(value: Any, number_format: Format | None) -> list[Magnitude]:
    """The numbers of the tensors in ``value``; what measuring calls is not the model's, and goes past the recorder."""
    with torch._C.DisableTorchFunction():
        return [measure(tensor, number_format) for tensor in _floating(value)]


def run_backward(loss: torch.Tensor) -> None:
    """``loss.backward()``, in a frame of ours that ends the search for the user's code."""
    # Not through torch.autograd.backward: a torch function mode is switched off inside it, and with it the changes to
    # what a checkpointed region computes again.
    with torch._C.DisableTorchFunction():
        gradient = torch.ones_like(loss)
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def role_of(path: str, leaf: bool = False) -> str:
    """The path with the numbers of repeated blocks left out: ``blocks.*.fc1``.

    The last number of a layer stays: one line may call many layers of a list, which are not alike.
    """
    *outer, last = path.split(".")
    return ".".join("*" if part.isdigit() else part for part in outer + ([] if leaf else [last])) + (
        f"{'.' if outer else ''}{last}" if leaf else ""
    )


def _spot(op: str, place: Place, path: str, leaf: bool) -> Spot:
    role = role_of(path, leaf)
    is_line = not leaf and (place.origin or place.reader) is not None
    return Spot(op, place, "" if is_line else role, role)


def _floating(value: Any) -> list[torch.Tensor]:
    return [tensor for tensor in runtime.tensors_in(value) if _is_measurable(tensor)]


def _is_measurable(tensor: torch.Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.device.type != "meta"


def _numbers(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, float]:
    """Literal numbers among the arguments, and the ``eps`` that a function takes by default."""
    found = {str(index): float(value) for index, value in enumerate(args) if _is_number(value)}
    found |= {name: float(value) for name, value in kwargs.items() if _is_number(value)}
    if inspect.isfunction(func) and "eps" not in found:
        with contextlib.suppress(ValueError):  # a Python wrapper around a builtin has no signature
            default = inspect.signature(func).parameters.get("eps")
            if default is not None and _is_number(default.default):
                found["eps"] = float(default.default)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

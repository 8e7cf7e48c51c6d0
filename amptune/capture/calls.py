"""The calls of torch functions that a forward makes: what every frontend records in the same way."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from amptune.capture.attrs import named_arguments, op_attrs
from amptune.capture.autocast import AutocastRegions
from amptune.capture.casts import cast_attrs
from amptune.capture.cost import gemms_of
from amptune.capture.dtypereads import DtypeReads
from amptune.capture.functions import CHECKPOINTS, FunctionCall, FunctionCalls
from amptune.capture.modulestack import ModuleCall, ModuleStack
from amptune.capture.names import op_name, spelling_of
from amptune.capture.target import tensors_in
from amptune.capture.where import Place, Trail, current_place, current_trail
from amptune.core.graph import LOSS, Gemm

_DROPOUTS = {"dropout", "alpha_dropout"}


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One outermost call of a torch function.

    Attributes:
        number: its place in the run, from 1.
        op: its name in the op table.
        place: where in the source.
        trail: the lines that led there, the innermost first.
        holder: path of the module whose forward makes it (``loss_fn`` in the loss).
        holder_type: class of that module.
        leaf: the leaf module call that it belongs to, if any.
        autocast: dtype of the model's own autocast region that it runs in; False in one that switches autocast off;
            None outside.
        attrs: its literal arguments, see :func:`amptune.capture.attrs.op_attrs`.
        gemms: the matrix products that it runs.
        does_nothing: whether it gives back its input: dropout that is switched off.
        custom: the custom autograd function that it belongs to, if any.
        dtype_of: number of the call whose result gave the dtype that this one is given (``x.to(y.dtype)``), 0 for a
            parameter, a buffer or a tensor of the batch; None where that is not known.
        mapped: whether it runs under ``torch.func.vmap``, which shows the code one sample of many.
        recomputed: whether it runs again in the backward, under ``torch.utils.checkpoint``.
        function: what was called, ``2 / x`` and ``x / 2`` being one op; None where no torch function was.
    """

    number: int
    op: str
    place: Place
    holder: str
    holder_type: str
    leaf: ModuleCall | None
    autocast: str | bool | None
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gemms: tuple[Gemm, ...] = ()
    does_nothing: bool = False
    custom: FunctionCall | None = None
    dtype_of: int | None = None
    mapped: bool = False
    recomputed: bool = False
    function: Callable[..., Any] | None = None
    trail: Trail = ()


class CallRecorder(TorchFunctionMode):
    """Sees each torch function call of a forward once, at the level at which people write it.

    ``on_call`` runs the function, and says whether the call made or changed a tensor; other calls are forgotten.
    """

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.stack = stack
        self.calls: list[Call] = []
        self.regions = AutocastRegions()
        self.functions = FunctionCalls(stack)
        self.in_loss = False
        self.has_gradient = False
        self._dtypes = DtypeReads()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record the calls made inside."""
        # A compiled part of the model runs as it is written: the compiler cannot work under a recorder.
        eager = torch.compiler.set_stance("force_eager")
        with eager, _flex_attention_anywhere(), self.stack.watch(), self.regions.watch(), self.functions.watch(), self:
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if spelling_of(func) == "dtype":
            self._dtypes.read(args[0])
        return self.on_call(func, args, kwargs or {})

    def on_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call; a frontend overrides this to keep what it needs of it."""
        return func(*args, **kwargs)

    def call_of(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Call:
        """Describe a call that has just run, and count it."""
        holder, leaf = self.stack.holder, self.stack.leaf
        self._mark_custom()
        op = op_name(func, args)
        named = named_arguments(func, args, kwargs)
        place = leaf.place if leaf else current_place(4)
        if place.reader is None and holder is not None:
            place = Place(place.origin, holder.place.reader)
        trail = current_trail(4)
        call = Call(
            number=len(self.calls) + 1,
            op=op,
            function=func,
            place=place,
            trail=trail,
            dtype_of=None if leaf else self._dtypes.followed(place.origin, (*args, *kwargs.values()), trail),
            holder=LOSS if self.in_loss else (holder.path if holder else ""),
            holder_type="" if self.in_loss or not holder else holder.type_name,
            leaf=leaf,
            autocast=self.regions.current,
            attrs={} if leaf else op_attrs(op, named, args) | cast_attrs(func, args, kwargs, result),
            gemms=gemms_of(op, args, kwargs, result),
            custom=self.functions.outermost,
            does_nothing=op in _DROPOUTS and _is_off(named),
            recomputed=self.functions.in_checkpoint or _is_hooked_by_checkpoint(),
            mapped=any(is_mapped(each) for each in tensors_in((args, kwargs))),
        )
        self.calls.append(call)
        self._dtypes.made(result, call.number)
        return call

    def _mark_custom(self) -> None:
        """A module that runs inside a custom function makes the function a mere wrapper."""
        custom, holder = self.functions.outermost, self.stack.holder
        if custom is not None and holder is not None and holder.number > custom.modules_before:
            custom.holds_modules = True


def _is_hooked_by_checkpoint() -> bool:
    """Whether what autograd keeps goes to a checkpoint of the kind that is not re-entrant."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == CHECKPOINTS


@contextlib.contextmanager
def _flex_attention_anywhere() -> Iterator[None]:
    """FlexAttention refuses what has a gradient on a CPU, since it has no backward there; a capture runs none."""
    module = sys.modules.get("torch.nn.attention.flex_attention")
    check = getattr(module, "_validate_device", None)
    if check is None:
        yield
        return
    vars(module)["_validate_device"] = lambda *tensors: None
    try:
        yield
    finally:
        vars(module)["_validate_device"] = check


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for many samples, of which the code under ``torch.func.vmap`` sees one."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def _is_off(dropout: Mapping[str, Any]) -> bool:
    """Whether dropout with these arguments drops nothing."""
    return dropout.get("p") == 0 or not dropout.get("training", dropout.get("train", True))

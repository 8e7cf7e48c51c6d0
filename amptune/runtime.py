"""Puts a precision plan in force on a model, with torch alone.

This file stands beside a patched model as ``amptune_runtime.py``; nothing else of amptune is needed to run that model.

What a plan does to a model:

* A planned Linear, convolution, norm or embedding changes its class to one that casts its input and its weight to the
  planned format in ``forward``. Parameters stay as they are (FP32 master weights), so the optimizer, checkpoints and
  ``state_dict`` do not change. The output is in the planned format.
* A Linear in FP8 multiplies 8-bit operands, which it scales to fill the range of their format, in forward and backward.
  Its output is in bfloat16.
* A module that cannot be split that way (MultiheadAttention, RNNs, anything unknown) runs in its own autocast region.
* A module without parameters (Softmax, GELU, pooling) that the plan names computes in the planned format and gives its
  result back in the dtype of its input; one that the plan does not name follows its input.
* A parameter or buffer that a module holds beside its layers (position embeddings, layer scale, experts' weights)
  reads as a cast of itself in that module's ``forward``. In FP32 it would raise all that it is added to. So does, with
  ``how="read"``, a weight that it reads past the layer that has it (``x @ self.embed.weight.T``). With
  ``how="late"`` what the forward makes of it (``self.log_scale.exp()``) is in FP32, and is cast where it meets 16 bits.
* ``fp32(F.softmax)(x, -1)`` does the same to a function that is called in a ``forward``.

Apply the plan before ``torch.compile``, ``DistributedDataParallel``, ``fully_shard`` and before the optimizer takes its
first step. ``AppliedPlan.undo()`` gives the model back bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import dataclasses
import difflib
import fnmatch
import functools
import inspect
import operator
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PINS",
    "AppliedPlan",
    "__version__",
    "apply_plan",
    "base_class",
    "fp32",
    "how_to_apply",
    "loss_in",
    "master_weights",
    "masters_in",
    "match_paths",
    "pinned",
    "require",
    "set_backend_flags",
    "undo_plan",
]

__version__ = "0.1.0"

_T = TypeVar("_T")

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP8 = "fp8_e4m3"
"""The FP8 format of a site. Gradients are in E5M2 where the scaling says so, and never a site's own format."""
SCALINGS = ("tensorwise", "rowwise", "rowwise_gw_hp")
FP8_MULTIPLE = 16
"""Rows and columns of FP8 operands must be multiples of this many elements (torch.nn.functional.scaled_mm on CUDA)."""
HOW = ("swap", "autocast", "follow", "source", "own", "read", "late")
_HELD = ("own", "read", "late")
"""Of tensors that a forward reads itself: a module's own, or ``_PAST_LAYERS`` those of its layers."""
_PAST_LAYERS = ("read", "late")
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclasses.dataclass(frozen=True)
class Site:
    """What the plan says about one module: format, how it is put in force, and padding of output and input features.

    ``dtype`` is that of the module's output, bfloat16 for FP8. ``scaling`` is of FP8 only: one scale for a tensor
    ("tensorwise", gradients in E5M2), one for each row of each operand ("rowwise"), or the same with the weight
    gradient in bfloat16 ("rowwise_gw_hp"). ``is_leaf`` is False for a container in an autocast region, whose output is
    left as its parts give it.
    """

    format: str
    dtype: torch.dtype
    how: str = "swap"
    pad: int = 0
    strided: bool = False
    scaling: str | None = None
    pad_in: int = 0
    is_leaf: bool = True

    def padded(self, weight: Tensor) -> tuple[int, int]:
        """Output and input features (of a convolution: channels) of ``weight``, with their padding."""
        rows, columns = weight.shape[:2]
        return rows + (-rows % self.pad if self.pad else 0), columns + (-columns % self.pad_in if self.pad_in else 0)


# --- casts -----------------------------------------------------------------------------------------------------------


class _State(threading.local):
    """Per thread: weight casts of the outermost forward that is running, those of modules that it has not called yet,
    the groups of modules whose weights are cast together in it, how deep we are in our own regions, and how many losses
    of models were compiled ones."""

    casts: dict[Any, Any] | None = None
    unused: dict[tuple[int, int], Any] | None = None
    groups: Sequence[_Group] = ()
    regions: int = 0
    losses: int = 0


_state = _State()
_warned_of_autocast = False


# Asked once: the question costs as much as launching a kernel.
_DEVICES_WITH_AUTOCAST = [
    name for name in ("cpu", "cuda", "xpu", "mps", "hpu", "xla") if torch.amp.is_autocast_available(name)
]
_UNCHANGED = contextlib.nullcontext()

# Asked at each call: a name of this file is found sooner than one in a package of torch.
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_is_compiling = torch.compiler.is_compiling
_is_within_compiled: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: None)
"""Something where torch.compile is at work around what runs here, though it left this to Python."""
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_graph_task = torch._C._current_graph_task_id


def _without_autocast(inputs: Any, module: nn.Module | None = None) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off for a planned computation on ``inputs``, as ``_device_type`` has them; says once that the
    user's own region does nothing there."""
    # Nearly always off everywhere, and a tensor's device takes longer to ask for than this.
    if not _is_any_autocast_enabled():
        return _UNCHANGED
    device_type = _device_type(inputs, module)
    if device_type not in _DEVICES_WITH_AUTOCAST or not torch.is_autocast_enabled(device_type):
        return _UNCHANGED
    # In a backward it is a region of ours that checkpointing enters again.
    if not torch.compiler.is_compiling() and not _state.regions and not _in_backward():
        _warn_of_outer_autocast()
    return torch.autocast(device_type, enabled=False)


def _warn_of_outer_autocast() -> None:
    global _warned_of_autocast
    if not _warned_of_autocast:
        _warned_of_autocast = True
        warnings.warn(
            "torch.autocast is active around a model that has a precision plan: planned modules ignore it, but other "
            "operations still follow it. Remove the autocast region, or undo the plan.",
            stacklevel=4,
        )


_TO = {torch.float32: Tensor.float, torch.bfloat16: Tensor.bfloat16, torch.float16: Tensor.half}


def _to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, whose many overloads take Python longer than these methods."""
    method = _TO.get(dtype)
    return tensor.to(dtype) if method is None else method(tensor)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype or not tensor.is_floating_point() else _to(tensor, dtype)


def _padded(tensor: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """``tensor`` with zeros up to ``rows`` in its first and ``columns`` in its second dimension."""
    extra = [0, rows - tensor.shape[0]]
    if tensor.dim() > 1:
        extra = [0, 0 if columns is None else columns - tensor.shape[1], *extra]
    return F.pad(tensor, [0] * (2 * tensor.dim() - len(extra)) + extra) if any(extra) else tensor


class _Reuse(torch.autograd.Function):
    """Stands for a cast that was made before: forward gives the cast's values, backward the cast's gradient.

    Each use has its own node, so that the gradients of several uses are added in the parameter's dtype. Sharing the
    cast itself would add them in 16 bits, where a sum of equal parts stops after 256 of them.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, low: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = parameter.shape, parameter.dtype
        return low.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[tuple(map(slice, ctx.shape))].to(ctx.dtype), None


class _CastTogether(torch.autograd.Function):
    """Parameters of one dtype in another by a few launches and one node of the graph; their gradients back likewise.

    A cast for each parameter is two launches and two nodes of microseconds each: more than small layers compute.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # what the forward did not use keeps no gradient
        ctx.dtype = parameters[0].dtype
        return tuple(_all_cast(parameters, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        found = [gradient for gradient in gradients if gradient is not None]
        if torch.is_grad_enabled():  # the gradient itself will be differentiated
            cast = [gradient.to(ctx.dtype) for gradient in found]
        else:
            cast = _all_cast(found, ctx.dtype)
        if len(cast) == len(gradients):
            return None, *cast
        each = iter(cast)
        return None, *(None if gradient is None else next(each) for gradient in gradients)


def _apply_of_cast_together() -> Callable[..., tuple[Tensor, ...]]:
    """Past what torch.autograd.Function.apply does for torch.func, which no cast that is kept takes part in.

    In a function: where a module's own lines name ``super``, Python 3.12 makes code of every ``super()`` in it that
    torch.compile does not follow.
    """
    return super(torch.autograd.Function, _CastTogether).apply


_cast_together = _apply_of_cast_together()


def _all_cast(tensors: list[Tensor] | tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Copies of the tensors in ``dtype``; on a GPU by kernels that take many of them at once."""
    found = list(map(_empty_like(dtype), tensors))
    if found:
        torch._foreach_copy_(found, tensors)
    return found


@functools.cache
def _empty_like(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return functools.partial(torch.empty_like, dtype=dtype)


def _weight(parameter: Tensor | None, dtype: torch.dtype, casts: dict[Any, Any] | None, *size: int) -> Any:
    """The parameter in ``dtype``, with zeros up to ``size`` (rows, columns); None for a parameter that is None.

    A cast is reused within one outermost forward only, whose ``casts`` are given. No key can tell that a weight
    changed (fused optimizers and ``.data`` writes leave ``_version`` alone), but nothing trains inside a forward. Each
    use after the first has a graph of its own, and casts are kept only while autograd keeps them alive anyway.
    """
    if parameter is None or (parameter.dtype == dtype and parameter.shape[: len(size)] == size):
        return parameter
    if casts is None:
        return _padded(_to(parameter, dtype), *size) if size else _to(parameter, dtype)
    key = (id(parameter), dtype, size) if size else id(parameter)
    held = casts.get(key)
    if held is not None and held[0] is parameter and held[1] == parameter._version and held[2].dtype == dtype:
        return _Reuse.apply(parameter, held[2].detach())  # type: ignore[no-untyped-call]
    low = _padded(_to(parameter, dtype), *size) if size else _to(parameter, dtype)
    casts[key] = (parameter, parameter._version, low)
    return low


def _reusable_casts() -> dict[Any, Any] | None:
    """The casts of the outermost forward, or None where none may be kept or reused."""
    if _is_compiling():
        return None
    casts = _state.casts
    if casts is None or not _is_grad_enabled() or _in_backward() or _are_transforms_active():
        return None
    return casts


def _weight_and_bias(module: Any, dtype: torch.dtype) -> Any:
    """Both in ``dtype``. On a GPU those of the module's group are cast together at the first call of one of them."""
    return _unused_casts(module) or _other_casts(module, dtype)


def _weight_alone(module: Any, dtype: torch.dtype) -> Any:
    """As ``_weight_and_bias``, for a module without bias."""
    lows = _unused_casts(module)
    if lows is None:
        weight = module._parameters.get("weight")
        lows = _low(module, module.weight if weight is None else weight, None, dtype)
    return lows[0]


def _unused_casts(module: Any) -> Any:
    """Weight and bias as this forward cast them for the module, at its first call; None where there is nothing that
    fits. Nearly every call ends here, so that it asks only whether these are the parameters that were cast, unchanged.
    """
    if _is_dynamo_compiling():
        return None
    unused = _state.unused
    if not unused:
        return None
    found = unused.pop(module._amptune_group, None)
    if found is None:
        return None
    weight, version, bias, bias_version, lows = found
    own = module._parameters
    is_same = own.get("weight") is weight and own.get("bias") is bias and weight._version == version
    return lows if is_same and (bias is None or bias._version == bias_version) else None


def _other_casts(module: Any, dtype: torch.dtype) -> Any:
    """Weight and bias where none are ready."""
    own = module._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or (bias is None and "bias" not in own):  # computed anew for each use, by a parametrization say
        weight, bias = module.weight, getattr(module, "bias", None)
    return _low(module, weight, bias, dtype)


def _low(module: Any, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Any:
    casts = _reusable_casts()
    if casts is None or weight is None:
        return _weight(weight, dtype, casts), _weight(bias, dtype, casts)
    if not _saves_launches(weight):
        if "_amptune_reused" not in module.__dict__:
            key = ~id(module)
            if key not in casts:  # nearly no module runs twice in a forward, and a cast that is kept costs more
                casts[key] = True
                return _weight(weight, dtype, None), _weight(bias, dtype, None)
            module.__dict__["_amptune_reused"] = True
        return _weight(weight, dtype, casts), _weight(bias, dtype, casts)
    place = module._amptune_group
    held: Any = None
    if place is not None:
        held = casts.get(place[0])
        if held is None and _cast_group_of(module, place, casts):
            lows = _unused_casts(module)
            if lows is not None:
                return lows
    if held is not None:
        at = place[1]
        parameters, versions, lows = held
        if (
            parameters[at] is weight
            and parameters[at + 1] is bias
            and weight._version == versions[at]
            and (bias is None or bias._version == versions[at + 1])
        ):  # what was cast, unchanged
            return _again(weight, lows[at]), _again(bias, lows[at + 1])
    return _weight(weight, dtype, casts), _weight(bias, dtype, casts)


def _saves_launches(weight: Tensor) -> bool:
    """Whether casts of many tensors at once take fewer kernels. On a CPU they take as many, and Python on top."""
    return not weight.is_cpu


def _again(parameter: Tensor | None, low: Tensor | None) -> Any:
    """The cast of a parameter, or the parameter that had the format, for another use, with a graph of its own."""
    return low if low is None or low is parameter else _Reuse.apply(parameter, low.detach())  # type: ignore[no-untyped-call]


class _Batch(NamedTuple):
    """Parameters that one call casts to ``dtype``, and their slots in the group."""

    dtype: torch.dtype
    slots: list[int]
    parameters: tuple[Tensor, ...]


class _Recipe(NamedTuple):
    """How the weights and biases of a group are cast; two slots for each module, in order."""

    owners: list[dict[str, Any]]
    names: list[str]
    parameters: list[Tensor | None]
    present: list[Tensor]
    """the parameters, with a tensor of nobody's for one that is None"""
    trains: list[bool]
    batches: list[_Batch]
    places: list[tuple[int, int]]
    lacking: list[tuple[int, int]]
    """places of the modules, and of those without a weight"""

    def holds(self) -> bool:
        """Whether the parameters are those that the recipe was made for, frozen where they were.

        One that was moved or cast since is cast rightly all the same.
        """
        found = map(dict.get, self.owners, self.names)
        return all(map(operator.is_, found, self.parameters)) and list(map(_trains, self.present)) == self.trains


_NOTHING = torch.empty(0, device="cpu")
_trains = operator.attrgetter("requires_grad")
_version_of = operator.attrgetter("_version")


class _Group:
    """Planned modules whose weights are cast together. A copy, and what is unpickled, finds its own recipe."""

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self.recipe: _Recipe | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules, "recipe": None}


def _cast_group_of(module: Any, place: tuple[int, int], casts: dict[Any, Any]) -> bool:
    """Cast the group of a module, if it has one here: ``casts`` gets its parameters, the versions that were cast, and
    the casts.

    What had the format stands for its own cast. The graph of a cast is for the first use.
    """
    number, at = place
    group = _state.groups[number] if number < len(_state.groups) else None
    if group is None or at // 2 >= len(group.modules) or group.modules[at // 2] is not module:
        return False
    recipe = group.recipe
    if recipe is None or not recipe.holds():
        recipe = group.recipe = _find_recipe(group.modules, number)
    parameters = recipe.parameters
    versions = list(map(_version_of, recipe.present))
    lows: Any = parameters
    for dtype, slots, alike in recipe.batches:
        found = _cast_alike(dtype, alike)
        if len(found) == len(parameters):
            lows = found
        else:
            lows = list(lows)
            for slot, low in zip(slots, found, strict=True):
                lows[slot] = low
    casts[number] = parameters, versions, lows
    unused: Any = _state.unused
    # By C functions alone: this runs for every block of a model.
    pairs = zip(lows[::2], lows[1::2], strict=True)
    held = zip(parameters[::2], versions[::2], parameters[1::2], versions[1::2], pairs, strict=True)
    unused.update(zip(recipe.places, held, strict=True))
    for place in recipe.lacking:
        del unused[place]
    return True


def _find_recipe(modules: Sequence[Any], number: int) -> _Recipe:
    owners = [module._parameters for module in modules for _ in range(2)]
    names = ["weight", "bias"] * len(modules)
    parameters: list[Tensor | None] = list(map(dict.get, owners, names))
    alike: dict[Any, dict[int, Tensor]] = {}
    for slot, parameter in enumerate(parameters):
        dtype = modules[slot // 2]._amptune.dtype
        if parameter is not None and parameter.dtype != dtype:
            key = dtype, type(parameter), parameter.dtype, parameter.requires_grad, parameter.device
            alike.setdefault(key, {})[slot] = parameter
    present = [_NOTHING if parameter is None else parameter for parameter in parameters]
    batches = [_Batch(key[0], list(found), tuple(found.values())) for key, found in alike.items()]
    places = [(number, at) for at in range(0, len(parameters), 2)]
    lacking = [place for place in places if parameters[place[1]] is None]
    return _Recipe(owners, names, parameters, present, list(map(_trains, present)), batches, places, lacking)


def _cast_alike(dtype: torch.dtype, parameters: tuple[Tensor, ...]) -> Sequence[Tensor]:
    """Casts of parameters of one type and dtype on one device that all train, or none."""
    if type(parameters[0]) not in (nn.Parameter, Tensor):  # a DTensor has no op for many at once
        return [_to(parameter, dtype) for parameter in parameters]
    if not parameters[0].requires_grad:
        with torch.no_grad():
            return _all_cast(parameters, dtype)
    return _cast_together(dtype, *parameters) if len(parameters) > 1 else (_to(parameters[0], dtype),)


def _in_backward() -> bool:
    """Whether autograd runs us, as it does when a checkpointed region is computed again."""
    return _graph_task() != -1


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with ``function`` on each tensor in its tuples, lists, dicts and dataclasses, types kept.

    A tensor that occurs twice is mapped once: MultiheadAttention asks whether ``query is key``. A container in which
    nothing changes is passed on itself: the callee may write to it.
    """
    return _mapped(function, value, [])[0]


_LEAVES = frozenset({int, float, bool, str, type(None), slice, type(...), torch.dtype, torch.device})
"""Most of what is passed beside tensors, known at a glance to hold none."""


def _map_arguments(
    function: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As ``_map_tensors`` of both."""
    memo: list[tuple[Tensor, Tensor]] = []
    mapped = tuple([_mapped(function, value, memo)[0] for value in args])
    return mapped, {name: _mapped(function, value, memo)[0] for name, value in kwargs.items()} if kwargs else kwargs


def _mapped(function: Callable[[Tensor], Tensor], value: Any, memo: list[tuple[Tensor, Tensor]]) -> tuple[Any, bool]:
    """The mapped value, and whether it is a new one."""
    if isinstance(value, Tensor):
        # A list and "is": under torch.compile a key made of id() is a guard that each new tensor breaks.
        for seen, mapped in memo:
            if seen is value:
                return mapped, mapped is not value
        mapped = function(value)
        memo.append((value, mapped))
        return mapped, mapped is not value
    if type(value) in _LEAVES:
        return value, False
    parts: list[Any] = []
    is_new = False
    for part in _parts(value):
        mapped, is_other = _mapped(function, part, memo)
        parts.append(mapped)
        is_new = is_new or is_other
    return (_rebuilt(value, parts), True) if is_new else (value, False)


def _parts(value: Any) -> Sequence[Any]:
    """What a container holds, in order; nothing for what is no container."""
    if isinstance(value, (tuple, list)):
        return value
    if isinstance(value, dict):
        return list(value.values())
    return [getattr(value, name) for name in _fields(value)]


def _fields(value: Any) -> list[str]:
    """Names of the fields that a dataclass has values for; none for what is no dataclass."""
    if not hasattr(type(value), "__dataclass_fields__"):
        return []
    return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]


def _rebuilt(value: Any, parts: Sequence[Any]) -> Any:
    """A container like ``value`` that holds ``parts``."""
    if isinstance(value, (tuple, list)):
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    named = dict(zip(value if isinstance(value, dict) else _fields(value), parts, strict=True))
    if type(value) is dict:
        return named
    if isinstance(value, dict) and hasattr(value, "__dataclass_fields__"):
        return type(value)(**named)  # transformers' ModelOutput: its constructor keeps fields and keys together
    result = copy.copy(value)
    for key, part in named.items():
        if isinstance(value, dict):
            result[key] = part
        else:
            object.__setattr__(result, key, part)
    return result


def cast_all(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with the floating tensors in it cast to ``dtype``."""
    return _map_tensors(functools.partial(_cast, dtype=dtype), value)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if type(value) in _LEAVES:  # torch.compile asks these for no attribute of their class
        return []
    return [tensor for part in _parts(value) for tensor in tensors_in(part)]


class _Casts:
    """A function that casts tensors by ``cast``, and notes the dtype that they promote to as they come."""

    __slots__ = ("cast", "promoted")

    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        self.cast = cast
        self.promoted: torch.dtype | None = None

    def note(self, dtype: torch.dtype) -> None:
        """One more dtype to promote to."""
        self.promoted = dtype if self.promoted is None else torch.promote_types(self.promoted, dtype)

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            self.note(tensor.dtype)
        return self.cast(tensor)


# --- FP8 -------------------------------------------------------------------------------------------------------------

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_SMALLEST_AMAX = 1e-12
"""A tensor or row below it is scaled as if this were its largest value, so that zeros do not divide by zero."""
_EXPONENT, _MANTISSA = 0x7F800000, 0x007FFFFF
"""Bits of a float32."""


class _Rows(NamedTuple):
    """One operand of an FP8 product: a contiguous matrix that is contracted along its rows, and its scales.

    The values are ``data * scale``; ``scale`` is float32, (rows, 1), or (1, 1) for one scale of all.
    """

    data: Tensor
    scale: Tensor


class _Lowered(NamedTuple):
    """A matrix in FP8 for the two products that it takes part in: contracted along its rows, and along its columns.

    Kernels contract contiguous rows alone, so ``columns`` is the transposed matrix. None where it was not asked for.
    """

    rows: _Rows | None
    columns: _Rows | None


def _largest(matrix: Tensor, over: int | tuple[int, ...] | None) -> Tensor:
    """The largest magnitude in float32, of all or along dimensions, which stay as ones; NaN where there is one."""
    largest: Tensor = torch.linalg.vector_norm(matrix, float("inf"), dim=over, keepdim=True, dtype=torch.float32)
    return largest


def _scale(largest: Tensor, dtype: torch.dtype, *, exact: bool) -> Tensor:
    """What values up to ``largest`` are divided by so that this becomes the largest value of ``dtype``.

    ``exact`` scales are powers of two, so that scaling itself rounds nothing.
    """
    scale = torch.clamp(largest, min=_SMALLEST_AMAX) / torch.finfo(dtype).max
    return (scale.view(torch.int32) + _MANTISSA & _EXPONENT).view(torch.float32) if exact else scale


def _scaled(matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``matrix / scale`` in FP8, contiguous.

    No clamp is needed, as nothing exceeds the largest value; an infinity or NaN comes out as NaN.
    """
    if torch.compiler.is_compiling():
        return (matrix / scale).to(dtype).contiguous()
    # One kernel that reads 16 or 32 bits and writes 8, where a division and a cast would go through float32 in memory.
    return torch.div(matrix, scale, out=torch.empty(matrix.shape, dtype=dtype, device=matrix.device))


def _one_scale(matrix: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> _Lowered:
    scale = _scale(_largest(matrix, None), dtype, exact=False)
    data = _scaled(matrix, scale, dtype)
    return _Lowered(_Rows(data, scale) if rows else None, _Rows(data.t().contiguous(), scale) if columns else None)


def _scale_by_row(matrix: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> _Lowered:
    return _Lowered(_each_row(matrix, dtype) if rows else None, _each_column(matrix, dtype) if columns else None)


def _scale_mixed(matrix: Tensor, dtype: torch.dtype, rows: bool, columns: bool) -> _Lowered:
    """A scale for each row, and one power of two for all along the columns, which are for the input gradient alone."""
    scale = _scale(_largest(matrix, None), dtype, exact=True) if columns else None
    other = None if scale is None else _Rows(_scaled(matrix.t(), scale, dtype), scale)
    return _Lowered(_each_row(matrix, dtype) if rows else None, other)


def _each_row(matrix: Tensor, dtype: torch.dtype) -> _Rows:
    scale = _scale(_largest(matrix, 1), dtype, exact=True)
    return _Rows(_scaled(matrix, scale, dtype), scale)


def _each_column(matrix: Tensor, dtype: torch.dtype) -> _Rows:
    """The transposed matrix with a scale for each of its rows; the number of columns it contracts is aligned.

    The largest values are found in two steps. From a single one the compiler makes one kernel with the transposed cast,
    which walks through memory from row to row: 1.0 ms for 8192 x 8192 in bfloat16 on an H200, which moves these bytes
    in 0.05.
    """
    bands = matrix.unflatten(0, (-1, FP8_MULTIPLE))
    scale = _scale(_largest(_largest(bands, 1), 0).view(-1, 1), dtype, exact=True)
    return _Rows(_scaled(matrix.t(), scale, dtype), scale)


_LOWER = {"tensorwise": _one_scale, "rowwise": _scale_by_row, "rowwise_gw_hp": _scale_mixed}
_NONE, _ONE, _EACH = range(3)
"""One scale for all, or one for each row or column; kernels know these by their numbers."""
_SCALES = {"tensorwise": (_ONE, _ONE, False), "rowwise": (_EACH, _EACH, True), "rowwise_gw_hp": (_EACH, _ONE, True)}
"""Scales along the rows, along the columns, and whether they are powers of two."""
_FUSED_FROM = 1 << 20
"""Elements from which on casts are fused: launching kernels from Python takes longer than smaller ones. It was set for
what torch.compile made of the casts, and is to be measured for these kernels."""
_TILE = (128, 64)
"""Rows and columns that a program of a fused cast reads: 128 bytes of a row in 16 bits, and of a column in 8."""
_not_fused: list[str] = []
"""Why casts are not fused, once they could not be."""


def _to_fp8(matrix: Tensor, dtype: torch.dtype, scaling: str, *, rows: bool, columns: bool) -> _Lowered:
    """``matrix`` in FP8 for the products that are asked for.

    On a GPU in eager mode by kernels of our own: torch's own transpose of bytes takes about as long as the product that
    it is for.
    """
    if not (rows or columns):  # as of a gradient that is for a weight alone, where that product is in BF16
        return _Lowered(None, None)
    if not _not_fused and _worth_fusing(matrix):
        try:
            return _fused(matrix.detach().contiguous(), dtype, scaling, rows, columns)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, no Triton: nothing that the plain kernels need
            _not_fused.append(str(error).strip().partition("\n")[0])
            warnings.warn(f"FP8 casts run unfused, as Triton failed: {_not_fused[0]}", stacklevel=2)
    return _LOWER[scaling](matrix, dtype, rows, columns)


def _worth_fusing(matrix: Tensor) -> bool:
    """Whether this is large, on a GPU, in eager mode, and nobody watches the ops, which kernels of ours are not."""
    if torch.compiler.is_compiling() or not matrix.is_cuda or matrix.numel() < _FUSED_FROM:
        return False
    return torch._C._len_torch_dispatch_stack() == 0 and type(matrix.detach()) is Tensor


def _fused(matrix: Tensor, dtype: torch.dtype, scaling: str, rows: bool, columns: bool) -> _Lowered:
    """The same by two passes over the matrix: one finds the largest magnitudes, one writes both forms."""
    (height, width), device, (by_row, by_column, exact) = matrix.shape, matrix.device, _SCALES[scaling]
    by_row, by_column = by_row * rows, by_column * columns
    num_rows, num_columns = ((0, 1, size)[by] for by, size in ((by_row, height), (by_column, width)))
    split = 0 if by_row == by_column == _ONE else num_rows
    largest = torch.zeros((split + num_columns or num_rows, 1), dtype=torch.int32, device=device)
    low = torch.empty((height, width), dtype=dtype, device=device) if rows else None
    turned = torch.empty((width, height), dtype=dtype, device=device) if columns else None
    find, cast = _cast_kernels()
    grid = tuple(-(-size // tile) for size, tile in zip(matrix.shape, _TILE, strict=True))
    how = {"by_row": by_row, "by_column": by_column, "high": _TILE[0], "wide": _TILE[1], "num_warps": 8}
    with torch.cuda.device_of(matrix):
        find[grid](matrix, largest, largest[split:], height, width, **how)
        scale = _scale(largest.view(torch.float32), dtype, exact=exact)
        cast[grid](matrix, low, turned, scale, scale[split:], height, width, **how)
    of_columns = scale if len(scale) == 1 else scale[split:]
    return _Lowered(
        None if low is None else _Rows(low, scale[:num_rows]), None if turned is None else _Rows(turned, of_columns)
    )


tl: Any = None
"""triton.language once kernels are made, which look it up here."""


@functools.cache
def _cast_kernels() -> tuple[Any, Any]:
    """Triton's kernels, of a matrix (height, width): what finds the largest magnitudes, and what casts by the scales.

    Magnitudes are kept as the bits of a float32, whose order is that of the numbers, with NaN above infinity. A program
    has a tile of ``high`` rows and ``wide`` columns, and writes both forms of what it has read once.
    """
    import triton

    globals()["tl"] = triton.language

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def find(  # type: ignore[no-untyped-def]
        matrix, of_rows, of_columns, height, width,
        by_row: tl.constexpr, by_column: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)
        columns = tl.program_id(1) * wide + tl.arange(0, wide)
        in_rows, in_columns = rows < height, columns < width
        inside = in_rows[:, None] & in_columns[None, :]
        values = tl.load(matrix + rows[:, None] * width + columns[None, :], mask=inside, other=0.0)
        bits = values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        if by_row == 1:
            tl.atomic_max(of_rows, tl.max(tl.max(bits, axis=1), axis=0), sem="relaxed")
        elif by_column == 1:
            tl.atomic_max(of_columns, tl.max(tl.max(bits, axis=1), axis=0), sem="relaxed")
        if by_row == 2:
            tl.atomic_max(of_rows + rows, tl.max(bits, axis=1), mask=in_rows, sem="relaxed")
        if by_column == 2:
            tl.atomic_max(of_columns + columns, tl.max(bits, axis=0), mask=in_columns, sem="relaxed")

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def cast(  # type: ignore[no-untyped-def]
        matrix, low, turned, of_rows, of_columns, height, width,
        by_row: tl.constexpr, by_column: tl.constexpr, high: tl.constexpr, wide: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0).to(tl.int64) * high + tl.arange(0, high)
        columns = tl.program_id(1).to(tl.int64) * wide + tl.arange(0, wide)
        in_rows, in_columns = rows < height, columns < width
        inside = in_rows[:, None] & in_columns[None, :]
        place = rows[:, None] * width + columns[None, :]
        values = tl.load(matrix + place, mask=inside, other=0.0).to(tl.float32)
        if by_row != 0:
            by = of_rows + rows if by_row == 2 else of_rows
            scale = tl.load(by, mask=in_rows, other=1.0)[:, None] if by_row == 2 else tl.load(by)
            tl.store(low + place, tl.div_rn(values, scale).to(low.dtype.element_ty), mask=inside)
        if by_column != 0:
            by = of_columns + columns if by_column == 2 else of_columns
            scale = tl.load(by, mask=in_columns, other=1.0)[None, :] if by_column == 2 else tl.load(by)
            place = columns[None, :] * height + rows[:, None]
            tl.store(turned + place, tl.div_rn(values, scale).to(turned.dtype.element_ty), mask=inside)

    return find, cast


def _fp8_product(a: _Rows, b: _Rows, dtype: torch.dtype) -> Tensor:
    """(R, C) times the transpose of (S, C): (R, S) in ``dtype``, bfloat16 or float32.

    Without fast accumulation, scales of rows are multiplied in afterwards: the kernel for them is slow there, and
    as they are powers of two, that rounds nothing.
    """
    if a.scale.numel() == 1 and b.scale.numel() == 1:
        return _scaled_mm(a.data, b.data.t(), a.scale, b.scale, None, dtype, False)
    one = torch.ones((1, 1), dtype=torch.float32, device=a.scale.device)
    product = _scaled_mm(a.data, b.data.t(), one, one, None, dtype, False)
    return product.mul_(a.scale.to(dtype)).mul_(b.scale.t().to(dtype))


def _scaled_mm(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    """torch's scaled product, asserting on every device what CUDA's kernels demand.

    torch._scaled_mm is what Inductor and torch's FLOP counter know in all versions that this file supports; later ones
    may have the public function only.
    """
    assert (a.stride(1), b.stride(0)) == (1, 1), "FP8 products take a row-major and a column-major operand"
    assert (a.shape[1] % FP8_MULTIPLE, b.shape[1] % FP8_MULTIPLE) == (0, 0), "FP8 operands are not aligned"
    assert not (a.dtype == _E5M2 and b.dtype == _E5M2), "one operand of an FP8 product has to be E4M3"
    assert bias is None or bias.dtype == dtype == torch.bfloat16, "FP8 products add a bias in bfloat16 only"
    if hasattr(torch, "_scaled_mm"):
        return torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=dtype, use_fast_accum=fast)
    kind = F.ScalingType.RowWise if scale_a.numel() > 1 or scale_b.numel() > 1 else F.ScalingType.TensorWise
    return F.scaled_mm(a, b, scale_a, kind, scale_b, kind, bias=bias, output_dtype=dtype, use_fast_accum=fast)


class _Fp8Linear(torch.autograd.Function):
    """x @ weight.T + bias with FP8 operands in the three products of forward and backward.

    Formats, scales and accumulation follow torchao's float8 recipes of the same names, except that a weight gradient
    comes out of the product in float32 where the weight is, and that the backward keeps FP8 operands instead of 16-bit
    ones where it can: half the memory, and both forms of an operand are cast together.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, row_scale: Tensor,
        columns: Tensor | None, column_scale: Tensor | None, scaling: str, trains: bool,
    ) -> Tensor:  # fmt: skip
        """x (M, K) bfloat16, bias (N,) -> (M, N) bfloat16.

        ``rows`` and ``columns`` are weight (N, K) in FP8, the latter for the gradient of x and with the scale of the
        former where it has none of its own; ``trains`` says whether the gradient of weight will be asked for.
        """
        keeps_x = trains and scaling == "rowwise_gw_hp"
        lowered = _to_fp8(x, _E4M3, scaling, rows=True, columns=trains and not keeps_x)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, weight.shape, weight.dtype
        for_x = () if columns is None else (columns, row_scale if column_scale is None else column_scale)
        for_weight = (x,) if keeps_x else lowered.columns or ()
        ctx.save_for_backward(*for_x, *for_weight)
        a, low_bias = lowered.rows, None if bias is None else _padded(bias.to(torch.bfloat16), rows.shape[0])
        assert a is not None
        return _scaled_mm(a.data, rows.t(), a.scale, row_scale.t(), low_bias, torch.bfloat16, True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """(M, N) bfloat16 -> gradients of x, weight and bias."""
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        saved = ctx.saved_tensors
        in_bf16 = ctx.scaling == "rowwise_gw_hp"
        x_gradient = weight_gradient = bias_gradient = None
        if of_x or of_weight:
            dtype = _E5M2 if ctx.scaling == "tensorwise" else _E4M3
            g = _to_fp8(gradient, dtype, ctx.scaling, rows=of_x, columns=of_weight and not in_bf16)
            if g.rows is not None:
                x_gradient = _fp8_product(g.rows, _Rows(saved[0], saved[1]), torch.bfloat16)
            if g.columns is not None:
                product = torch.bfloat16 if ctx.dtype == torch.bfloat16 else torch.float32
                weight_gradient = _fp8_product(g.columns, _Rows(saved[-2], saved[-1]), product)
            elif of_weight:
                weight_gradient = gradient.t() @ saved[-1]
        if weight_gradient is not None:
            weight_gradient = weight_gradient[: ctx.shape[0], : ctx.shape[1]].to(ctx.dtype)
        if of_bias:
            bias_gradient = gradient.sum(0, dtype=torch.float32)[: ctx.shape[0]]
        return x_gradient, weight_gradient, bias_gradient, None, None, None, None, None, None


def _fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, scaling: str, size: tuple[int, int]) -> Tensor:
    """x (..., K) bfloat16 -> (..., N); zeros make the sizes of the weight ``size``, which is (N, K)."""
    tokens = x.numel() // x.shape[-1]
    flat = x.reshape(tokens, x.shape[-1])
    trains = torch.is_grad_enabled() and weight.requires_grad
    if trains and scaling != "rowwise_gw_hp":
        # The weight gradient contracts over the tokens, so they too have to be a multiple.
        flat = _padded(flat, tokens + -tokens % FP8_MULTIPLE)
    rows, columns = _fp8_weight(weight, scaling, size, columns=torch.is_grad_enabled() and x.requires_grad)
    assert rows is not None
    data, scale = columns or (None, None)
    # The compiler takes no tensor twice.
    own_scale = None if scale is rows.scale else scale
    output: Tensor = _Fp8Linear.apply(  # type: ignore[no-untyped-call]
        flat, weight, bias, *rows, data, own_scale, scaling, trains
    )
    return output[:tokens].reshape(*x.shape[:-1], size[0])


def _fp8_weight(parameter: Tensor, scaling: str, size: tuple[int, int], *, columns: bool) -> _Lowered:
    """The parameter in FP8, with zeros up to ``size``; outside of the graph.

    Reused within one outermost forward, as 16-bit casts are, from the second use on: keeping what is used once would
    cost memory for nothing.
    """
    casts = _reusable_casts()
    key = (id(parameter), scaling, size)
    held = None if casts is None else casts.get(key)
    is_known = held is not None and held[0] is parameter and held[1] == parameter._version
    if held is not None and is_known and held[2] is not None and (held[2].columns is not None or not columns):
        return held[2]  # type: ignore[no-any-return]
    low = _to_fp8(_padded(parameter.detach(), *size), _E4M3, scaling, rows=True, columns=columns)
    if casts is not None:
        casts[key] = (parameter, parameter._version, low if is_known else None)
    return low


@functools.cache
def _refuse_fp8_on(device: torch.device) -> None:
    """Raise RuntimeError where the device has no FP8 products: NVIDIA GPUs have them from Ada (8.9) on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise RuntimeError(
            f"the plan has FP8 sites, but {torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and FP8 products need 8.9 or more: plan bf16 there"
        )


# --- functions -------------------------------------------------------------------------------------------------------

PINS: dict[str, str] = {}
"""Trial-time lookup of ``pinned``: place of a functional op in the source -> "fp32", or "keep" as ``fp32`` has it."""


def fp32(function: Callable[..., Any], *, keep: bool = False) -> Callable[..., Any]:
    """``function``, computed in float32 with autocast off.

    16-bit tensors among the arguments (also inside lists, tuples, dicts) are cast up; floating results are cast back
    to the promoted dtype of the floating arguments, so that what follows sees what it saw before. Results that stay
    float32: scalars, losses, and those of a call that names a ``dtype``. An in-place function writes its argument.

    With ``keep`` the result stays float32 too, for calls through ``fp32`` alone: ``fp32(mean)(fp32(pow, keep=True)(x,
    2))`` computes both in float32 and gives back the dtype of ``x``.
    """
    return functools.partial(_in_fp32, function, keep)


def pinned(code: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``fp32(function)`` as ``PINS[code]`` says, else ``function``. ``code`` is "Class.forward#op.n"."""
    pin = PINS.get(code)
    return fp32(function, keep=pin == "keep") if pin in ("fp32", "keep") else function


class _Kept:
    """A float32 result on its way to the next call through ``fp32``, and the dtype that it stands for."""

    __slots__ = ("dtype", "tensor")

    def __init__(self, tensor: Tensor, dtype: torch.dtype) -> None:
        self.tensor = tensor
        self.dtype = dtype

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", function)
        raise TypeError(f"{name} takes the result of fp32(..., keep=True), which only fp32 calls can: remove keep=True")


def loss_in(
    number_format: str | None, *, compile: bool = False, backend: Any = "inductor"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a loss function: the model's output, its first argument, comes to it in ``number_format``.

    Only tensors of fewer bits are cast, so "fp32" raises a 16-bit output and leaves a float32 or float64 one. None
    leaves all. ``compile`` runs the loss, cast included, under torch.compile with the given backend.
    """
    dtype = None if number_format is None else FORMATS[_known("loss format", number_format, FORMATS)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def loss(output: Any, *args: Any, **kwargs: Any) -> Any:
            return function(_raised(output, dtype), *args, **kwargs)

        return _in_place_of(function, loss, backend if compile else None)

    return decorate


def _in_place_of(function: Any, loss: Any, backend: Any) -> Callable[..., Any]:
    """``loss``, under torch.compile where a backend is named, with the name and the docstring of ``function``."""
    own = _with_own_code(loss)
    # A loss may be a module, whose attributes are not the wrapper's to take.
    return functools.update_wrapper(
        own if backend is None else torch.compile(own, backend=backend), function, updated=()
    )


def _raised(value: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:
        return value

    def raise_one(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize else tensor

    return _map_tensors(raise_one, value)


def _in_fp32(function: Callable[..., Any], keep: bool, /, *args: Any, **kwargs: Any) -> Any:
    if not _is_compiling() and function in _raising:
        return function(*map(_released, args), **kwargs)
    out = kwargs.pop("out", None)
    if args and type(args[0]) is Tensor and _LEAVES.issuperset(map(type, (*args[1:], *kwargs.values()))):
        first = args[0]
        raised_args, raised_kwargs = (_upcast(first), *args[1:]), kwargs
        back = first.dtype if first.is_floating_point() else None
    else:
        raised_args, raised_kwargs, back = _all_raised(args, kwargs)
    if _is_any_autocast_enabled():
        with _without_autocast((raised_args, raised_kwargs)):
            result = function(*raised_args, **raised_kwargs)
    else:
        result = function(*raised_args, **raised_kwargs)
    # A module has no such name, and is no constant for torch.compile.
    kind = "" if isinstance(function, nn.Module) else _kind_of(function)
    target = _released(args[0]) if kind == "in-place" else out
    if target is not None:
        return target if target is result else target.copy_(result)
    if back in (None, torch.float32, torch.float64) or kind == "loss" or kwargs.get("dtype") is not None:
        return result
    if keep and isinstance(result, Tensor) and result.is_floating_point():
        return _Kept(result, back)
    if isinstance(result, Tensor):
        return _cast_back(result, back)
    return _map_tensors(functools.partial(_cast_back, dtype=back), result)


def _all_raised(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.dtype | None]:
    """Arguments with 16-bit tensors cast up, wherever they are, and the dtype that the floating ones promote to."""
    casts = _Casts(_upcast)
    raised_args, raised_kwargs = _map_arguments(casts, args, kwargs)
    kept = [value for value in (*args, *kwargs.values()) if isinstance(value, _Kept)]
    for value in kept:
        casts.note(value.dtype)
    if kept:
        raised_args = tuple(map(_released, raised_args))
        raised_kwargs = {name: _released(value) for name, value in raised_kwargs.items()}
    return raised_args, raised_kwargs, casts.promoted


def _released(value: Any) -> Any:
    return value.tensor if isinstance(value, _Kept) else value


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _cast_back(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    # A scalar does not take part in type promotion, so it harms nobody in float32, and a loss needs the digits.
    return tensor if dtype is None or tensor.dim() == 0 else _cast(tensor, dtype)


def _kind_of(function: Callable[..., Any]) -> str:
    """ "in-place", "loss" or "", by the name of a torch function. A constant: torch.compile does not follow names."""
    name = getattr(function, "__name__", "")
    if name.endswith(("_loss", "cross_entropy", "kl_div", "_with_logits")):
        return "loss"
    return "in-place" if name.endswith("_") and not name.endswith("__") else ""


# What torch.compiler.assume_constant_result sets, which imports the compiler: seconds for those who do not compile.
_kind_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


# --- planned modules -------------------------------------------------------------------------------------------------


class _Planned:
    """What the planned classes share. ``_amptune`` is set when the class of an existing module is changed."""

    _amptune: Site
    _amptune_group: tuple[int, int] | None = None
    """Number of the group that the module's weights are cast with, and the slot of its weight there."""

    def extra_repr(self) -> str:
        """The module's own text, and the format."""
        own = super().extra_repr()  # type: ignore[misc]
        site = self._amptune
        scaling = f":{site.scaling}" if site.scaling else ""
        pad = "".join(f", {name}={getattr(site, name)}" for name in ("pad", "pad_in") if getattr(site, name))
        return f"{own}{', ' if own else ''}format={site.format}{scaling}{pad}"


class _PlannedOne(_Planned):
    """One that computes from one tensor, its weight and its bias, by ``_op``."""

    _op: Callable[[Tensor, Any, Any], Tensor]

    _compute_padded: Callable[[Tensor], Tensor]
    """Of those that can be padded."""

    def forward(self, input: Tensor) -> Tensor:
        """As the module's own forward, in the planned format, with autocast off."""
        lows = _unused_casts(self)
        if lows is None:
            site = self._amptune
            if site.pad or site.pad_in:
                with _without_autocast(input):
                    return self._compute_padded(input)
            lows = _other_casts(self, site.dtype)
        weight, bias = lows
        dtype = self._amptune.dtype if weight is None else weight.dtype
        x = input if input.dtype == dtype else _cast(input, dtype)
        if _is_any_autocast_enabled():
            with _without_autocast(x):
                return self._op(x, weight, bias)
        return self._op(x, weight, bias)


class PlannedLinear(_PlannedOne, nn.Linear):
    """Linear in the planned format, features padded with zeros: output to a multiple of ``pad``, input of ``pad_in``.

    The padded output is cut back to its size. The cut is copied to contiguous memory unless the plan says
    ``strided``, because ``.view`` of a strided tensor can raise in the code that follows.
    """

    def _op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _compute_padded(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        site = self._amptune
        x = _cast(input, site.dtype)
        casts, (rows, columns) = _reusable_casts(), site.padded(self.weight)
        weight = _weight(self.weight, site.dtype, casts, rows, columns)
        x = _padded_features(x, -1, columns - self.weight.shape[1])
        output = F.linear(x, weight, _weight(self.bias, site.dtype, casts, rows))
        return _cut(output, -1, self.weight.shape[0], site)


def _padded_features(x: Tensor, dim: int, extra: int) -> Tensor:
    """``x`` with ``extra`` zeros in a dimension counted from the last, which is -1."""
    return F.pad(x, (0, 0) * (-dim - 1) + (0, extra)) if extra else x


def _cut(output: Tensor, dim: int, features: int, site: Site) -> Tensor:
    """The first ``features`` of ``dim``, in contiguous memory of the same order, unless the plan leaves it strided."""
    if output.shape[dim] == features:
        return output
    cut = output.narrow(dim, 0, features)
    if site.strided:
        return cut
    order = _CHANNELS_LAST.get(output.dim())
    if order is None or output.is_contiguous() or not output.is_contiguous(memory_format=order):
        return cut.contiguous()
    return cut.contiguous(memory_format=order)


class PlannedFp8Linear(_Planned, nn.Linear):
    """Linear whose products run in FP8, forward and backward; padding as in PlannedLinear. The output is bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        site = self._amptune
        if not torch.compiler.is_compiling():
            _refuse_fp8_on(input.device)
        rows, columns = site.padded(self.weight)
        with _without_autocast(input):
            x = _cast(input, site.dtype)
            if input.numel() == 0:
                return F.linear(x, self.weight.to(site.dtype), None if self.bias is None else self.bias.to(site.dtype))
            x = _padded_features(x, -1, columns - self.weight.shape[1])
            output = _fp8_linear(x, self.weight, self.bias, str(site.scaling), (rows, columns))
        return _cut(output, -1, self.weight.shape[0], site)


class _PlannedConv(_PlannedOne):
    weight: Any
    bias: Any
    _conv_forward: Callable[..., Tensor]

    def _op(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def _compute_padded(self, input: Tensor) -> Tensor:
        """As the convolution's own forward, channels padded as the plan says."""
        site = self._amptune
        x = _cast(input, site.dtype)
        casts, channels, (rows, columns) = _reusable_casts(), 1 - self.weight.dim(), site.padded(self.weight)
        x = _padded_features(x, channels, columns - self.weight.shape[1])
        weight = _weight(self.weight, site.dtype, casts, rows, columns)
        output = self._conv_forward(x, weight, _weight(self.bias, site.dtype, casts, rows))
        return _cut(output, channels, self.weight.shape[0], site)


class PlannedConv1d(_PlannedConv, nn.Conv1d):
    """Conv1d in the planned format."""


class PlannedConv2d(_PlannedConv, nn.Conv2d):
    """Conv2d in the planned format."""


class PlannedConv3d(_PlannedConv, nn.Conv3d):
    """Conv3d in the planned format."""


class _PlannedConvTranspose(_Planned):
    weight: Any
    bias: Any
    stride: Any
    padding: Any
    kernel_size: Any
    dilation: Any
    groups: Any
    padding_mode: Any
    _output_padding: Callable[..., list[int]]
    _convolve: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the transposed convolution's own forward, in the planned format."""
        if self.padding_mode != "zeros":
            raise ValueError(f"only zeros is supported as padding_mode of {type(self).__name__}")
        site, spatial = self._amptune, len(self.kernel_size)
        with _without_autocast(input):
            weight, bias = _weight_and_bias(self, site.dtype)
            output_padding = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, spatial, self.dilation
            )
            return type(self)._convolve(
                _cast(input, site.dtype), weight, bias, self.stride, self.padding, output_padding, self.groups,
                self.dilation,
            )  # fmt: skip


class PlannedConvTranspose1d(_PlannedConvTranspose, nn.ConvTranspose1d):
    """ConvTranspose1d in the planned format."""

    _convolve = staticmethod(F.conv_transpose1d)


class PlannedConvTranspose2d(_PlannedConvTranspose, nn.ConvTranspose2d):
    """ConvTranspose2d in the planned format."""

    _convolve = staticmethod(F.conv_transpose2d)


class PlannedConvTranspose3d(_PlannedConvTranspose, nn.ConvTranspose3d):
    """ConvTranspose3d in the planned format."""

    _convolve = staticmethod(F.conv_transpose3d)


class PlannedEmbedding(_Planned, nn.Embedding):
    """Embedding whose rows are gathered in the table's dtype and cast afterwards.

    Casting the table first reads all of it, and sums the gradient of a frequent token in 16 bits.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Integer tensor (...) -> (..., embedding_dim)."""
        return _to(super().forward(input), self._amptune.dtype)


class PlannedEmbeddingBag(_Planned, nn.EmbeddingBag):
    """EmbeddingBag that gathers and sums in the table's dtype and casts the result."""

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """As EmbeddingBag's own forward."""
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.to(self.weight.dtype)
        return super().forward(input, offsets, per_sample_weights).to(self._amptune.dtype)


class PlannedLayerNorm(_PlannedOne, nn.LayerNorm):
    """LayerNorm in the planned format; the kernel takes mean and variance in float32."""

    def _op(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class PlannedRMSNorm(_Planned, nn.RMSNorm):
    """RMSNorm in the planned format; the kernel takes the mean square in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> the same shape."""
        dtype = self._amptune.dtype
        weight = _weight_alone(self, dtype)
        # Without an eps torch takes the epsilon of the input's dtype, which would change with the plan.
        eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
        if _is_any_autocast_enabled():
            with _without_autocast(x):
                return F.rms_norm(_cast(x, dtype), self.normalized_shape, weight, eps)
        return F.rms_norm(_cast(x, dtype), self.normalized_shape, weight, eps)


class PlannedGroupNorm(_PlannedOne, nn.GroupNorm):
    """GroupNorm in the planned format; the kernel takes mean and variance in float32."""

    def _op(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class _PlannedStatistics(_Planned):
    """A norm with running statistics: input in the planned format, weights and statistics in float32.

    The kernels take mixed dtypes, are faster with float32 weights, and running statistics must not be rounded.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As the norm's own forward, with the input cast."""
        dtype = self._amptune.dtype
        x = input if input.dtype == dtype else _cast(input, dtype)
        if _is_any_autocast_enabled():
            with _without_autocast(x):
                return super().forward(x)  # type: ignore[misc,no-any-return]
        return super().forward(x)  # type: ignore[misc,no-any-return]


class PlannedBatchNorm1d(_PlannedStatistics, nn.BatchNorm1d):
    """BatchNorm1d on input in the planned format."""


class PlannedBatchNorm2d(_PlannedStatistics, nn.BatchNorm2d):
    """BatchNorm2d on input in the planned format."""


class PlannedBatchNorm3d(_PlannedStatistics, nn.BatchNorm3d):
    """BatchNorm3d on input in the planned format."""


class PlannedSyncBatchNorm(_PlannedStatistics, nn.SyncBatchNorm):
    """SyncBatchNorm on input in the planned format."""


class PlannedInstanceNorm1d(_PlannedStatistics, nn.InstanceNorm1d):
    """InstanceNorm1d on input in the planned format."""


class PlannedInstanceNorm2d(_PlannedStatistics, nn.InstanceNorm2d):
    """InstanceNorm2d on input in the planned format."""


class PlannedInstanceNorm3d(_PlannedStatistics, nn.InstanceNorm3d):
    """InstanceNorm3d on input in the planned format."""


class PlannedPReLU(_Planned, nn.PReLU):
    """PReLU in the planned format."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        dtype = self._amptune.dtype
        weight = _weight_alone(self, dtype)
        with _without_autocast(input):
            return F.prelu(_cast(input, dtype), weight)


class PlannedBilinear(_Planned, nn.Bilinear):
    """Bilinear in the planned format."""

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """(..., in1_features), (..., in2_features) -> (..., out_features)."""
        dtype = self._amptune.dtype
        with _without_autocast(input1):
            weight, bias = _weight_and_bias(self, dtype)
            return F.bilinear(_cast(input1, dtype), _cast(input2, dtype), weight, bias)


_PLANNED: tuple[type[nn.Module], ...] = (
    PlannedLinear, PlannedConv1d, PlannedConv2d, PlannedConv3d, PlannedConvTranspose1d, PlannedConvTranspose2d,
    PlannedConvTranspose3d, PlannedEmbedding, PlannedEmbeddingBag, PlannedLayerNorm, PlannedRMSNorm, PlannedGroupNorm,
    PlannedBatchNorm1d, PlannedBatchNorm2d, PlannedBatchNorm3d, PlannedSyncBatchNorm, PlannedInstanceNorm1d,
    PlannedInstanceNorm2d, PlannedInstanceNorm3d, PlannedPReLU, PlannedBilinear,
)  # fmt: skip
_CAST_TOGETHER = (
    PlannedLinear, _PlannedConv, _PlannedConvTranspose, PlannedLayerNorm, PlannedRMSNorm, PlannedGroupNorm,
    PlannedPReLU, PlannedBilinear,
)  # fmt: skip
_TRIED = ("_amptune_epsilon", "_amptune_layout")
"""Classes that ask for their weights by ``_weight_and_bias``, and what those known by trying remember."""
_GROUP_ELEMENTS = 1 << 25
"""Parameters of a group: beyond this a cast takes longer than its launch, and 16-bit gradients wait for their group."""
_FEW_MODULES, _FEW_ELEMENTS = 32, 1 << 23
"""Below both a group takes in the next block: gradients of 32 MB, about what DistributedDataParallel sends at once.
Beside its parameters, a group costs the processor what several layers do."""
SWAPS: dict[type[nn.Module], type[nn.Module]] = {cls.__bases__[1]: cls for cls in _PLANNED}
"""Exact module class -> planned class. Subclasses (peft, quantised) compute in ways unknown here: not swapped."""

_LOWERED_BY_AUTOCAST = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_ONE_LEAF = (*_LOWERED_BY_AUTOCAST, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_PARAMETRIZED = "parametrizations"
"""Name of the child that torch.nn.utils.parametrize adds to a module."""
_BYPASSED = (nn.modules.linear.NonDynamicallyQuantizableLinear,)
"""Classes of children whose forward their parent never calls."""


def how_to_apply(module: nn.Module) -> str | None:
    """ "swap" or "autocast", as a format is put in force on this module; None for one that takes no format itself.

    None: containers, TorchScript, modules whose parameters are not there yet or not floating (complex ones are not),
    and the ``out_proj`` of MultiheadAttention, which the attention reads without calling it.
    """
    if isinstance(module, (torch.jit.ScriptModule, *_BYPASSED)):
        return None
    base = base_class(type(module))
    parameters = [parameter for parameter in module.parameters() if parameter is not None]
    if parameters and not any(parameter.is_floating_point() for parameter in parameters):
        return None
    if base in SWAPS or rms_epsilon(module) is not None or linear_layout(module) is not None:
        return "swap"
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in parameters):
        return None
    has_children = any(name != _PARAMETRIZED for name, _ in module.named_children())
    if base in _CONTAINERS or (has_children and not issubclass(base, _ONE_LEAF)):
        return None
    if not parameters:
        return "swap"
    return "autocast"


# --- layers by hand, known by trying ---------------------------------------------------------------------------------

_LARGEST_EPSILON = 1e-2
_rms_epsilons: weakref.WeakKeyDictionary[nn.Module, float | None] = weakref.WeakKeyDictionary()
_linear_layouts: weakref.WeakKeyDictionary[nn.Module, str | None] = weakref.WeakKeyDictionary()
_layouts_of_alike: dict[Any, str | None] = {}
_LARGEST_TRIED = 1 << 24
"""Elements of a weight: trying takes a few times its memory."""


def _can_be_tried(module: nn.Module) -> bool:
    """Whether a module of the user's computes from one tensor by its own parameters alone, as far as can be seen."""
    own: Any = base_class(type(module))
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if module._buffers or module._modules or own.__module__.startswith("torch.") or any(hooks):
        return False
    if any(isinstance(value, list | dict | set) for name, value in vars(module).items() if name not in _NO_ATTRIBUTES):
        return False  # a forward may write there
    try:
        return len(inspect.signature(own.forward).parameters) == 2  # no gate or residual, though it may be left out
    except (TypeError, ValueError):
        return False


def _twin(module: nn.Module, parameters: dict[str, Any]) -> Any:
    """A copy of the user's module as it was before a plan, with other parameters."""
    own: Any = base_class(type(module))
    twin = own.__new__(own)
    mine = {name: value for name, value in module.__dict__.items() if not name.startswith("_amptune")}
    twin.__dict__.update(mine, _parameters=parameters)
    return twin


def rms_epsilon(module: nn.Module) -> float | None:
    """The epsilon with which ``F.rms_norm`` computes what a module of the user's computes; None where it does not.

    Large language models bring a norm of their own that casts up, squares, averages and scales by a kernel each. It is
    known by trying: a copy gets random weights and numbers of several sizes in float32.
    """
    if module not in _rms_epsilons:
        _rms_epsilons[module] = _find_rms_epsilon(module)
    return _rms_epsilons[module]


def _find_rms_epsilon(module: nn.Module) -> float | None:
    weight = module._parameters.get("weight")
    if weight is None or len(module._parameters) > 1 or weight.dim() != 1 or not weight.is_floating_point():
        return None
    if not _can_be_tried(module):
        return None
    numbers = [value for value in vars(module).values() if isinstance(value, float) and 0 < value < _LARGEST_EPSILON]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, weight.numel(), generator=random, device="cpu")
    x = x * torch.logspace(-4, 2, 8, device="cpu")[:, None]
    scale = torch.rand(weight.shape, generator=random, device="cpu") + 0.5
    try:
        twin = _twin(module, {"weight": nn.Parameter(scale)})
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=()):
            found = [twin.train(mode)(x.clone()) for mode in (True, False)]
            return next((eps for eps in numbers if all(_is_rms_norm(each, x, scale, eps) for each in found)), None)
    except Exception:  # it computes something else altogether
        return None


def _is_rms_norm(found: Any, x: Tensor, weight: Tensor, eps: float) -> bool:
    expected = F.rms_norm(x, weight.shape, weight, eps)
    return isinstance(found, Tensor) and found.shape == x.shape and torch.allclose(found, expected, rtol=1e-5, atol=0)


def _run_rms_norm(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A root mean square norm by hand, in one kernel that takes the mean square in float32."""
    (x,) = args or kwargs.values()
    dtype = module._amptune.dtype
    weight = _weight_alone(module, dtype)
    if _is_any_autocast_enabled():
        with _without_autocast(x):
            return F.rms_norm(_cast(x, dtype), weight.shape, weight, module._amptune_epsilon)
    return F.rms_norm(_cast(x, dtype), weight.shape, weight, module._amptune_epsilon)


def linear_layout(module: nn.Module) -> str | None:
    """How a module of the user's computes what ``F.linear`` does: "out_in" with its weight as torch has it, "in_out"
    with the transpose; None where it computes something else.

    Transformers' Conv1D is one. It is known by trying, forward and backward: a copy gets random weights in float32.
    What refuses bfloat16, or computes in float32 under autocast, is none.
    """
    if module not in _linear_layouts:
        key = _alike_for_trying(module)
        if key not in _layouts_of_alike:
            found = _find_linear_layout(module)
            if key is None:
                _linear_layouts[module] = found
                return found
            _layouts_of_alike[key] = found
        _linear_layouts[module] = _layouts_of_alike[key]
    return _linear_layouts[module]


def _alike_for_trying(module: nn.Module) -> Any:
    """What modules that compute alike share; None where something beside numbers and names makes a difference."""
    plain = (int, float, str, type(None))
    own = {name: value for name, value in vars(module).items() if not name.startswith("_amptune")}
    others = {name: value for name, value in own.items() if name not in _NO_ATTRIBUTES}
    if not all(isinstance(value, plain) for value in others.values()):
        return None
    shapes = [(name, None if each is None else each.shape) for name, each in module._parameters.items()]
    return base_class(type(module)), _can_be_tried(module), tuple(shapes), tuple(sorted(others.items()))


_NO_ATTRIBUTES = frozenset(vars(nn.Module()))


def _find_linear_layout(module: nn.Module) -> str | None:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or not set(module._parameters) <= {"weight", "bias"} or not _can_be_tried(module):
        return None
    if weight.dim() != 2 or not weight.is_floating_point() or weight.numel() > _LARGEST_TRIED:
        return None
    return next((layout for layout in ("out_in", "in_out") if _is_linear(module, weight, bias, layout)), None)


def _is_linear(module: nn.Module, weight: Tensor, bias: Tensor | None, layout: str) -> bool:
    random = torch.Generator().manual_seed(0)
    outputs, inputs = weight.shape if layout == "out_in" else weight.shape[::-1]
    x = torch.randn(2, 3, inputs, generator=random, device="cpu", requires_grad=True)
    slope = torch.randn(2, 3, outputs, generator=random, device="cpu")
    own = {
        name: nn.Parameter(torch.randn(parameter.shape, generator=random, device="cpu"))
        for name, parameter in (("weight", weight), ("bias", bias))
        if parameter is not None
    }
    leaves = [x, *own.values()]
    try:
        twin = _twin(module, module._parameters | own)
        state = _state_of(twin)
        with torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=()):
            tried = [twin.train(mode)(x) for mode in (True, False)]
            expected = F.linear(x, own["weight"] if layout == "out_in" else own["weight"].t(), own.get("bias"))
            found = [(each, *torch.autograd.grad(each, leaves, slope)) for each in tried]
            right = expected, *torch.autograd.grad(expected, leaves, slope)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.random.fork_rng(devices=()):
            low = twin.train()(x.bfloat16())
        if low.dtype != torch.bfloat16:  # its author keeps it out of autocast
            return False
    except Exception:  # it computes something else altogether
        return False
    pairs = [pair for each in found for pair in zip(each, right, strict=True)]
    return _state_of(twin) == state and all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in pairs)


def _state_of(module: nn.Module) -> dict[str, Any]:
    """What a forward could have left on the module."""
    return {name: (id(value), name == "_parameters" and list(value)) for name, value in vars(module).items()} | {
        "training": None
    }


def _run_linear(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A linear layer by hand, with its weights cast as those of a Linear are."""
    (x,) = args or kwargs.values()
    dtype = module._amptune.dtype
    weight, bias = _weight_and_bias(module, dtype)
    if module._amptune_layout == "in_out":
        weight = weight.t()
    if _is_any_autocast_enabled():
        with _without_autocast(x):
            return F.linear(_cast(x, dtype), weight, bias)
    return F.linear(_cast(x, dtype), weight, bias)


# --- classes made for one class of the user's ------------------------------------------------------------------------


class _Made:
    """Mixin of the classes that wrap the ``forward`` of a class that only the user knows. They keep its name."""

    _amptune_made: tuple[type, tuple[str, ...]]

    def __init_subclass__(cls, **_: Any) -> None:
        # The user's own __init_subclass__ (a registry, say) must not hear of classes that we make.
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        made = type(self).__dict__.get("_amptune_made")
        if made is None or not isinstance(reduced, tuple) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced
        return (_new_made, made, *reduced[2:])


class _MadeLeaf(_Made, _Planned):
    """As _Made, for a module that the plan names."""


def _new_made(base: Any, kinds: tuple[str, ...]) -> Any:
    """An empty instance of the made class: what pickle and deepcopy start from."""
    cls = functools.reduce(_made_class, kinds, base)
    return cls.__new__(cls)


_made: dict[tuple[type, str], Any] = {}


def _made_class(original: Any, kind: str) -> Any:
    """The subclass of ``original`` whose forward goes through ``_RUN[kind]``; the same one each time."""
    if (original, kind) not in _made:
        _made[original, kind] = _make_class(original, kind)
    return _made[original, kind]


def _make_class(original: Any, kind: str) -> Any:
    base, kinds = original.__dict__.get("_amptune_made", (original, ()))
    body: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_amptune_made": (base, (*kinds, kind)),
        "_amptune_original": original,
    }
    kind_of_run, _, names = kind.partition(":")
    if kind_of_run == "loss":
        body[_KEPT_LOSS] = _read_as_compiled(getattr(original, _KEPT_LOSS))
    else:
        body["forward"] = _made_forward(original, base, kind)
    if kind == _IN_PARTS:
        # Whatever compiles around it, as torch.compile(model) does, has to leave the parts as they were measured.
        body["forward"] = torch.compiler.disable(body["forward"], reason=_WHY_IN_PARTS)
    if kind_of_run == "root":
        body["_apply"] = lambda self, *args, **kwargs: _keep_channels_last(original._apply(self, *args, **kwargs))
    if kind_of_run == "own":
        body |= {name: _read_as_cast(name) for name in names.split(".") if name}
    bases: tuple[type, ...] = (_Made if kind_of_run in ("root", "own", "loss") else _MadeLeaf, original)
    if issubclass(original, _Made):
        bases = (original,)
    return types.new_class(original.__name__, bases, exec_body=lambda space: space.update(body))


def _made_forward(original: Any, base: type, kind: str) -> Any:
    """The ``forward`` of a made class: that of ``original``, through ``_RUN``."""
    run = _RUN[kind.partition(":")[0]]
    inner = original.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return run(self, inner, args, kwargs)
        finally:
            # Keeps a graph break out of here: torch.compile resumes in no try, and leaves this frame to Python from
            # then on. The user's forward then is a frame as it is without a plan; without a break all is one graph.
            pass

    is_layer = kind == "pinned" or (kind == "autocast" and issubclass(base, _LOWERED_BY_AUTOCAST))
    if not is_layer or not base.__module__.startswith("torch."):  # without a plan torch's layers are no frames either
        forward = _with_own_code(forward)
    return functools.wraps(inner)(forward)


def _original_class(cls: type) -> type | None:
    """The class that ``cls`` was made from or swapped in for; None for a class that is not ours."""
    if "_amptune_made" in cls.__dict__:
        return cls.__dict__["_amptune_original"]  # type: ignore[no-any-return]
    return cls.__bases__[1] if cls in _PLANNED or cls is PlannedFp8Linear else None


def base_class(cls: type) -> type:
    """The user's or torch's class that a planned class was made from; a class that is not ours is its own."""
    while (original := _original_class(cls)) is not None:
        cls = original
    return cls


def _device_type(inputs: Any, module: nn.Module | None = None) -> str:
    """Of the first tensor in ``inputs``, else of the first parameter of ``module``."""
    tensors = tensors_in(inputs) or list(module.parameters() if module is not None else ())
    return tensors[0].device.type if tensors else "cpu"


def _run_region(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A module in an autocast region of its own; in float32, with autocast off and 16-bit inputs cast up."""
    dtype = module._amptune.dtype
    if dtype == torch.float32:
        args, kwargs = _map_tensors(_upcast, (args, kwargs))
        with _without_autocast((args, kwargs), module):
            return inner(module, *args, **kwargs)
    device_type = _device_type((args, kwargs), module)
    if isinstance(module, nn.RNNBase) and device_type == "cuda":
        return run_rnn(module, inner, args, kwargs)
    if isinstance(module, _LOWERED_BY_AUTOCAST):
        args, kwargs = cast_all((args, kwargs), dtype)
    result = _call_under_autocast(device_type, dtype, inner, module, args, kwargs)
    return cast_all(result, dtype) if module._amptune.is_leaf else result


def run_rnn(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An RNN with its weights cast here: autocast runs cuDNN's RNNs in float16, whatever dtype it is asked for."""
    dtype = module._amptune.dtype
    args, kwargs = cast_all((args, kwargs), dtype)
    weights = module._flat_weights
    casts = _reusable_casts()
    module._flat_weights = [_weight(weight, dtype, casts) for weight in weights]
    try:
        with _without_autocast(weights[0]), warnings.catch_warnings():
            # The casts are separate tensors; cuDNN says at every call that it packs them.
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
            return inner(module, *args, **kwargs)
    finally:
        module._flat_weights = weights


def _call_under_autocast(
    device_type: str, dtype: torch.dtype, inner: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    counted = not torch.compiler.is_compiling()
    if counted:
        _state.regions += 1
    try:
        # Autocast's own cache of weight casts does not ask for dtype or grad mode.
        with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
            return inner(module, *args, **kwargs)
    finally:
        if counted:
            _state.regions -= 1


def _run_pinned(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A module without parameters: computes in its format, gives back the promoted dtype of its inputs."""
    dtype = module._amptune.dtype
    if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
        (x,) = args
        args, back = (_cast(x, dtype),), x.dtype if x.is_floating_point() else None
    elif isinstance(module, nn.CrossEntropyLoss) and not _is_compiling() and F.cross_entropy in _raising:
        return inner(module, *args, **kwargs)
    else:
        casts = _Casts(functools.partial(_cast, dtype=dtype))
        args, kwargs = _map_arguments(casts, args, kwargs)
        back = casts.promoted
    if _is_any_autocast_enabled():
        with _without_autocast((args, kwargs)):
            result = inner(module, *args, **kwargs)
    else:
        result = inner(module, *args, **kwargs)
    if isinstance(module, nn.modules.loss._Loss):
        return result
    if isinstance(result, Tensor):
        return _cast_back(result, back)
    return _map_tensors(functools.partial(_cast_back, dtype=back), result)


def _run_root(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The outermost forward: weight casts are reused inside it, and its outputs get the plan's output format.

    A single FP16 number that it returns is a loss, and is given back in float32: times a loss scale of 65536 it would
    overflow, whatever it is.
    """
    root: _Root = module._amptune_root
    if root.compiles_loss and not _is_compiling() and not _is_within_compiled():
        run = _run_awaiting_loss if root.awaits_loss and module.training and _is_grad_enabled() else _run_planned
        with losses_compiled(root.backend):
            return run(module, root, inner, args, kwargs)
    return _run_planned(module, root, inner, args, kwargs)


def _run_awaiting_loss(
    module: Any, root: _Root, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The first forward in training of a model whose loss is to be compiled: where it makes none, that is said."""
    before = _state.losses
    result = _run_planned(module, root, inner, args, kwargs)
    await_no_loss(module)
    if _state.losses == before:
        name = base_class(type(module)).__name__
        warnings.warn(
            f"compile_loss=True compiles nothing: {name} made no loss in its first forward in training, neither by a "
            "loss_function that it keeps nor by torch.nn.functional.cross_entropy. Give it the labels, if it makes a "
            'loss of them; @loss_in("fp32", compile=True) compiles a loss function outside of it.',
            stacklevel=7 if _IN_PARTS in type(module)._amptune_made[1] else 6,  # what disables compiling is a call more
        )
    return result


def await_no_loss(model: nn.Module) -> None:
    """Leave out that warning: the caller compiles whichever loss there is, one outside of the model too."""
    model = _unwrap(model)
    root: _Root | None = model.__dict__.get("_amptune_root")
    if root is not None:
        model.__dict__["_amptune_root"] = dataclasses.replace(root, awaits_loss=False)
    for key, hook in model._forward_hooks.items():
        if isinstance(hook, _ApplyLater):
            model._forward_hooks[key] = dataclasses.replace(hook, awaits_loss=False)


def _run_planned(module: Any, root: _Root, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    opens = (
        not torch.compiler.is_compiling() and _state.casts is None and not _in_backward() and not _is_sharded(module)
    )
    if not opens:
        result = inner(module, *args, **kwargs)
    else:
        # What torch.compile left to Python calls some of a group alone: the casts of the others would be for nothing.
        groups = () if _is_within_compiled() else module._amptune_root.groups
        _state.casts, _state.unused, _state.groups = {}, {}, groups
        try:
            result = inner(module, *args, **kwargs)
        finally:
            _state.casts, _state.unused, _state.groups = None, None, ()
    if root.has_late:
        result = _map_tensors(_plain, result)
    return _map_tensors(_raised_scalar, result) if root.output_dtype is None else cast_all(result, root.output_dtype)


def _run_own(module: Any, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward in which the module's own tensors read as casts. Outside of it they are themselves: what initialises,
    loads or averages weights must meet the parameters, and so must the forward of a layer that is read past it."""
    readers = module._amptune_readers or (module,)
    outer = readers[0]._amptune_reads
    _let_read(readers, bool(module._amptune_readers))
    try:
        return inner(module, *args, **kwargs)
    finally:
        _let_read(readers, outer)


def _let_read(readers: Sequence[Any], casts: bool | None) -> None:
    """Whether the tensors of these modules read as casts from now on. None is outside of all forwards: they do in a
    backward, where checkpointing calls methods of a forward again."""
    if _is_compiling():  # which follows the attribute, and no write to the dict behind it
        for reader in readers:
            reader._amptune_reads = casts
    else:
        for reader in readers:
            reader.__dict__["_amptune_reads"] = casts


class _Late(Tensor):
    """A float32 tensor that a module holds, or that its forward makes of such alone: cast where it meets 16 bits.

    What it is in an operation with, if that is not 16-bit, decides what comes out: another such tensor or numbers leave
    one, a float32 tensor leaves a plain one, and so does every cast.
    """

    _low: torch.dtype

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            others = [tensor for tensor in tensors_in((*args, *kwargs.values())) if not isinstance(tensor, _Late)]
            if others and any(tensor.dtype in _HALF for tensor in others):
                args, kwargs = _map_arguments(cls._joined, args, kwargs)
                return function(*args, **kwargs)
            if _is_compiling():
                args, kwargs = _map_arguments(_plain, args, kwargs)
            result = function(*args, **kwargs)
            if others and any(map(_takes_part, others)):
                return result
        if isinstance(result, Tensor):
            return cls._again(result)
        # torch.compile gets some methods first, and calls them afterwards.
        return cls._made_by(result) if callable(result) else _map_tensors(cls._again, result)

    @classmethod
    def _made_by(cls, method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: _map_tensors(cls._again, method(*args, **kwargs))

    @classmethod
    def _again(cls, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, _Late) or tensor.dtype != torch.float32 else tensor.as_subclass(cls)

    @classmethod
    def _joined(cls, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, _Late):
            return tensor
        return _to(tensor, cls._low) if tensor.dim() else _plain(tensor)  # a scalar raises nothing


class _LateInBf16(_Late):
    _low = torch.bfloat16


class _LateInFp16(_Late):
    _low = torch.float16


_HALF = (torch.bfloat16, torch.float16)
LATE_COMPILES = torch.__version__ >= "2.13"
"""Whether torch.compile follows such tensors; 2.11 ends with an error of its own at the first method of one."""
_LATE: dict[torch.dtype, type[_Late]] = {cls._low: cls for cls in (_LateInBf16, _LateInFp16)}
_alias = torch.ops.aten.alias.default


def _takes_part(tensor: Tensor) -> bool:
    """Whether promotion asks for the tensor's dtype: floating, and no scalar."""
    return tensor.is_floating_point() and tensor.dim() > 0


def _plain(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, _Late):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return _alias(tensor)  # type: ignore[no-any-return]  # torch.compile knows no ``as_subclass(Tensor)``


def as_met(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as a function computes with them: ``how="late"`` tensors cast where they meet 16 bits in it."""
    tensors = tensors_in((args, kwargs))
    late = [tensor for tensor in tensors if isinstance(tensor, _Late)]
    if not late or all(tensor.dtype not in _HALF for tensor in tensors):
        return args, kwargs
    return _map_arguments(late[0]._joined, args, kwargs)


def source_of(tensor: Tensor) -> Tensor:
    """The tensor of a module's that a ``how="late"`` one was read from; any other is its own."""
    if not isinstance(tensor, _Late):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor if tensor._base is None else tensor._base


def _read_late(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of a module's, cast where it meets 16 bits; at once where it is of another kind (a DTensor, a fake one),
    and in what a torch.compile makes that cannot follow it."""
    if type(tensor) not in (nn.Parameter, Tensor) or (_is_compiling() and not LATE_COMPILES):
        return _weight(tensor, dtype, None)  # type: ignore[no-any-return]
    late = _LATE.get(dtype) if tensor.dtype == torch.float32 else None
    return tensor if late is None else tensor.as_subclass(late)


def _read_as_cast(name: str) -> property:
    """For a class: its parameter or buffer ``name``, in the plan's format while the module's forward runs."""

    def read(module: Any) -> Any:
        own = module._parameters if name in module._parameters else module._buffers
        tensor = own[name] if name in own else module.__getattr__(name)
        if tensor is None:
            return None
        reads = module._amptune_reads
        if not reads and (reads is not None or _is_compiling() or not _in_backward()):
            return tensor
        site: Site = module._amptune_own[name]
        if site.how == "late":
            return _read_late(tensor, site.dtype)
        return _weight(tensor, site.dtype, _reusable_casts())

    return property(read)


def _raised_scalar(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dim() == 0 and tensor.dtype == torch.float16 else tensor


_RUN: dict[str, Callable[..., Any]] = {"autocast": _run_region, "pinned": _run_pinned, "root": _run_root,
                                        "rms_norm": _run_rms_norm, "linear": _run_linear, "own": _run_own}  # fmt: skip


# --- applying and undoing --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Root:
    """What the root of a planned model remembers; ``awaits_loss`` until the first forward in training."""

    output_dtype: torch.dtype | None
    groups: Sequence[_Group] = ()
    has_late: bool = False
    compiles_loss: bool = False
    awaits_loss: bool = False
    backend: Any = "inductor"


class AppliedPlan:
    """A plan in force on ``model``; ``sites`` is the table by module path, globs resolved."""

    def __init__(self, model: nn.Module, sites: Mapping[str, Site]) -> None:
        self.model = model
        self.sites = dict(sites)

    def undo(self) -> None:
        """Give the model back as it was: classes, hooks, strides, attributes. Parameters keep what they learned."""
        undo_plan(self.model)


def apply_plan(
    model: nn.Module,
    sites: Mapping[str, str | Mapping[str, Any]],
    *,
    channels_last: bool = False,
    output_format: str | None = None,
    parameters: str | None = None,
    compile_loss: bool = False,
    compile_parts: Sequence[str] = (),
    backend: Any = "inductor",
) -> AppliedPlan:
    """Put a precision plan in force on ``model``, in place; one that is in force already is undone first.

    Args:
        model: any module; one wrapped by torch.compile or DistributedDataParallel is unwrapped.
        sites: module path or glob -> "fp32", "bf16", "fp16", "fp8_e4m3:tensorwise" (or another of SCALINGS; Linear
            only), or a dict with the keys ``format``; ``scaling``; ``pad``, a multiple to which a Linear's output
            features or a convolution's channels are padded while computing; ``pad_in``, the same for input features;
            ``strided``, to leave the padded output uncopied; ``how``,
            "autocast" to run the module (a container too) in an autocast region. A path may also be that of a parameter
            or buffer that a class of the user's holds, which its forward then reads as a cast; with ``how="read"`` that
            of a layer, read past the layer (``x @ self.embed.weight.T``); with ``how="late"`` what it makes of it is
            cast where it meets 16 bits. In a glob ``*`` stands
            for one part of a path and ``**`` for any number; one that matches no module matches such tensors, and one
            that ends in a wildcard means modules with parameters. An exact path beats a glob, a longer glob a shorter.
        channels_last: keep the weights of convolutions in channels_last memory format, also through a later ``to``.
        output_format: format of the model's floating outputs.
        parameters: "bf16" casts the model's parameters and buffers to bfloat16, and floating inputs on their way in.
            Undoing the plan leaves them in bfloat16. See ``master_weights`` for the optimizer.
        compile_loss: run the loss that the model makes in its forward under torch.compile: by its ``loss_function``, as
            models of transformers do, or by a cross entropy that it calls. For a loss outside of the model see
            ``loss_in``.
        compile_parts: paths or globs of modules that run under torch.compile, each by itself and in the formats of the
            plan, when they are called. What is around them runs in eager mode, also within a torch.compile of the whole
            model. A copy of the model, or an unpickled one, runs them in eager mode until the plan is applied to it.
        backend: of torch.compile, for the parts and the loss.

    Where lazy layers (``LazyLinear``) lack their parameters, the plan comes into force after the first forward, which
    gives them: that one runs as the user wrote the model.

    Raises:
        ValueError: a path or glob that matches nothing, a format or key that is unknown or does not fit the module.
        RuntimeError: the model is sharded already, its FP8 sites are on a GPU without FP8 products, or torch.compile
            has no such backend.
    """
    model = _unwrap(model)
    _refuse_sharded(model)
    order = _Order(sites, channels_last, output_format, parameters, compile_loss, tuple(compile_parts), backend)
    if any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        undo_plan(model)
        model.register_forward_hook(_ApplyLater(order))
        return AppliedPlan(model, {})
    return _apply_now(model, order)


@dataclasses.dataclass(frozen=True)
class _Order:
    """What ``apply_plan`` was asked for."""

    sites: Mapping[str, str | Mapping[str, Any]]
    channels_last: bool
    output_format: str | None
    parameters: str | None
    compile_loss: bool
    compile_parts: tuple[str, ...]
    backend: Any


@dataclasses.dataclass(frozen=True)
class _ApplyLater:
    """A forward hook that puts a plan in force, and goes."""

    order: _Order
    awaits_loss: bool = True

    def __call__(self, model: nn.Module, _args: Any, _output: Any) -> None:
        _apply_now(model, self.order)
        if not self.awaits_loss:
            await_no_loss(model)


def _apply_now(model: nn.Module, order: _Order) -> AppliedPlan:
    output_format, compile_loss = order.output_format, order.compile_loss
    output_dtype = None if output_format is None else FORMATS[_known("output format", output_format, FORMATS)]
    resolved = _resolve(model, order.sites)
    parts = _parts_of(model, order.compile_parts)
    if parts or compile_loss:
        torch.compile(_apply_now, backend=order.backend)  # one that is not known is refused before anything changes
    if order.parameters is not None:
        _known("format of parameters", order.parameters, ("bf16",))
    undo_plan(model)
    if order.parameters is not None:
        _lower_parameters(model)
    modules = {id(module): (module, resolved[path]) for path, module in _all_modules(model).items() if path in resolved}
    for module, site in modules.values():
        if site.scaling:
            _refuse_fp8_on(next(module.parameters()).device)
        _change_class(module, site)
    _change_holders(model, resolved)
    _turn_off_fast_paths(model)
    if order.channels_last:
        _to_channels_last(model)
    for module in keep_loss(model) if compile_loss else ():
        compile_kept_loss(module, order.backend)
    model.__class__ = _made_class(type(model), _IN_PARTS if parts else "root")
    paths = {path: module for path, module in _all_modules(model).items() if id(module) in modules}
    has_late = any(site.how == "late" for site in resolved.values())
    groups = _groups_of(paths)
    model.__dict__["_amptune_root"] = _Root(output_dtype, groups, has_late, compile_loss, compile_loss, order.backend)
    for part in parts:
        part.__dict__["_amptune_part"] = True
        _compiled_before[part] = part.__dict__.get("_compiled_call_impl")
        compile_part(part, order.backend)
    return AppliedPlan(model, resolved)


def _groups_of(planned: Mapping[str, nn.Module]) -> list[_Group]:
    """Planned modules whose weights are cast together: those of one block, up to a size, each told its group; blocks of
    few small layers share one.

    Not all of a model: gradients of a group arrive together, and DistributedDataParallel sends what has arrived.
    """
    groups: list[_Group] = []
    sizes: list[int] = []
    last: dict[str, int] = {}
    for path, module in planned.items():
        site: Site = module.__dict__["_amptune"]
        is_cast = isinstance(module, _CAST_TOGETHER) or not vars(module).keys().isdisjoint(_TRIED)
        if not is_cast or site.pad or site.pad_in or "_amptune_group" in module.__dict__:
            continue
        block = _block_of(path)
        elements = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        is_small = groups and len(groups[-1].modules) < _FEW_MODULES and sizes[-1] + elements <= _FEW_ELEMENTS
        if block not in last and is_small:
            last[block] = len(groups) - 1
        if block not in last or sizes[last[block]] + elements > _GROUP_ELEMENTS:
            last[block] = len(groups)
            groups.append(_Group([]))
            sizes.append(0)
        sizes[last[block]] += elements
        members = groups[last[block]].modules
        module.__dict__["_amptune_group"] = last[block], 2 * len(members)
        members.append(module)
    return groups


def _block_of(path: str) -> str:
    """The path up to its last block number, without the module's own name: blocks.3.attn.qkv -> blocks.3."""
    parts = path.split(".")[:-1]
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[-1] + 1] if numbers else parts)


def _all_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every path of every module: a shared one has several. One under torch.compile has the path of its wrapper."""
    return {
        ".".join(part for part in path.split(".") if part != "_orig_mod"): module
        for path, module in model.named_modules(remove_duplicate=False)
    }


def undo_plan(model: nn.Module) -> None:
    """Undo the plan in force on ``model``, if any. A copy or an unpickled model can be undone like the original."""
    model = _unwrap(model)
    for module in model.modules():
        state = module.__dict__
        if not state.keys().isdisjoint(("_amptune", "_amptune_own", "_amptune_loss", "_amptune_root")):
            base = base_class(type(module))
            if base is type(module):
                raise RuntimeError(f"undo the plan before {type(module).__name__} replaces the module's class")
            module.__class__ = base
        if "_amptune_stride" in state:
            _restore_strides(module)
        if "_amptune_part" in state:
            _let_go(module)
        if "_amptune_nested" in state:
            module.use_nested_tensor = state["_amptune_nested"]
        for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _ApplyLater)]:
            del module._forward_hooks[key]
        hooks = [key for key, hook in module._forward_pre_hooks.items() if hook in (_no_fast_path, _lower_inputs)]
        for key in hooks:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for name in [name for name in state if name.startswith("_amptune")]:
            del state[name]


def _unwrap(model: nn.Module) -> nn.Module:
    if hasattr(model, "_orig_mod"):
        return _unwrap(model._orig_mod)  # type: ignore[arg-type]
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _unwrap(model.module)
    return model


def _is_sharded(module: nn.Module) -> bool:
    names = {cls.__name__ for cls in type(module).__mro__}
    return not names.isdisjoint({"FSDPModule", "FullyShardedDataParallel"})


def _refuse_sharded(model: nn.Module) -> None:
    if any(map(_is_sharded, model.modules())):
        raise RuntimeError("the model is sharded (FSDP): apply the plan before fully_shard changes its classes")


def _change_class(module: nn.Module, site: Site) -> None:
    if type(module) in SWAPS and site.how == "swap":
        cls = PlannedFp8Linear if site.scaling else SWAPS[type(module)]
    elif site.how == "swap" and (epsilon := rms_epsilon(module)) is not None:
        cls = _made_class(type(module), "rms_norm")
        module.__dict__["_amptune_epsilon"] = epsilon
    elif site.how == "swap" and (layout := linear_layout(module)) is not None:
        cls = _made_class(type(module), "linear")
        module.__dict__["_amptune_layout"] = layout
    elif site.how == "swap":
        cls = _made_class(type(module), "pinned")
    else:
        cls = _made_class(type(module), "autocast")
    module.__class__ = cls
    module.__dict__["_amptune"] = site


def own_tensors(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """``state_dict`` name of each floating parameter and buffer that a forward of the user's can read -> the module
    that has it, and its name there: those of the user's class, of its ParameterLists and of its layers."""
    modules = _all_modules(model)
    return {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in modules.items()
        if _reader_of(path, modules) is not None
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and tensor.is_floating_point()
    }


_LISTS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _reader_of(path: str, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The module of the user's whose forward may read the tensors that the module at ``path`` has; None where only
    torch's do. Lists have no forward, and a layer's is torch's: what holds them reads them."""
    module = modules[path]
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if not _is_of_torch(module):
        return module
    above = path.rpartition(".")[0]
    if not path or nn.utils.parametrize.is_parametrized(module):
        return None
    return None if is_layer(modules[above]) else _reader_of(above, modules)


def is_layer(module: nn.Module) -> bool:
    """Whether the module is one of torch's with a forward, which reads its tensors itself."""
    return _is_of_torch(module) and base_class(type(module)) not in _LISTS


def _is_of_torch(module: nn.Module) -> bool:
    return base_class(type(module)).__module__.startswith("torch.")


def _change_holders(model: nn.Module, sites: Mapping[str, Site]) -> None:
    """Make the modules read the planned ones of their own tensors as casts, by whichever name."""
    modules, tensors = _all_modules(model), own_tensors(model)
    planned = {id(held_tensor(*tensors[path])): site for path, site in sites.items() if site.how in _HELD}
    held: dict[int, tuple[Any, dict[str, Site]]] = {}
    readers: dict[int, list[Any]] = {}
    for path, (module, name) in tensors.items() if planned else ():
        site = planned.get(id(held_tensor(module, name)))
        if site is None:
            continue
        reader: Any = _reader_of(path.rpartition(".")[0], modules)
        held.setdefault(id(reader), (reader, {}))
        held.setdefault(id(module), (module, {}))[1][name] = site
        if all(each is not module for each in readers.setdefault(id(reader), [reader])):
            readers[id(reader)].append(module)
    for module, own in held.values():
        module.__class__ = _made_class(type(module), f"own:{'.'.join(sorted(own))}")
        module.__dict__.update(_amptune_own=own, _amptune_reads=None, _amptune_readers=readers.get(id(module), []))


def held_tensor(module: nn.Module, name: str) -> Tensor:
    """The module's own parameter or buffer, as it is whatever the plan says."""
    found = module._parameters.get(name)
    return found if found is not None else module._buffers[name]  # type: ignore[return-value]


# --- parts under torch.compile ---------------------------------------------------------------------------------------

_codes: dict[Any, types.CodeType] = {}
_compiled_before: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
"""How the user had compiled a part, by ``block.compile()``; None for one that was in eager mode."""
_IN_PARTS = "root:in_parts"
"""The kind of root whose forward no torch.compile around it follows."""
_WHY_IN_PARTS = (
    "its precision plan compiles parts of this model by themselves, and the rest runs in eager mode: "
    "leave fullgraph=True out, or compile_parts of apply_plan, and call undo_plan(model) before the model is exported"
)


def _parts_of(model: nn.Module, keys: Iterable[str]) -> list[nn.Module]:
    """The modules that paths and globs name, each once."""
    modules = {path: module for path, module in _all_modules(model).items() if path}
    found: dict[int, nn.Module] = {}
    for key in keys:
        paths = [key] if key in modules else match_paths(key, modules)
        if not paths:
            raise ValueError(f"the part to compile {key!r} is not in the model{_nearest(key, modules)}")
        called = [path for path in paths if _has_forward(modules[path])]
        if not called:
            listed = type(modules[paths[0]]).__name__
            raise ValueError(f"the part to compile {key!r} is a {listed}, which is never called: name what it holds")
        found |= {id(modules[path]): modules[path] for path in called}
    return list(found.values())


def _has_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) or type(module).forward is not nn.Module.forward


REGIONS_APART = torch.__version__ >= "2.13"
"""Whether torch's cache of compiled code tells autocast in BF16 from autocast in FP16."""


def compile_part(module: nn.Module, backend: Any = "inductor") -> None:
    """Run the module under torch.compile from now on, by itself.

    Parts of one class, with equal formats and parameters, share their code, and with it what was compiled. Others have
    not even the name of their code in common: torch compiles eight versions of a code at most, and once it met two
    sizes, even under another code of one name and line, it compiles the next for any size, which is slower.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    alike = tuple(
        (path, type(part), part.__dict__.get("_amptune"), str(part.__dict__.get("_amptune_own")))
        for path, part in module.named_modules()
    ) + tuple(tuple(parameter.shape) for parameter in module.parameters())
    if alike not in _codes:
        _codes[alike] = call.__code__.replace(co_name=f"part_{len(_codes)}")
    call.__code__ = _codes[alike]
    module._compiled_call_impl = torch.compile(call, backend=backend if REGIONS_APART else _WithoutCache(backend))


class _WithoutCache:
    """A backend that, in a region of autocast, takes no code from torch's cache on disk: that would give it the code of
    another region. Asked when something is compiled, and not in each call, which would take longer than some blocks.
    Equal for equal backends, which need no hash: torch compiles anew for another one.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        compiler = torch._dynamo.lookup_backend(self._backend)
        if not _is_any_autocast_enabled():
            return compiler(graph, inputs, **options)
        with torch._functorch.config.patch(enable_autograd_cache=False):
            return compiler(graph, inputs, **options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WithoutCache) and bool(self._backend == other._backend)

    __hash__ = None  # type: ignore[assignment]


def _let_go(module: nn.Module) -> None:
    """Run a part as the user had it. A copy has none of what was compiled."""
    module.__dict__.pop("_compiled_call_impl", None)
    if (compiled := _compiled_before.pop(module, None)) is not None:
        module._compiled_call_impl = compiled


# --- the loss that a model makes -------------------------------------------------------------------------------------

_KEPT_LOSS = "loss_function"
"""The property of transformers' models that says, and sets, what makes their loss of logits and labels."""


def keep_loss(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that make their loss by a ``loss_function`` that can be set."""
    kept = getattr(type(model), _KEPT_LOSS, None)
    if isinstance(kept, property) and kept.fset is not None:
        return [model]
    return [found for child in model.children() for found in keep_loss(child)]


def compile_kept_loss(module: nn.Module, backend: Any = "inductor") -> None:
    """Have ``module`` read its ``loss_function`` as a compiled one. ``undo_plan`` takes it back."""
    if "_amptune_loss" not in module.__dict__:
        module.__class__ = _made_class(type(module), "loss")
    module.__dict__["_amptune_loss"] = backend


def _read_as_compiled(kept: property) -> property:
    def read(module: Any) -> Any:
        function = kept.fget(module)  # type: ignore[misc]
        is_compiled = _is_compiling() or _is_within_compiled()
        return function if is_compiled else _compiled_loss(function, module._amptune_loss)

    return property(read, kept.fset, kept.fdel, kept.__doc__)


@contextlib.contextmanager
def losses_compiled(backend: Any = "inductor") -> Iterator[None]:
    """While the block runs, the cross entropy that a forward calls by its name in ``torch.nn.functional``, as
    ``nn.CrossEntropyLoss`` does, is compiled, and takes 16-bit logits to float32 in there.

    Another thread's call meets the compiled one too, which computes the same.
    """
    called = F.cross_entropy
    if called in _raising:
        yield
        return
    F.cross_entropy = _compiled_cross_entropy(called, backend)
    try:
        yield
    finally:
        F.cross_entropy = called


_raising: set[Any] = set()
"""What stands for the cross entropy while a loss is compiled: a copy of its logits in float32 would be for nothing."""


@functools.cache  # what is compiled around it would be compiled anew for another function
def _compiled_cross_entropy(called: Any, backend: Any) -> Callable[..., Any]:
    @functools.wraps(called)
    def run(*args: Any, **kwargs: Any) -> Any:
        # In what is compiled around it, it is part of the graph, which calls it by its name while it is traced.
        if _is_compiling() or type(args[0] if args else kwargs.get("input")) is not Tensor:
            return called(*args, **kwargs)
        F.cross_entropy = called  # this graph calls it by its name too
        try:
            return _compiled_loss(called, backend, raises=True)(*args, **kwargs)
        finally:
            F.cross_entropy = run

    _raising.add(run)
    return run


_compiled_losses: dict[tuple[Any, Any, bool], Callable[..., Any]] = {}


def _compiled_loss(function: Any, backend: Any, *, raises: bool = False) -> Callable[..., Any]:
    """``function`` under torch.compile, the same each time: what it makes of the logits, such as a copy of them in
    FP32, then is never in memory as a whole. It takes 16-bit inputs to float32 itself where ``raises`` says so."""
    _state.losses += 1
    if (function, backend, raises) not in _compiled_losses:

        def loss(*args: Any, **kwargs: Any) -> Any:
            if raises:
                args, kwargs = _map_tensors(_upcast, (args, kwargs))
            return function(*args, **kwargs)

        _compiled_losses[function, backend, raises] = _in_place_of(function, loss, backend)
    return _compiled_losses[function, backend, raises]


def _no_fast_path(module: nn.Module, args: Any) -> None:
    """A hook that does nothing: TransformerEncoderLayer skips its children in eval mode unless it finds a hook."""


def _turn_off_fast_paths(model: nn.Module) -> None:
    for module in model.modules():
        if not isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
            continue
        if not any("_amptune" in part.__dict__ for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.register_forward_pre_hook(_no_fast_path)
        elif hasattr(module, "use_nested_tensor"):
            module.__dict__["_amptune_nested"] = module.use_nested_tensor
            module.use_nested_tensor = False


def _to_channels_last(model: nn.Module) -> None:
    seen: set[int] = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if not isinstance(module, nn.modules.conv._ConvNd) or weight is None or id(weight) in seen:
            continue
        seen.add(id(weight))
        if weight.dim() in _CHANNELS_LAST:
            module.__dict__["_amptune_stride"] = weight.stride()
    _keep_channels_last(model)


def _keep_channels_last(model: nn.Module) -> nn.Module:
    """Lays the weights of convolutions out so, at first and after Module.to and its like: a memory format that the
    user's file sets later must not undo the plan's.

    By ``to``, as the strides of a 1 x 1 weight say which one it is in: ``is_contiguous`` holds for both. torch takes
    the layout of a convolution from the strides of its image and its weight, and those of a 1 x 1 image may not tell.
    """
    for module in model.modules():
        weight: Any = module._parameters.get("weight") if "_amptune_stride" in module.__dict__ else None
        if weight is not None:
            laid_out = weight.data.to(memory_format=_CHANNELS_LAST[weight.dim()])
            if laid_out.stride() != weight.stride():
                weight.data = laid_out
    return model


def _restore_strides(module: nn.Module) -> None:
    weight: Any = module._parameters["weight"]
    stride = module.__dict__["_amptune_stride"]
    for holder in (weight, weight.grad):
        if holder is not None:
            data = torch.empty_strided(holder.shape, stride, dtype=holder.dtype, device=holder.device)
            holder.data = data.copy_(holder.data)


# --- the table -------------------------------------------------------------------------------------------------------


def match_paths(pattern: str, paths: Iterable[str]) -> list[str]:
    """The module paths that a key of the table matches: ``*``, ``?`` and ``[..]`` within a part, ``**`` any parts."""
    parts = tuple(pattern.split("."))
    return [path for path in paths if _parts_match(parts, tuple(path.split(".")))]


def _parts_match(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_parts_match(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _parts_match(pattern[1:], path[1:])


def _is_glob(key: str) -> bool:
    return any(character in key for character in "*?[")


def _resolve(model: nn.Module, sites: Mapping[str, str | Mapping[str, Any]]) -> dict[str, Site]:
    """The table with globs resolved to paths, keys of greater precedence last, follow and source left out."""
    modules, tensors = _all_modules(model), own_tensors(model)
    found: dict[str, Site] = {}
    for key in sorted(sites, key=lambda key: (not _is_glob(key), len(key))):
        entry = _entry(key, sites[key])
        paths = [key] if key in modules or key in tensors else _paths_of_glob(key, entry, modules, tensors)
        for path in paths:
            is_module = path in modules
            found[path] = (
                _site(path, modules[path], entry, exact=path == key)
                if is_module
                else _tensor_site(path, tensors[path][0], entry)
            )
    _check_shared({path: site for path, site in found.items() if path in modules}, modules)
    _check_held(found, modules)
    return {path: site for path, site in found.items() if site.how in ("swap", "autocast", *_HELD)}


def _paths_of_glob(
    key: str,
    entry: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, tuple[nn.Module, str]],
) -> list[str]:
    """Modules that a glob matches; where there is none, their own tensors, and with ``how`` those of layers."""
    paths = [path for path in match_paths(key, modules) if path and _PARAMETRIZED not in path.split(".")]
    if entry.get("how") in _HELD:
        paths = []
    elif entry.get("how") == "autocast":
        paths = [path for path in paths if not isinstance(modules[path], _BYPASSED)]
    else:
        paths = [path for path in paths if how_to_apply(modules[path])]
        if _is_glob(key.rpartition(".")[2]):  # "blocks.*" means layers, and hardly the dropout among them
            paths = [path for path in paths if next(modules[path].parameters(), None) is not None]
    named = entry.get("how") in _PAST_LAYERS
    held = (path for path, (module, _) in tensors.items() if named or not is_layer(module))
    if _is_glob(key) and (paths := paths or match_paths(key, held)):
        return paths
    raise ValueError(f"the plan names {key!r}, which the model does not have{_nearest(key, [*modules, *tensors])}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known(what: str, name: Any, known: Iterable[str]) -> str:
    names = list(known)
    if name not in names:
        raise ValueError(f"{what} {name!r} is not one of {', '.join(names)}{_nearest(str(name), names)}")
    return str(name)


_ENTRY_KEYS = ("format", "pad", "pad_in", "strided", "how", "scaling", "why")


def _entry(key: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    entry = _spelled(value) if isinstance(value, str) else dict(value)
    for name in entry:
        _known(f"site {key!r}: key", name, _ENTRY_KEYS)
    if "format" not in entry:
        raise ValueError(f"site {key!r}: the key 'format' is missing")
    _known(f"site {key!r}: format", entry["format"], (*FORMATS, FP8))
    _check_scaling(key, entry)
    if entry.get("how") is not None:
        _known(f"site {key!r}: how", entry["how"], HOW)
    for name in ("pad", "pad_in"):
        pad = entry.get(name) or 0
        if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
            raise ValueError(f"site {key!r}: {name} {pad!r} is not a multiple such as 8 or 64, or 0 for none")
    return entry


def _spelled(text: str) -> dict[str, Any]:
    """ "fp8_e4m3:rowwise" says format and scaling."""
    number_format, colon, scaling = text.partition(":")
    return {"format": number_format, "scaling": scaling} if colon else {"format": number_format}


def _check_scaling(key: str, entry: Mapping[str, Any]) -> None:
    scaling = entry.get("scaling")
    if entry["format"] == FP8 and scaling is None:
        raise ValueError(f"site {key!r}: {FP8} needs a scaling, such as '{FP8}:tensorwise'")
    if scaling is not None:
        _known(f"site {key!r}: scaling", scaling, SCALINGS)
        if entry["format"] != FP8:
            raise ValueError(f"site {key!r}: scaling {scaling!r} is for {FP8}, and the format is {entry['format']}")


def can_pad(module: Any) -> bool:
    """Whether output and input features of ``module`` can be padded while it computes.

    With several groups of channels, zeros would have to stand between the groups.
    """
    base = base_class(type(module))
    return base is nn.Linear or (base in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and module.groups == 1)


def _check_fp8(where: str, module: Any, site: Site) -> None:
    """Raise ValueError unless the module is a Linear whose dimensions, padded, FP8 kernels take."""
    if base_class(type(module)) is not nn.Linear or site.how != "swap":
        raise ValueError(f"{where} cannot compute in FP8, which is for Linear")
    wrong = [
        f"{name}={size}" for name, size in zip("NK", site.padded(module.weight), strict=True) if size % FP8_MULTIPLE
    ]
    if wrong:
        raise ValueError(
            f"{where}: FP8 needs dimensions that are multiples of {FP8_MULTIPLE}, and {', '.join(wrong)}; "
            f"'pad': {FP8_MULTIPLE} pads N, and 'pad_in': {FP8_MULTIPLE} pads K"
        )


def _site(path: str, module: nn.Module, entry: Mapping[str, Any], *, exact: bool) -> Site:
    base = base_class(type(module))
    where = f"site {path!r} ({base.__name__})"
    how = entry.get("how")
    dtype = FORMATS.get(entry["format"], torch.bfloat16)
    if how in ("follow", "source"):
        return Site(entry["format"], dtype, how)
    if "forward" in module.__dict__:
        raise ValueError(f"{where}: its forward was replaced on the instance; apply the plan before that is done")
    possible = how_to_apply(module)
    if how in _HELD:
        raise ValueError(f"{where} is a module, and how={how!r} is for a tensor that a module holds")
    if possible is None and (how != "autocast" or isinstance(module, _BYPASSED)):
        raise ValueError(f"{where} takes no format itself; {_instead_of(path, module)}")
    if how == "swap" and possible != "swap":
        raise ValueError(f"{where} cannot be swapped; leave out 'how', or give it how='autocast'")
    pad, pad_in, how = entry.get("pad") or 0, entry.get("pad_in") or 0, str(how or possible)
    if (pad or pad_in) and not (can_pad(module) and how == "swap"):
        if exact:
            raise ValueError(f"{where}: padding is for Linear, and for convolutions with one group")
        pad = pad_in = 0
    strided, scaling = bool(entry.get("strided")), entry.get("scaling")
    site = Site(entry["format"], dtype, how, pad, strided, scaling, pad_in, is_leaf=possible is not None)
    if site.scaling:
        _check_fp8(where, module, site)
    return site


def _instead_of(path: str, module: nn.Module) -> str:
    """What to do where a module takes no format itself."""
    if isinstance(module, _BYPASSED):
        holder = path.rpartition(".")[0]
        return f"{holder!r} computes with it without calling it, and its format is that of {holder!r}: name that"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript, which runs as it was compiled: leave it out"
    if next(module.children(), None) is not None:
        return "name its children, or give it how='autocast'"
    return "it has nothing that a plan could cast: leave it out"


def _tensor_site(path: str, holder: nn.Module, entry: Mapping[str, Any]) -> Site:
    how = entry.get("how")
    if is_layer(holder) and how not in _PAST_LAYERS:
        hint = f"name {path.rpartition('.')[0]!r}, or give it how='read' where a forward reads it past the layer"
        raise ValueError(f"site {path!r} is a tensor of a layer: {hint}")
    if how not in (None, *_HELD) or (how == "read" and not is_layer(holder)):
        raise ValueError(f"site {path!r} is a tensor of a module: leave out 'how', or give it how='late'")
    if entry["format"] == FP8 or entry.get("pad") or entry.get("pad_in"):
        raise ValueError(f"site {path!r} is a tensor of a module: it is cast to fp32, bf16 or fp16, and not padded")
    return Site(entry["format"], FORMATS[entry["format"]], how or "own")


def _check_held(found: Mapping[str, Site], modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError where a layer of the user's that the plan gives a format has a tensor named for itself."""
    for path, site in found.items():
        holder = path.rpartition(".")[0]
        if (
            site.how in _HELD
            and holder in found
            and found[holder].is_leaf
            and found[holder].how in ("swap", "autocast")
            and not is_layer(modules[holder])
        ):
            raise ValueError(f"site {path!r}: {holder!r} has a format, which its tensors follow; name one of the two")


def _check_shared(found: Mapping[str, Site], modules: Mapping[str, nn.Module]) -> None:
    first: dict[int, str] = {}
    for path, site in found.items():
        other = first.setdefault(id(modules[path]), path)
        if found[other] != site:
            raise ValueError(f"{other!r} and {path!r} are one module, and the plan gives it two formats")


# --- parameters in bfloat16 ------------------------------------------------------------------------------------------


def _lower_parameters(model: nn.Module) -> None:
    """What ``parameters="bf16"`` does: the parameters stay the same objects."""
    model.to(torch.bfloat16)
    model.register_forward_pre_hook(_lower_inputs, with_kwargs=True)


def _lower_inputs(_module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return cast_all(args, torch.bfloat16), cast_all(kwargs, torch.bfloat16)


def masters_in(number_format: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function that returns an optimizer: it steps on copies in ``number_format``, which is "fp32".

    See ``master_weights``.
    """
    _known("format of master weights", number_format, ("fp32",))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def make_optimizer(*args: Any, **kwargs: Any) -> Any:
            return master_weights(function(*args, **kwargs))

        return make_optimizer

    return decorate


def master_weights(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let ``optimizer`` step on float32 copies of its 16-bit parameters, in place; returns the optimizer.

    A step takes each gradient over to the float32 copy, and rounds what it made of the copy into the parameter: an
    update too small for bfloat16 adds up instead of being lost. ``state_dict`` of the optimizer has the copies under
    "master_weights". A parameter that was written to between two steps, as by ``load_state_dict`` of the model, is
    copied anew. Call it before the first step, and not with an enabled GradScaler: its look at the gradients of the
    optimizer's parameters would find none.
    """
    if "_amptune_masters" not in optimizer.__dict__:
        optimizer.__dict__["_amptune_masters"] = _Masters(optimizer)
    return optimizer


def masters_of(optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Each parameter and its float32 copy; empty without ``master_weights``."""
    masters = optimizer.__dict__.get("_amptune_masters")
    return [] if masters is None else list(zip(masters.parameters, masters.copies, strict=True))


class _Masters:
    """The float32 copies of an optimizer's parameters, kept up by hooks of the optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.parameters: list[Tensor] = []
        self.copies: list[Tensor] = []
        for group in optimizer.param_groups:
            group["params"] = [self._copy_of(parameter, optimizer.state) for parameter in group["params"]]
        self.versions = [parameter._version for parameter in self.parameters]
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)
        zero_grad = optimizer.zero_grad

        def zero_all(set_to_none: bool = True) -> None:
            zero_grad(set_to_none)
            for parameter in self.parameters:
                parameter.grad = None

        optimizer.zero_grad = zero_all  # type: ignore[method-assign]

    def _copy_of(self, parameter: Tensor, state: Any) -> Tensor:
        """The copy, which takes over what an optimizer has noted of the parameter when it was made."""
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        raised = parameter.detach().float()
        self.parameters.append(parameter)
        self.copies.append(raised)
        if parameter in state:
            state[raised] = cast_all(state.pop(parameter), torch.float32)
        return raised

    @torch.no_grad()
    def _before_step(self, _optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(value is not None for value in (*args[1:], kwargs.get("closure"))):
            raise RuntimeError("master_weights: a closure computes gradients within the step, after they were copied")
        for index, (parameter, raised) in enumerate(zip(self.parameters, self.copies, strict=True)):
            if raised.device != parameter.device:
                raised.data = raised.data.to(parameter.device)
            if parameter._version != self.versions[index]:
                raised.copy_(parameter)
            if parameter.grad is not None:
                raised.grad = parameter.grad.to(raised.dtype)
                parameter.grad = None  # one by one, so that both are there of a single parameter at most

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self.parameters:
            torch._foreach_copy_(self.parameters, self.copies)
        for raised in self.copies:
            raised.grad = None
        self.versions = [parameter._version for parameter in self.parameters]

    def _save(self, _optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        return state | {"master_weights": list(self.copies)}

    @torch.no_grad()
    def _load(self, _optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        for index, saved in enumerate(state.get("master_weights", ())):
            self.copies[index].copy_(saved)
            self.parameters[index].copy_(saved)
            self.versions[index] = self.parameters[index]._version
        return {key: value for key, value in state.items() if key != "master_weights"}


# --- process-wide ----------------------------------------------------------------------------------------------------


def set_backend_flags(*, tf32: bool) -> Callable[[], None]:
    """Let float32 matrix products and convolutions use TF32, or forbid it; returns a function that restores.

    Process-wide, and read by backward when it runs: set it once, before training.
    """
    backends: Any = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn)
    before = [(backend, backend.fp32_precision) for backend in (backends.cuda.matmul, *convolutions)]
    products = _answer(torch.get_float32_matmul_precision) or ("high" if before[0][1] == "tf32" else "highest")
    allowed = _answer(lambda: bool(backends.cudnn.allow_tf32))

    def restore() -> None:
        torch.set_float32_matmul_precision(products)
        if allowed is not None:
            backends.cudnn.allow_tf32 = allowed
        for backend, precision in before:
            # With "none" it follows torch.backends.fp32_precision, which may be where the user's setting came from.
            for said in ("none", precision):
                if backend.fp32_precision != precision:
                    backend.fp32_precision = said

    # The older settings first: they keep the older getters working in the user's libraries.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    backends.cudnn.allow_tf32 = tf32
    for backend in convolutions:  # allow_tf32 = False alone is overruled by torch.backends.fp32_precision = "tf32"
        backend.fp32_precision = "tf32" if tf32 else "ieee"
    return restore


def _answer(getter: Callable[[], _T]) -> _T | None:
    """What an older getter says; None where it refuses, since the user set the newer fp32_precision."""
    try:
        return getter()
    except RuntimeError:
        return None


def require(version: str) -> None:
    """Raise RuntimeError unless this runtime is the one (major and minor version) that a patched file was made for."""
    if version.split(".")[:2] != __version__.split(".")[:2]:
        raise RuntimeError(
            f"this file was patched for amptune runtime {version}, but {__file__} is {__version__}: "
            "put the amptune_runtime.py that was written with it beside it, or patch it again"
        )


# --- torch.compile ---------------------------------------------------------------------------------------------------


def _with_own_code(function: Any) -> Any:
    """``function``, whose code torch.compile knows from no other: it may be a frame of its own, and what was compiled
    or given up for one closure says nothing of the next."""
    function.__code__ = function.__code__.replace()
    return function


def _run_as_they_are(codes: Iterable[types.CodeType]) -> None:
    """Have torch.compile follow these functions from the code that calls them, and compile none by itself.

    After a graph break Python calls them, and each would be a graph of a few ops whose guards take longer than they.
    """
    compiler: Any = torch._C._dynamo.eval_frame
    try:
        strategy = compiler._FrameExecStrategy(compiler._FrameAction.SKIP, compiler._FrameAction.DEFAULT)
        for code in codes:
            compiler.set_code_exec_strategy(code, strategy)
    except AttributeError:  # in no torch that is known; the numbers are the same
        return


def _functions_in(code: types.CodeType) -> Iterable[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _functions_in(constant)


_compiled_by_us = {function.__code__ for function in _LOWER.values()}
_run_as_they_are(code for code in _functions_in(sys._getframe().f_code) if code not in _compiled_by_us)

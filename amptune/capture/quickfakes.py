"""Fake tensors made by what was learnt before: an op gives operands of the same shapes the same result.

Each op on a fake tensor goes through some hundred Python calls of torch, and a loop over the steps of a sequence makes
the same few ops ten thousand times. What torch gave for an op the first time is kept as shapes, strides and dtypes, and
later results are made of that. Autograd lies above this: views, versions and gradients are torch's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor, FakeTensorMode

_META = torch.device("meta")
_ASKS_DEVICE = torch.ops.prim.device.default
_UNLIKE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)
"""Tags of ops whose results depend on more than the shapes of their operands, or that change an operand's own shape."""
_BY_STORAGE = frozenset({"as_strided", "set_", "resize_", "resize_as_", "lift", "lift_fresh"})
"""Ops that look at the whole storage of an operand, or make constants."""
_GIVE_VIEWS = frozenset({"_unsafe_view", "_reshape_alias", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"})
"""Ops that give views though their schemas do not say so."""
_LITERALS = frozenset({type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format})
_NUMBERS = frozenset({int, float, bool, complex})
_Key = tuple[Any, ...]
_Ask = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """An op whose result can be known: whether it gives views, and whether it is pointwise, so that of a number among
    its arguments only the type counts."""

    gives_views: bool
    is_pointwise: bool


@dataclasses.dataclass(frozen=True)
class _Result:
    """How to make one tensor that an op gives.

    Attributes:
        same: index of the argument that it is, for an op in place; ``None`` for a new tensor.
        shape, stride, dtype: of a new tensor.
        viewed: index of the argument that a new tensor is a view of.
        offset: how far the view begins behind the beginning of that argument, in elements.
        device: that a new tensor stands for.
        state: what torch keeps beside the tensor: that device, and the mode.
    """

    same: int | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    viewed: int | None = None
    offset: int = 0
    device: torch.device = _META
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _UnknownError(Exception):
    """A call whose result does not follow from what is known of its arguments."""


class QuickFakes:
    """Answers for the ops on the fake tensors of one mode, and asks torch for those that are new.

    Attributes:
        learnt: ops that torch was asked for, and that can be answered for from then on.
        repeated: ops that were answered for.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self.learnt = self.repeated = 0
        self._mode = mode
        self._known: dict[_Key, tuple[type, tuple[_Result, ...]] | None] = {}

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Answer for the ops inside."""
        fake_class: Any = FakeTensor
        original, ask = vars(fake_class)["__torch_dispatch__"], fake_class.__torch_dispatch__

        def dispatch(cls: type, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is _ASKS_DEVICE and type(args[0]) is FakeTensor:
                return args[0].device
            return self._dispatch(ask, func, types, args, kwargs or {})

        fake_class.__torch_dispatch__ = classmethod(dispatch)
        try:
            yield
        finally:
            fake_class.__torch_dispatch__ = original

    def _dispatch(self, ask: _Ask, func: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kind = _kind_of(func)
        key = None if kind is None or self._mode.in_kernel_invocation else self._key(func, kind, args, kwargs)
        if kind is None or key is None:
            return ask(func, types, args, kwargs)
        if key not in self._known:
            result = ask(func, types, args, kwargs)
            self._known[key] = entry = _description(kind, args, kwargs, result)
            self.learnt += entry is not None
            return result
        entry = self._known[key]
        if entry is None:
            return ask(func, types, args, kwargs)
        self.repeated += 1
        return _made(entry, args)

    def _key(self, func: Any, kind: _Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Key | None:
        """What the result depends on; ``None`` where it may be more than the arguments say."""
        parts: list[Any] = [func, torch.get_default_dtype(), torch.is_inference_mode_enabled()]
        try:
            for value in args:
                self._add(parts, value, kind)
            for name, value in kwargs.items():
                parts.append(name)
                self._add(parts, value, kind)
        except _UnknownError:
            return None
        return tuple(parts)

    def _add(self, parts: list[Any], value: Any, kind: _Kind) -> None:
        cls = type(value)
        if cls is FakeTensor:
            is_known = value.fake_mode is self._mode and value.layout is torch.strided
            if not is_known or value.constant is not None or value._has_symbolic_sizes_strides:
                raise _UnknownError
            parts += (value.shape, value.stride(), value.dtype, value.device, value.requires_grad, _key_set(value))
        elif cls in _NUMBERS:
            parts += (cls, None if kind.is_pointwise else value)  # 1 and 1.0 are equal, and give different dtypes
        elif cls in _LITERALS:
            parts.append(value)
        elif cls is list or cls is tuple:
            parts += (cls, len(value))
            for each in value:
                self._add(parts, each, kind)
        else:  # real tensors, symbolic sizes, generators
            raise _UnknownError


@functools.cache
def _kind_of(func: Any) -> _Kind | None:
    """``None`` for an op whose results do not follow from the shapes of its operands."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return None
    name = func._schema.name.partition("::")[2]
    if name in _BY_STORAGE or any(tag in func.tags for tag in _UNLIKE):
        return None
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if func.is_view and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
        return None  # a view of some operands, and a copy of others
    return _Kind(func.is_view or name in _GIVE_VIEWS, torch.Tag.pointwise in func.tags)


def _description(
    kind: _Kind, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> tuple[type, tuple[_Result, ...]] | None:
    """How to make such a result again; ``None`` where that is not what torch gave."""
    results = _several(result)
    operands = [*args, *kwargs.values(), *(each for value in args if isinstance(value, list | tuple) for each in value)]
    try:
        found = tuple(_result(each, kind, args, operands) for each in results)
    except _UnknownError:
        return None
    entry = type(result), found
    try:
        made = _several(_made(entry, args))
    except Exception:  # a release of torch that keeps its fakes in another way: it is asked each time
        return None
    alike = all(_looks(a) == _looks(b) for a, b in zip(made, results, strict=True))
    return entry if alike else None


def _result(tensor: Any, kind: _Kind, args: Sequence[Any], operands: Sequence[Any]) -> _Result:
    if type(tensor) is not FakeTensor or tensor.constant is not None or tensor.layout is not torch.strided:
        raise _UnknownError
    for place, value in enumerate(args):
        if value is tensor:
            return _Result(same=place)
    sharing = [value for value in operands if _share(value, tensor)]
    if any(value.dtype != tensor.dtype for value in sharing):
        raise _UnknownError  # offsets are counted in other elements than those of what it is a view of
    viewed = next((place for place, value in enumerate(args) if _share(value, tensor)), None)
    if len(sharing) != kind.gives_views or (viewed is None) == kind.gives_views:
        raise _UnknownError
    offset = 0 if viewed is None else int(tensor.storage_offset()) - args[viewed].storage_offset()
    shape, stride, device = tuple(tensor.shape), tensor.stride(), tensor.fake_device
    return _Result(None, shape, stride, tensor.dtype, viewed, offset, device, dict(vars(tensor)))


def _made(entry: tuple[type, tuple[_Result, ...]], args: Sequence[Any]) -> Any:
    kind, results = entry
    if kind is FakeTensor:
        return _tensor(results[0], args)
    return kind(_tensor(each, args) for each in results)


def _tensor(result: _Result, args: Sequence[Any]) -> Any:
    if result.same is not None:
        return args[result.same]
    held = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device=_META)
    if result.viewed is not None:
        base = args[result.viewed]
        held.set_(base.untyped_storage(), base.storage_offset() + result.offset, result.shape, result.stride)
    fake = torch.Tensor._make_subclass(
        FakeTensor, held, False, dispatch_device=True, device_for_backend_keys=result.device
    )
    torch._C._set_throw_on_mutable_data_ptr(fake)
    vars(fake).update(result.state)
    return fake


def _several(result: Any) -> Sequence[Any]:
    return result if type(result) in (list, tuple) else (result,)


def _share(value: Any, tensor: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata == tensor.untyped_storage()._cdata


def _looks(tensor: Any) -> tuple[Any, ...]:
    return (type(tensor), tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device,
            _key_set(tensor), vars(tensor))  # fmt: skip


def _key_set(tensor: torch.Tensor) -> int:
    """Backend, conjugation, inference and more of a tensor as one number."""
    return int(torch._C._dispatch_keys(tensor).raw_repr())

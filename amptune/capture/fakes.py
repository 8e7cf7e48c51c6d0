"""Models and batches without memory: parameters become fake tensors as soon as a module registers them.

What is no parameter stays real where it is small: constructors read it (``torch.linspace(...).tolist()``), and so do
forwards (sequence lengths, attention masks), whose branches are then those of a real run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amptune.capture.quickfakes import QuickFakes

__all__ = ["FakeRules", "FakeTensorMode", "fake_batch", "fake_model", "map_tensors", "new_fake_mode",
           "parameters_as_fakes"]  # fmt: skip

LARGE = 1 << 20
"""Elements from which a tensor that the user's code makes is made as a fake."""
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_Memo = dict[int, tuple["weakref.ref[nn.Parameter]", nn.Parameter]]


def new_fake_mode() -> FakeTensorMode:
    """A mode whose fakes mix with real tensors (buffers, constants)."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class FakeRules(TorchFunctionMode):
    """What running on fakes needs beside torch's own rules: large tensors of the factory functions are made as fakes,
    what is assigned to the data of a fake is a fake, as ``layer.weight.data = torch.linalg.qr(...)[0]`` needs, and
    indices that are real are checked, since a fake table takes any of them."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _SET_DATA and isinstance(args[0], FakeTensor) and not isinstance(args[1], FakeTensor):
            args = (args[0], self.mode.from_tensor(args[1].detach(), static_shapes=True))
        if func in _FACTORIES and _numel(args, kwargs) >= LARGE:
            with self.mode:
                return func(*args, **kwargs)
        if func is functional.embedding:
            _check_indices("index", _given(args, kwargs, 0, "input"), _given(args, kwargs, 1, "weight"), 0)
        elif func is functional.cross_entropy:
            given = _given(args, kwargs, 4, "ignore_index")
            ignored = -100 if given is None else given
            _check_indices("target", _given(args, kwargs, 1, "target"), _given(args, kwargs, 0, "input"), 1, ignored)
        return func(*args, **kwargs)


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any], index: int, name: str) -> Any:
    return args[index] if index < len(args) else kwargs.get(name)


def _check_indices(what: str, indices: Any, table: Any, axis: int, ignored: int | None = None) -> None:
    """Raise IndexError, as a real run does, for an index that ``table`` has no entry for and that is not ignored."""
    known = isinstance(indices, torch.Tensor) and isinstance(table, torch.Tensor) and indices.numel()
    if not known or isinstance(indices, FakeTensor) or indices.is_floating_point():
        return
    read = indices if ignored is None else indices.masked_fill(indices == ignored, 0)
    count, smallest, largest = table.shape[min(axis, table.dim() - 1)], int(read.min()), int(read.max())
    if smallest < 0 or largest >= count:
        wrong = smallest if smallest < 0 else largest
        raise IndexError(f"{what} {wrong} is out of range: there are {count} entries")


def _numel(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Elements that a factory function is asked for: ``zeros(2, 3)``, ``zeros((2, 3))``, ``zeros(size=(2, 3))``."""
    size = kwargs.get("size", args)
    if isinstance(size, tuple) and size and isinstance(size[0], tuple | list):
        size = size[0]
    total = 1
    for extent in size if isinstance(size, tuple | list) else (size,):
        if not isinstance(extent, int):
            break
        total *= extent
    return total


@contextlib.contextmanager
def parameters_as_fakes(mode: FakeTensorMode, *, large_tensors: bool = True) -> Iterator[None]:
    """Build modules inside with fake parameters, and with ``large_tensors`` other large tensors as fakes too."""
    module_class: Any = nn.Module
    original, apply = module_class.register_parameter, module_class._apply
    memo: _Memo = {}
    changed: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

    def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        original(module, name, _fake_parameter(param, mode, memo) if type(param) is nn.Parameter else param)

    def convert(module: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        # torch swaps fake parameters in place, which fails for those that something refers to weakly.
        own = module._parameters
        kept = {name: param for name, param in own.items() if param is not None and isinstance(param, FakeTensor)}
        own.update(dict.fromkeys(kept))
        try:
            apply(module, fn, recurse)
        finally:
            own.update(kept)
        own.update({name: _converted(param, fn, changed) for name, param in kept.items()})
        return module

    module_class.register_parameter, module_class._apply = register, convert
    try:
        with (
            FakeRules(mode) if large_tensors else contextlib.nullcontext(),
            QuickFakes(mode).watch(),  # a thousand layers are initialised alike
            _no_rejection_sampling(),
        ):
            yield
    finally:
        module_class.register_parameter, module_class._apply = original, apply


def _converted(
    param: nn.Parameter,
    fn: Callable[[torch.Tensor], torch.Tensor],
    changed: dict[int, tuple[nn.Parameter, nn.Parameter]],
) -> nn.Parameter:
    """The parameter after ``fn``; tied ones stay tied."""
    known = changed.get(id(param))
    if known is not None:
        return known[1]
    with torch.no_grad():
        new = fn(param)
    if new is param:
        return param
    changed[id(param)] = (param, nn.Parameter(new, requires_grad=param.requires_grad))
    return changed[id(param)][1]


@contextlib.contextmanager
def _no_rejection_sampling() -> Iterator[None]:
    """``trunc_normal_`` draws until all numbers are inside the bounds: with fakes it leaves the tensor as it is."""
    name = "_no_grad_trunc_normal_"
    original = getattr(nn.init, name, None)
    if original is None:
        yield
        return

    def draw(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else original(tensor, *args, **kwargs)

    setattr(nn.init, name, draw)
    try:
        yield
    finally:
        setattr(nn.init, name, original)


def _fake_parameter(param: nn.Parameter, mode: FakeTensorMode, memo: _Memo) -> nn.Parameter:
    if isinstance(param, FakeTensor) and not param.is_meta:
        return param
    known = memo.get(id(param))
    if known is not None and known[0]() is param:
        return known[1]
    with mode:
        data = torch.empty_strided(param.shape, param.stride(), dtype=param.dtype, device=_device(param))
    fake = nn.Parameter(data, requires_grad=param.requires_grad)
    vars(fake).update(vars(param))
    memo[id(param)] = (weakref.ref(param), fake)
    return fake


def _device(tensor: torch.Tensor) -> torch.device:
    """Where the fake of a tensor is: the user who builds a model on meta runs it elsewhere, beside the batch."""
    return torch.device("cpu") if tensor.is_meta else tensor.device


def fake_model(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace what is still real and large, or a parameter, by fakes, in place; sharing is kept.

    Uninitialised parameters of lazy layers stay: their layer makes them when it first runs.
    """
    memo: dict[int, torch.Tensor] = {}
    for module in model.modules():
        _fake_table(module._parameters, mode, memo, smallest=0)
        _fake_table(module._buffers, mode, memo, smallest=LARGE)
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _fake_table(table: dict[str, Any], mode: FakeTensorMode, memo: dict[int, torch.Tensor], smallest: int) -> None:
    for name, tensor in table.items():
        if tensor is None or nn.parameter.is_lazy(tensor) or (isinstance(tensor, FakeTensor) and not tensor.is_meta):
            continue
        if tensor.numel() >= smallest or tensor.is_meta:
            if id(tensor) not in memo:
                memo[id(tensor)] = (
                    _on_cpu(tensor, mode) if tensor.is_meta else mode.from_tensor(tensor, static_shapes=True)
                )
            table[name] = memo[id(tensor)]


def _on_cpu(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A fake on the CPU of a tensor on meta, which holds no numbers however small it is."""
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def fake_batch(batch: Any, mode: FakeTensorMode, *, all_tensors: bool = False) -> Any:
    """The batch with fake floating tensors; with ``all_tensors`` integers are fake too."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        readable = not (tensor.is_floating_point() or tensor.is_complex())
        if isinstance(tensor, FakeTensor) or (readable and not all_tensors):
            return tensor
        return mode.from_tensor(tensor, static_shapes=True)

    return map_tensors(batch, change)


def map_tensors(value: Any, change: Callable[[Any], Any], kind: type = torch.Tensor) -> Any:
    """A nested batch with ``change`` applied to each tensor, or to each value of another ``kind`` that stands for one.

    A mapping of another kind becomes a dict.
    """
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change, kind) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a named tuple, as a PackedSequence is
        return value._make(map_tensors(item, change, kind) for item in value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, change, kind) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: map_tensors(getattr(value, name), change, kind) for name in fields})
    return value

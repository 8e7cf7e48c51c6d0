"""Recording on fake tensors: nothing is computed, and only what is real may be read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode

from amptune.capture.fakes import LARGE
from amptune.capture.modulestack import ModuleStack
from amptune.capture.names import op_name, spelling_of, written_by
from amptune.capture.record import GraphRecorder
from amptune.capture.target import tensors_in
from amptune.core.ops import op_named

_READERS = frozenset({"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy",
                      "__array__", "is_nonzero", "equal", "allclose"})  # fmt: skip
_GROUPED = {"grouped_mm", "_grouped_mm"}
_CASTS = {"index_put"}
"""Takes one dtype with an index, and casts with a slice: both are written ``x[...] = y``."""


class UnknownValueError(RuntimeError):
    """The model's code reads a value that a forward on fake tensors does not have."""


class FakeRecorder(GraphRecorder):
    """Records a forward in which floating tensors are fake, and small integer ones real.

    Writing a fake into a real tensor leaves the real one as it was: from then on its values are unknown, and so are
    those of all that is computed from it. Reading one raises UnknownValueError.
    """

    def __init__(self, model: nn.Module, stack: ModuleStack, mode: FakeTensorMode) -> None:
        super().__init__(model, stack)
        self.mode = mode
        self._unknown: set[int] = set()

    def execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call; large results of real tensors are fake."""
        tensors = list(tensors_in((args, kwargs)))
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        unknown = not fake and any(id(tensor) in self._unknown for tensor in tensors)
        if unknown and spelling_of(func) in _READERS:
            raise UnknownValueError(f"Tensor.{spelling_of(func)} reads a value that depends on the data")
        if fake:
            _check_dtypes(op_name(func, args), tensors)
        if fake and spelling_of(func) in _GROUPED:
            result = _grouped_product(func, args, kwargs)
        else:
            with self.mode if not fake and _is_large(tensors) else contextlib.nullcontext():
                result = super().execute(func, args, kwargs)
        for changed in written_by(func, args, kwargs) if fake else ():
            if not isinstance(changed, FakeTensor):
                self._forget(changed)
        if unknown:
            for tensor in tensors_in(result):
                self._forget(tensor)
        return result

    def _forget(self, tensor: torch.Tensor) -> None:
        for each in (tensor, tensor._base):
            if each is not None:
                self._unknown.add(id(each))
                self._kept.append(each)


def _check_dtypes(op: str, tensors: list[torch.Tensor]) -> None:
    """Fakes multiply matrices and add rows of different dtypes, which real ones refuse."""
    if op in _CASTS or not op_named(op).same_dtype or torch.is_autocast_enabled(tensors[0].device.type):
        return
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()})
    if len(dtypes) > 1:
        raise RuntimeError(f"{op} takes operands of one dtype, not {' and '.join(dtypes)}")


def _grouped_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A grouped matrix product; torch's fake kernel refuses all but bfloat16, which the real ones do not."""
    lowered = tuple(
        arg.bfloat16() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args
    )
    return func(*lowered, **kwargs).to(args[0].dtype)


def _is_large(tensors: list[torch.Tensor]) -> bool:
    """Whether the tensors broadcast to something that need not be real."""
    extents: dict[int, int] = {}
    for tensor in tensors:
        for place, extent in enumerate(reversed(tensor.shape)):
            extents[place] = max(extents.get(place, 1), extent)
    total = 1
    for extent in extents.values():
        total *= extent
    return total >= 16 * LARGE

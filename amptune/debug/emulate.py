"""Sixteen-bit arithmetic on a CPU that is as a GPU does it, and that does not fail for want of a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amptune import runtime

_HALF = (torch.float16, torch.bfloat16)
# A tensor core multiplies 16-bit numbers exactly and adds in FP32; CPU kernels differ from machine to machine.
_PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution", "convolution_backward",
})  # fmt: skip
_MISSING = ("not implemented for", "could not create a primitive", "not supported", "unsupported")


class Emulation(TorchDispatchMode):
    """Products of 16-bit matrices in FP32, their result rounded; so is what has no 16-bit kernel on this device.

    Attributes:
        missing: names of the ops that have no kernel here.
        products: whether a product was computed so.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.missing: set[str] = set()
        self.products = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = _half_of((args, kwargs))
        if dtype is None:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        if name in _PRODUCTS:
            self.products = True
            return _rounded(func, args, kwargs, dtype)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if func._schema.is_mutable or not any(words in str(error) for words in _MISSING):
                raise
        self.missing.add(name)
        return _rounded(func, args, kwargs, dtype)


@contextlib.contextmanager
def emulating(device: torch.device, mode: Emulation) -> Iterator[None]:
    """Run what is inside under ``mode``, if the device is a CPU."""
    if device.type != "cpu":
        yield
        return
    with mode:
        yield


def _half_of(value: Any) -> torch.dtype | None:
    return next((tensor.dtype for tensor in runtime.tensors_in(value) if tensor.dtype in _HALF), None)


def _rounded(func: Any, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    args, kwargs = runtime.cast_all((args, kwargs), torch.float32)
    return runtime.cast_all(func(*args, **kwargs), dtype)

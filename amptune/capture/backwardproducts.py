"""What the backward of a custom autograd function does with a 16-bit gradient, tried on the tensors of the capture.

Under autocast the products of its forward give 16 bits, while its backward runs outside of the region: without
``custom_fwd`` and ``custom_bwd`` it multiplies their gradient with parameters as they are, which raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.function import Function

from amptune.capture.backwards import BackwardWatch, run_backward
from amptune.capture.names import op_name
from amptune.capture.target import tensors_in
from amptune.core.ops import Family, op_named

_PRODUCTS = (Family.GEMM, Family.CONV)


def mixed_product(function: type[Function], result: Any) -> str:
    """The first op of the backward that multiplies a 16-bit gradient with a parameter in FP32; empty where none does,
    or where the function says how it runs under autocast."""
    if any(_is_decorated(each) for each in (function.forward, vars(function).get("backward"))):
        return ""
    watch = _Products()
    run_backward(function, result, watch, torch.float16)
    return watch.mixed


def _is_decorated(method: Any) -> bool:
    """Whether a method is one that ``custom_fwd`` or ``custom_bwd`` gave."""
    method = getattr(method, "__func__", method)
    while inspect.isfunction(method):
        if (
            method.__qualname__.startswith(("custom_fwd", "custom_bwd"))
            or "autocast_mode" in method.__code__.co_filename
        ):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


class _Products(BackwardWatch):
    """Follows the gradient through a backward, looks at what it is multiplied with, and keeps calls from modes further
    out. What comes from the forward's inputs alone is in 16 bits here and may be wider, so that it shows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = ""
        self._followed: dict[int, torch.Tensor] = {}

    def begin(self, gradients: Iterable[torch.Tensor]) -> None:
        self._follow(gradients)

    def _follow(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take these for the gradient, or for what is made of it."""
        self._followed.update((id(tensor), tensor) for tensor in tensors if tensor.dtype is torch.float16)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
        is_followed = any(id(tensor) in self._followed for tensor in given)
        op = op_name(func, args)
        if is_followed and op_named(op).family in _PRODUCTS and len({tensor.dtype for tensor in given}) > 1:
            self.mixed = self.mixed or op
        with torch._C.DisableTorchFunction():
            result = func(*args, **(kwargs or {}))
        if is_followed:
            self._follow(tensors_in(result))
        return result

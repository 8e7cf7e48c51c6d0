"""Custom autograd functions: one site each, since their backward fits their forward as it is written."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.autograd.function import Function

from amptune.capture.backwarddivisions import BackwardDivision, backward_divisions
from amptune.capture.backwardproducts import mixed_product
from amptune.capture.modulestack import ModuleStack
from amptune.capture.where import Place, current_place


def cast_inputs(function: type[Function]) -> str:
    """What ``custom_fwd(cast_inputs=...)`` of a function casts its inputs to under CUDA autocast; empty for nothing."""
    forward = inspect.unwrap(function.forward, stop=lambda each: "cast_inputs" in _closed_over(each))
    held = _closed_over(forward)
    dtype = held.get("cast_inputs")
    return str(dtype).removeprefix("torch.") if dtype is not None and held.get("device_type", "cuda") == "cuda" else ""


def _closed_over(function: Callable[..., Any]) -> Mapping[str, Any]:
    return inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}


CHECKPOINTS = "torch.utils.checkpoint"
"""Where torch keeps the functions that run a part of the forward again in the backward."""


@dataclasses.dataclass
class FunctionCall:
    """One running call of a custom autograd function.

    Attributes:
        name: its class.
        number: which call it is.
        place: where it is called.
        modules_before: how many module calls had begun before it.
        cast_inputs: the dtype that ``custom_fwd`` casts its inputs to under CUDA autocast; empty where it casts none.
        mixes: the op of its backward that multiplies a 16-bit gradient with an FP32 parameter; empty for none.
        divides: what its backward divides by that can be zero.
        holds_modules: whether a module ran inside, as in a checkpointed block: then it is no site of its own.
    """

    name: str
    number: int
    place: Place
    modules_before: int
    cast_inputs: str = ""
    mixes: str = ""
    divides: tuple[BackwardDivision, ...] = ()
    holds_modules: bool = False


class FunctionCalls:
    """The custom autograd functions that are running, outermost first; those of torch itself are left out."""

    def __init__(self, stack: ModuleStack) -> None:
        self.stack = stack
        self.running: list[FunctionCall] = []
        self.finished: Callable[[FunctionCall, Any], None] = lambda call, result: None
        self.started: Callable[[FunctionCall, tuple[Any, ...]], None] = lambda call, args: None
        self.in_checkpoint = False
        self._is_trying = False
        self._count = 0
        self._tried: dict[type[Function], tuple[str, tuple[BackwardDivision, ...]]] = {}

    @contextlib.contextmanager
    def _checkpoint(self, cls: type[Function]) -> Iterator[None]:
        before = self.in_checkpoint
        self.in_checkpoint = before or (cls.__module__ == CHECKPOINTS and torch.is_grad_enabled())
        try:
            yield
        finally:
            self.in_checkpoint = before

    @property
    def outermost(self) -> FunctionCall | None:
        """The one that counts."""
        return self.running[0] if self.running else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Follow ``Function.apply`` inside."""
        original = vars(Function)["apply"]
        calls = self

        def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
            run = original.__get__(None, cls)
            if calls._is_trying:
                return run(*args, **kwargs)
            if cls.__module__.startswith("torch."):
                with calls._checkpoint(cls):
                    return run(*args, **kwargs)
            with calls._run(cls) as call:
                calls.started(call, args)
                result = run(*args, **kwargs)
            calls.finished(call, result)
            call.mixes, call.divides = calls._backward(cls, result, args)
            return result

        Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Function.apply = original  # type: ignore[method-assign]

    def _backward(
        self, function: type[Function], result: Any, given: tuple[Any, ...]
    ) -> tuple[str, tuple[BackwardDivision, ...]]:
        """As :func:`mixed_product` and :func:`backward_divisions`, tried once for each function."""
        if function not in self._tried:
            self._is_trying = True
            try:
                self._tried[function] = mixed_product(function, result), backward_divisions(function, result, given)
            finally:
                self._is_trying = False
        return self._tried[function]

    @contextlib.contextmanager
    def _run(self, function: type[Function]) -> Iterator[FunctionCall]:
        self._count += 1
        cast = cast_inputs(function)
        call = FunctionCall(function.__name__, self._count, current_place(4), self.stack.count, cast)
        self.running.append(call)
        try:
            yield call
        finally:
            self.running.pop()

"""Divisions in the backward of a custom autograd function whose denominator can be zero, tried on fake tensors.

The capture has the forward of such a function alone. Its forward and backward are run once here, on fakes of what it
was given, to see what the backward divides by: a norm, or a sum of what either works out itself, that nothing is added
to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd.function import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from amptune.capture.names import op_name, spelling_of
from amptune.capture.target import tensors_in
from amptune.capture.where import current_place
from amptune.core.finding import Location
from amptune.core.ops import Family, op_named

_REVERSED = ("rtruediv", "rdiv", "reciprocal")
_NORMS = frozenset({"norm", "linalg_vector_norm", "abs", "amax", "prod"})
_TOTALS = frozenset({"sum", "mean"})
_TERMS = frozenset({"sqrt", "abs", "square", "pow", "relu", "mul", "sub"})
"""Ops whose results add up to zero where each of them is zero."""
_CHOOSE = frozenset({"where", "masked_fill", "nan_to_num"})
_SAME = (Family.VIEW, Family.CAST)


@dataclasses.dataclass(frozen=True)
class BackwardDivision:
    """A division by what can be zero: where it stands, and the op that made its denominator."""

    location: Location
    by: str


def backward_divisions(
    function: type[Function], result: Any, given: tuple[Any, ...] = ()
) -> tuple[BackwardDivision, ...]:
    """What the backward of a function divides by that can be zero; nothing where it does not run on fakes.

    Args:
        function: the class.
        result: what its forward gave.
        given: the arguments of that call.
    """
    outputs = [tensor for tensor in tensors_in(result) if tensor.is_floating_point()]
    node = next((tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None), None)
    if node is None:
        return ()
    watch = _Divisions()
    try:
        mode = next((each.fake_mode for each in outputs if isinstance(each, FakeTensor)), None) or FakeTensorMode()
        with torch.no_grad(), _disable_current_modes(), mode, watch:
            gradients = [torch.empty_like(_fake(mode, each)) for each in tensors_in(result)]
            context = _forward_again(function, given, mode) or _Saved(node, mode)
            watch.forget()
            function.backward(context, *gradients)
    except Exception:  # the user's code, on tensors that it was not made for: what was seen until then stands
        pass
    return tuple(dict.fromkeys(watch.found))


def _forward_again(function: type[Function], given: tuple[Any, ...], mode: FakeTensorMode) -> _Context | None:
    """What a forward on fakes saves, so that it is known what made that; ``None`` where it does not run."""
    arguments = [_fake(mode, each) if isinstance(each, torch.Tensor) else each for each in given]
    context = _Context(tuple(isinstance(each, torch.Tensor) and each.requires_grad for each in given))
    try:
        if function.setup_context is Function.setup_context:
            function.forward(context, *arguments)
        else:
            function.setup_context(context, tuple(arguments), function.forward(*arguments))
    except Exception:  # the user's code, on tensors that it was not made for
        return None
    return context


class _Context:
    """What a forward that runs again is given, and its backward after it."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Nothing to note here."""

    mark_non_differentiable = save_for_forward = mark_dirty

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing to note here."""


class _Saved:
    """What a backward is given, on fakes."""

    def __init__(self, node: Any, mode: FakeTensorMode) -> None:
        self._node, self._mode = node, mode

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        with _disable_current_modes():  # outputs that were saved are unpacked by an op
            saved = self._node.saved_tensors
        return tuple(_fake(self._mode, each) if isinstance(each, torch.Tensor) else each for each in saved)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._node, name)
        return _fake(self._mode, found) if isinstance(found, torch.Tensor) else found


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor
    with _disable_current_modes():  # under the mode itself, nothing may read what a real run saved
        own = tensor.detach()
    return mode.from_tensor(own)


class _Divisions(TorchFunctionMode):
    """Notes what made each tensor, and the divisions by what can be zero."""

    def __init__(self) -> None:
        super().__init__()
        self._quotients: list[tuple[BackwardDivision, torch.Tensor]] = []
        self._made: dict[int, tuple[str, list[torch.Tensor], torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        op, given = op_name(func, args), list(tensors_in((args, kwargs)))
        if op in _CHOOSE:
            self._quotients = [each for each in self._quotients if not any(each[1] is tensor for tensor in given)]
        place = 0 if spelling_of(func).strip("_") in _REVERSED else 1
        division = self._division(args[place]) if op in ("div", "reciprocal") and len(args) > place else None
        with torch._C.DisableTorchFunction():
            result = func(*args, **(kwargs or {}))
        if division is not None and isinstance(result, torch.Tensor):
            self._quotients.append((division, result))
        for tensor in tensors_in(result):
            if not any(tensor is each for each in given):
                self._made[id(tensor)] = op, given, tensor
        return result

    def forget(self) -> None:
        """Leave out the divisions until now, which a forward made."""
        self._quotients.clear()

    @property
    def found(self) -> list[BackwardDivision]:
        """The divisions of which nothing is left out afterwards, as where does."""
        return [division for division, _ in self._quotients]

    def _division(self, denominator: Any) -> BackwardDivision | None:
        by = self._may_be_zero(denominator) if isinstance(denominator, torch.Tensor) else ""
        place = current_place(3).origin if by else None
        return BackwardDivision(place.location(), by) if place is not None else None

    def _may_be_zero(self, tensor: torch.Tensor) -> str:
        """The op that made a denominator, where that can be zero; empty where it cannot, or where nothing is known."""
        op, given = self._maker(tensor)
        if op == "sqrt" and given:
            return self._may_be_zero(given[0]) and "sqrt"
        if op in _TOTALS and given:
            return op if self._maker(given[0])[0] in _TERMS else ""
        return op if op in _NORMS else ""

    def _maker(self, tensor: torch.Tensor) -> tuple[str, list[torch.Tensor]]:
        """What made a tensor, seen through views and casts."""
        op, given, _ = self._made.get(id(tensor), ("", [], tensor))
        while given and op_named(op).family in _SAME:
            op, given, _ = self._made.get(id(given[0]), ("", [], tensor))
        return op, given

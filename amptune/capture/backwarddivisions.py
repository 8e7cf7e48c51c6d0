"""Divisions in the backward of a custom autograd function whose denominator can be zero, tried on fake tensors.

What it divides by is a norm, or a sum of what forward or backward work out themselves, that nothing is added to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.function import Function

from amptune.capture.backwards import BackwardWatch, run_backward
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
    watch = _Divisions()
    run_backward(function, result, watch, given=given)
    return tuple(dict.fromkeys(watch.found))


class _Divisions(BackwardWatch):
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

    def begin(self, gradients: Sequence[torch.Tensor]) -> None:
        self._quotients.clear()  # those that a forward made

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

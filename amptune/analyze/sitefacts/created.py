"""Bounds of what factory functions fill a tensor with."""

from __future__ import annotations

import math

from torch import fx

from amptune.capture.names import spelling_of
from amptune.core.bounds.intervals import UNIT, Range, point

_COUNTING = frozenset({"arange", "linspace", "randint", "randint_like"})
_ENDS = frozenset({"start", "end", "low", "high"})


def created(op: str, node: fx.Node) -> Range | None:
    """Bounds of the numbers that a node makes by itself; ``None`` for another node, and where they are not written
    down."""
    numbers = [each for each in node.args if isinstance(each, int | float) and not isinstance(each, bool)]
    if op in ("arange", "linspace", "randint") and (
        _spelling(node) not in _COUNTING or not _ENDS.isdisjoint(node.kwargs)
    ):
        return None
    if op in ("zeros", "zeros_like", "new_zeros"):
        return point(0.0)
    if op in ("ones", "ones_like", "new_ones"):
        return point(1.0)
    if op == "eye" or op == "one_hot":
        return UNIT
    if op in ("full", "full_like", "new_full"):
        value = node.kwargs.get("fill_value", node.args[-1] if node.args else None)
        return point(float(value)) if isinstance(value, int | float) else None
    if op == "randint" and numbers:
        low, high = numbers[:2] if len(numbers) > 1 else (0, numbers[0])
        return Range(float(low), float(max(high - 1, low)))
    if op in ("arange", "linspace") and numbers:
        start, end = (numbers[0], numbers[1]) if len(numbers) > 1 else (0, numbers[0])
        whole = op == "arange" and all(isinstance(each, int) for each in numbers)
        last = max(end - 1, start) if whole and end > start else end
        return Range(float(min(start, last)), float(max(start, last)))
    if op in ("tensor", "scalar_tensor", "new_tensor") and numbers:
        value = float(numbers[0])
        return point(value) if math.isfinite(value) else None
    return None


def _spelling(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else spelling_of(target) if callable(target) else ""

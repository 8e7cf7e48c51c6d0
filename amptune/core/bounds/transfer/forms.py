"""Forms that many rules of ranges have: bounds that are fixed, functions that rise, activations that dip below zero."""

from __future__ import annotations

import math
from collections.abc import Callable

from amptune.core.bounds.intervals import ANY, Range, pairwise
from amptune.core.graph import Site

RangeRule = Callable[[Site, list[Range]], Range]
"""Bounds of an op's result from the op's arguments and the bounds of its positional operands."""


def fixed(low: float, high: float) -> RangeRule:
    """Bounds whatever the operands are."""
    return lambda site, ranges: Range(low, high)


def first(function: Callable[[Range], Range]) -> RangeRule:
    """A function of the range of the first operand."""
    return lambda site, ranges: function(ranges[0]) if ranges else ANY


def monotone(function: Callable[[float], float]) -> RangeRule:
    """A function of the first operand that rises."""
    return lambda site, ranges: Range(function(ranges[0].low), function(ranges[0].high)) if ranges else ANY


def both(function: Callable[[Range, Range], Range]) -> RangeRule:
    """A function of the ranges of two operands."""
    return lambda site, ranges: function(ranges[0], ranges[1]) if len(ranges) > 1 else ANY


def dipping(lowest: float) -> RangeRule:
    """Activations that lie between 0 and x for positive x and between ``lowest`` and 0 for negative x."""
    return lambda site, ranges: Range(lowest if ranges[0].low < 0 else 0.0, max(ranges[0].high, 0.0)) if ranges else ANY


def extreme(pick: Callable[[float, float], float]) -> RangeRule:
    """max and min: along an axis, or of two tensors."""

    def rule(site: Site, ranges: list[Range]) -> Range:
        if len(ranges) > 1 and len(site.inputs) > 1:
            return pairwise(pick, ranges[0], ranges[1])
        return ranges[0] if ranges else ANY

    return rule


def integral(function: Callable[[float], float]) -> RangeRule:
    """A function that rises in whole numbers, which the largest numbers are already."""
    return monotone(lambda x: function(x) if abs(x) < 1e300 else x)


_QUOTIENT = 1e-6
"""Relative error of a quotient, which may put it on the other side of a whole number."""


def whole(function: Callable[[float], float], value: Range) -> Range:
    """Whole numbers of a quotient, which is rounded itself before."""
    low, high = value.low - _QUOTIENT * abs(value.low), value.high + _QUOTIENT * abs(value.high)
    return Range(function(low) if abs(low) < 1e300 else value.low, function(high) if abs(high) < 1e300 else value.high)


def rounded(site: Site, ranges: list[Range]) -> Range:
    """round, trunc, and frac, which is what trunc takes away."""
    if not ranges:
        return ANY
    called, value = str(site.attrs.get("called", "")).strip("_"), ranges[0]
    if called == "frac":
        return Range(-1.0 if value.low < 0 else 0.0, 1.0 if value.high > 0 else 0.0)
    if called in ("trunc", "fix"):
        return integral(math.trunc)(site, ranges)
    decimals = site.attrs.get("decimals", 0)
    if not isinstance(decimals, int) or decimals:
        room = 10.0**-decimals if isinstance(decimals, int) else math.inf
        return Range(value.low - room, value.high + room)
    return integral(round)(site, ranges)

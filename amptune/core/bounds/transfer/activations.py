"""How activations map the range of what they read, whatever slopes and limits a call gives them."""

from __future__ import annotations

import math
from collections.abc import Callable

from amptune.core.bounds.intervals import ANY, Range, exp, multiply, point
from amptune.core.graph import Site

_RRELU = (1 / 8, 1 / 3)
"""Limits of the slope of rrelu where none are given."""


def _number(site: Site, place: int, name: str, default: float) -> float | None:
    """A literal argument, by name or by place; ``None`` where it is a tensor."""
    value = site.attrs.get(name, (site.attrs.get("scalars") or {}).get(place))
    if value is None:
        return default if len(site.inputs) + len(site.params) == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _hull(value: Range, function: Callable[[float], float], *turns: float) -> Range:
    """Of a function that rises or falls between its turns."""
    found = [function(each) for each in (value.low, value.high, *(turn for turn in turns if value.holds(turn)))]
    return ANY if any(math.isnan(each) for each in found) else Range(min(found), max(found))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def elu(site: Site, ranges: list[Range]) -> Range:
    """alpha * (exp(x) - 1) below zero."""
    alpha = _number(site, 1, "alpha", 1.0)
    if not ranges or alpha is None or {2, 3}.intersection(site.attrs.get("scalars") or {}):
        return ANY
    return _hull(ranges[0], lambda x: x if x > 0 else _times(alpha, exp(x) - 1), 0.0)


def celu(site: Site, ranges: list[Range]) -> Range:
    """alpha * (exp(x / alpha) - 1) below zero."""
    alpha = _number(site, 1, "alpha", 1.0)
    if not ranges or not alpha:
        return ANY
    return _hull(ranges[0], lambda x: x if x > 0 else _times(alpha, exp(x / alpha) - 1), 0.0)


_OFF = 2e-6
"""How far off a kernel's sigmoid may be in FP32, relative to its value: some units in the last place."""

_FLUSHED = 2.0**-125
"""Below about this, kernels may give zero rather than numbers that FP32 holds in part."""


def sigmoid(site: Site, ranges: list[Range]) -> Range:
    """1 / (1 + exp(-x)): within (0, 1) of what is bounded, as a clamped logit is, and at an end for far ones."""
    if not ranges:
        return Range(0.0, 1.0)
    low, high = (1 / (1 + exp(-end)) for end in (ranges[0].low, ranges[0].high))
    low = low * (1 - _OFF) if low > _FLUSHED else 0.0
    return Range(low, min(high * (1 + _OFF), 1.0))


def softplus(site: Site, ranges: list[Range]) -> Range:
    """log(1 + exp(beta * x)) / beta, and x itself where beta * x is over the threshold."""
    beta, threshold = _number(site, 1, "beta", 1.0), _number(site, 2, "threshold", 20.0)
    if not ranges or not beta or threshold is None:
        return ANY
    found = _hull(ranges[0], lambda x: _soft(beta * x, threshold) / beta)
    turn = threshold / beta
    if ranges[0].holds(turn):
        return found.union(point(turn)).union(point(_soft(threshold, threshold) / beta))
    return found


def _soft(value: float, threshold: float) -> float:
    if value > threshold or value > 700:
        return value
    return math.log1p(exp(value))


def leaky_relu(site: Site, ranges: list[Range]) -> Range:
    """A multiple of x below zero; rrelu draws it between two limits, and takes their mean outside of training."""
    called = str(site.attrs.get("called", ""))
    if "lower" in site.attrs or "upper" in site.attrs or called.startswith("rrelu"):
        slopes = [_number(site, place + 1, name, _RRELU[place]) for place, name in enumerate(("lower", "upper"))]
    else:
        slopes = [_number(site, 1, "negative_slope", 0.01)]
    if not ranges or any(slope is None for slope in slopes):
        return ANY
    low, high = ranges[0].low, ranges[0].high
    known = [slope for slope in slopes if slope is not None]
    below = multiply(Range(min(low, 0.0), min(high, 0.0)), Range(min(known), max(known)))
    if high < 0:
        return below
    above = Range(max(low, 0.0), high)
    return above if low >= 0 else above.union(below)


def prelu(site: Site, ranges: list[Range]) -> Range:
    """A learnt multiple of x below zero."""
    if len(ranges) < 2:
        return ANY
    low, high = ranges[0].low, ranges[0].high
    above, below = Range(max(low, 0.0), high), multiply(Range(min(low, 0.0), min(high, 0.0)), ranges[1])
    return above if low >= 0 else below if high < 0 else above.union(below)


def threshold(site: Site, ranges: list[Range]) -> Range:
    """x where it is over a number, another number elsewhere."""
    limit, value = _number(site, 1, "threshold", math.nan), _number(site, 2, "value", math.nan)
    if not ranges or limit is None or value is None or math.isnan(limit + value):
        return ANY
    above = Range(max(ranges[0].low, limit), ranges[0].high)
    if ranges[0].low > limit:
        return above
    return above.union(point(value)) if ranges[0].high > limit else point(value)


def hardtanh(site: Site, ranges: list[Range]) -> Range:
    """x between two limits."""
    low, high = _number(site, 1, "min_val", -1.0), _number(site, 2, "max_val", 1.0)
    if not ranges or low is None or high is None:
        return ANY
    return _hull(ranges[0], lambda x: min(max(x, low), high))


_ROUNDED = 2.0**-20
"""How far rounding in FP32 may take an angle from what its terms give, as a share of it: cos(pi / 2) is below zero."""


def wave(function: Callable[[float], float], turn: float) -> Callable[[Site, list[Range]], Range]:
    """Sine or cosine, which rises or falls from one turn to the next: ``turn`` and every pi from there."""

    def rule(site: Site, ranges: list[Range]) -> Range:
        if not ranges or not ranges[0].high - ranges[0].low < 2 * math.pi or ranges[0].magnitude > 1e6:
            return Range(-1.0, 1.0)
        low, high = ranges[0].low, ranges[0].high
        angles = Range(low - abs(low) * _ROUNDED, high + abs(high) * _ROUNDED)
        first = math.ceil((angles.low - turn) / math.pi)
        turns = [turn + math.pi * (first + each) for each in range(4)]
        return _hull(angles, function, *turns)

    return rule

"""Squares, however they are written, and what follows from one: x + sqrt(x * x + c) is not negative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of, is_scaled
from amptune.core.bounds.intervals import Range, multiply, scaled, square
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.terms import stays_in_place
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


_ALL_WITH_ALL = ("outer", "ger")


def is_square(ranges: Ranges, site: Site) -> bool:
    """Whether a site is x * x, x ** 2 or square(x)."""
    if site.op == "pow":
        return exponent_of(site) == 2
    pairs = site.attrs.get("called") in _ALL_WITH_ALL
    return site.op == "square" or (site.op == "mul" and not pairs and ranges.same(site, 0, site, 1))


def scaled_square(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``-0.5 * x * x``, ``x * -x`` and the like: a product of x and of a number times x."""
    for side in (0, 1):
        factor, number = ranges.root(site, side), 1.0
        if not is_plain(ranges, site, side):
            continue
        for _ in range(_DEPTH):
            if factor is None or (times := _number_times(factor)) is None:
                break
            place, own = times
            number *= own
            if ranges.same(factor, place, site, 1 - side):
                return scaled(square(ranges.operand(site, 1 - side)), number)
            if not is_plain(ranges, factor, place):
                break
            factor = ranges.root(factor, place)
    return None


def weighted_square(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``w * x * x``, the squares being taken one factor after the other."""
    for side in (0, 1):
        factor = ranges.root(site, side)
        if factor is None or factor.op != "mul" or not is_plain(ranges, site, side):
            continue
        if any(each.attrs.get("called") in _ALL_WITH_ALL for each in (factor, site)):
            continue
        for place in (0, 1):
            if ranges.same(factor, place, site, 1 - side):
                return multiply(ranges.operand(factor, 1 - place), square(ranges.operand(site, 1 - side)))
    return None


_DEPTH = 4


def _number_times(site: Site) -> tuple[int, float] | None:
    """The operand that a site multiplies with a literal, and the literal."""
    scalars = site.attrs.get("scalars") or {}
    if site.op == "neg":
        return 0, -1.0
    if site.op == "mul" and len(scalars) == 1:
        ((place, value),) = scalars.items()
        return 1 - place, float(value)
    divided = site.op == "div" and set(scalars) == {1} and scalars[1] and not site.attrs.get("rounding_mode")
    return (0, 1 / float(scalars[1])) if divided else None


def squareplus(ranges: Ranges, site: Site) -> Range | None:
    """x + sqrt(x * x + c) is not negative where c is not."""
    for side in (0, 1):
        root = ranges.root(site, side)
        total = ranges.root(root) if root is not None and root.op == "sqrt" else None
        if total is None or root is None or total.op != "add" or not is_plain(ranges, root, 0) or is_scaled(total):
            continue
        if not stays_in_place(ranges, site, side):
            continue
        for part in (0, 1):
            squares = ranges.root(total, part)
            kept = squares is not None and is_square(ranges, squares) and ranges.same(squares, 0, site, 1 - side)
            if kept and is_plain(ranges, total, part) and ranges.operand(total, 1 - part).low >= 0:
                return Range(0.0, math.inf)
    return None


def mean_square_left(ranges: Ranges, site: Site) -> Range | None:
    """What is left of a mean of squares less a share below 1 of the square of the mean is not negative: the mean of
    squares is the larger one (scale-invariant losses). A share next to 1 is left to the rounding of the format."""
    means, number, other = ranges.root(site, 0), 1.0, ranges.root(site, 1)
    if means is None or means.op != "mean" or other is None or is_scaled(site):
        return None
    in_place = stays_in_place(ranges, site, 0) and stays_in_place(ranges, site, 1)
    if not is_square(ranges, other) and (times := _number_times(other)) is not None:
        in_place = in_place and stays_in_place(ranges, other, times[0])
        number, other = times[1], ranges.root(other, times[0])
    squares, mean = ranges.root(means), None if other is None or not is_square(ranges, other) else ranges.root(other)
    if squares is None or not is_square(ranges, squares) or mean is None or mean.op != "mean" or other is None:
        return None
    if not (in_place and stays_in_place(ranges, other, 0) and is_plain(ranges, means, 0)):
        return None  # pairs of all with all
    one_axis = means.attrs.get("dim") == mean.attrs.get("dim") and ranges.same(squares, 0, mean, 0)
    rest = 1 - number
    kept = one_axis and 4 * max(ranges.epsilon(site, side) for side in (0, 1)) < rest <= 1
    return Range(0.0, math.inf) if kept else None

"""A part divided by a whole that is made of it: ``x / norm(x)``, ``x / x.sum()``, ``x * rsqrt(mean(x * x))``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import norm_order, reduced_count
from amptune.core.cosines import is_cosine
from amptune.core.graph import Site
from amptune.core.intervals import UNIT, Range, symmetric
from amptune.core.squares import is_square

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

COPIES_ALL = frozenset({"cat", "stack"})
"""Ops whose result holds the numbers of all of their operands and no others."""
NORMS = frozenset({"norm", "linalg_vector_norm"})
MAXIMA = frozenset({"max", "amax", "cummax"})
_SIZES = frozenset(
    {"sum", "max", "amax", "norm", "linalg_vector_norm", "sqrt", "abs", "mean", "std", "add", "clamp", "mul"}
)
_DEPTH = 6


def part_of(ranges: Ranges, site: Site, part: int, holder: Site, place: int) -> Range | None:
    """Bounds of a part divided by a whole that is made of it: its own sum, norm, maximum or deviation."""
    whole = _without_eps(ranges, ranges.root(holder, place))
    if whole is None:
        return None
    if whole.op == "add":
        return _part_of_sum(ranges, site, part, whole)
    if whole.op == "sqrt" and (count := root_of_squares(ranges, whole, site, part)):
        return symmetric(count)
    if whole.op == "mul":
        return symmetric(1.0) if is_cosine(ranges, site, part, whole) else None
    inner = ranges.root(whole)
    if whole.op in ("sum", *MAXIMA) and inner is not None and inner.op == "abs" and ranges.covers(inner, 0, site, part):
        return symmetric(1.0)
    if not ranges.covers(whole, 0, site, part):
        return None
    if whole.op in ("sum", *MAXIMA) and ranges.operand(site, part).low >= 0:
        return UNIT
    return symmetric(1.0) if whole.op in NORMS or whole.op == "abs" else None


def _without_eps(ranges: Ranges, whole: Site | None) -> Site | None:
    """What an eps was added to: it makes a denominator that is not negative larger."""
    for _ in range(_DEPTH):
        if whole is None or whole.op not in ("add", "clamp", "maximum"):
            break
        literal = whole.attrs.get("scalars") or {}
        if whole.op == "add" and not any(value >= 0 for value in literal.values()):
            break
        inner = ranges.root(whole, 1 if 0 in literal else 0)
        if inner is None or (whole.op == "add" and inner.op not in _SIZES):
            break
        whole = inner
    return whole


def _part_of_sum(ranges: Ranges, site: Site, part: int, whole: Site) -> Range | None:
    """x / (x + y) lies within [0, 1], and x / (1 + |x|) within [-1, 1], for what is not negative."""
    if any(ranges.operand(whole, side).low < 0 for side in (0, 1)):
        return None
    for side in (0, 1):
        if ranges.same(whole, side, site, part) and ranges.operand(site, part).low >= 0:
            return UNIT
        inner = ranges.root(whole, side)
        if inner is not None and inner.op == "abs" and ranges.same(inner, 0, site, part):
            return symmetric(1.0)
    return None


def root_of_squares(ranges: Ranges, root: Site, site: Site, part: int) -> float:
    """For a root of the sum or mean of the squares of a part: how large the quotient can get; 0 where it is not."""
    total = ranges.root(root)
    for _ in range(_DEPTH):
        if total is not None and total.op in ("add", "clamp", "maximum") and total.attrs.get("scalars", True):
            total = ranges.root(total)
    if total is None:
        return 0.0
    count = math.sqrt(max(reduced_count(total), 1))
    if total.op == "var":
        return count + 1 if _is_centred(ranges, site, part, total) else 0.0
    squares = ranges.root(total)
    if total.op not in ("sum", "mean") or squares is None or not is_square(ranges, squares):
        return 0.0
    if not ranges.covers(squares, 0, site, part):
        return 0.0
    return 1.0 if total.op == "sum" else count


def _is_centred(ranges: Ranges, site: Site, part: int, variance: Site) -> bool:
    """Whether a part is x - mean(x), of the x whose variance it is divided by."""
    made = ranges.root(site, part)
    if made is None or made.op != "sub" or not ranges.same(made, 0, variance, 0):
        return False
    mean = ranges.root(made, 1)
    return mean is not None and mean.op == "mean" and ranges.same(mean, 0, variance, 0)


def is_unit_vector(ranges: Ranges, site: Site, index: int, depth: int = 0) -> bool:
    """Whether an operand's rows have a norm of at most 1: normalised by a function or by hand."""
    made = ranges.root(site, index)
    if made is None or depth > _DEPTH:
        return False
    if made.op == "normalize":
        return bool(made.attrs.get("p", 2) == 2)
    if made.op == "div":
        whole = _without_eps(ranges, ranges.root(made, 1))
        if whole is None:
            return False
        if whole.op == "sqrt":
            return root_of_squares(ranges, whole, made, 0) == 1.0
        return whole.op in NORMS and norm_order(whole) in (1, 2, "fro") and ranges.covers(whole, 0, made, 0)
    if made.op == "mul":
        return any(
            factor is not None and factor.op == "rsqrt" and root_of_squares(ranges, factor, made, 1 - side) == 1.0
            for side in (0, 1)
            for factor in [ranges.root(made, side)]
        )
    if made.op in COPIES_ALL:
        return all(is_unit_vector(ranges, made, place, depth + 1) for place in range(len(made.inputs)))
    return False

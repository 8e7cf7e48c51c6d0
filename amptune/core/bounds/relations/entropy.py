"""Products p * log(p) of shares, and their sums: the entropy of n shares that add up to 1 is at most log(n)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of, reduced_count
from amptune.core.bounds.intervals import Range, point
from amptune.core.bounds.relations.alignment import is_plain, meets
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

LOGARITHMS = {"log": 1.0, "log2": 1 / math.log(2.0), "log10": 1 / math.log(10.0)}
"""Ops, and what they give for e."""
SHARES = ("softmax", "softmin", "gumbel_softmax")
"""Ops whose results add up to 1 along an axis."""
_SMALLEST = 1e-7
_ROUNDING = 1.01
"""Room for shares that add up to 1 but for rounding."""


def is_entropy(ranges: Ranges, site: Site, other: int, logarithm: Site) -> bool:
    """Whether a product is x * log(x) or x * log(x + eps), for x in [0, 1]: at least -1/e."""
    share = ranges.operand(site, other)
    if share.low < 0 or share.high > 1:
        return False
    inner = ranges.root(logarithm)
    guarded = (
        inner is not None
        and inner.op in ("add", "clamp")
        and ranges.same(inner, 0, site, other)
        and is_plain(ranges, logarithm, 0)
    )
    return ranges.same(logarithm, 0, site, other) or guarded


def entropy(ranges: Ranges, site: Site, made: Site) -> Range | None:
    """Bounds of a sum of p * log(p) over shares p of n that add up to 1: each row that is summed is at least -log(n).

    Args:
        ranges: what is known already.
        site: the sum.
        made: the product that is summed.
    """
    for side, other in ((0, 1), (1, 0)):
        logarithm = ranges.root(made, side)
        if not all(is_plain(ranges, *each) for each in ((site, 0), (made, side), (made, other))):
            continue
        if logarithm is None or logarithm.op not in LOGARITHMS or not is_entropy(ranges, made, other, logarithm):
            continue
        if count := _count(ranges, ranges.root(made, other), site):
            rows = max(reduced_count(site) // count, 1)
            return Range(-LOGARITHMS[logarithm.op] * math.log(count) * rows * _ROUNDING, math.inf)
    return None


def least_of_powers(ranges: Ranges, site: Site, made: Site) -> float:
    """What a sum of powers of shares of n is at least, as the largest is at least 1 / n: sharpened
    probabilities ``p ** (1 / t) / (p ** (1 / t)).sum()``. 0 for another sum, and powers that FP16 rounds to zero."""
    exponent = 2 if made.op == "square" else exponent_of(made) if made.op == "pow" else None
    if exponent is None or exponent <= 0 or not all(is_plain(ranges, each, 0) for each in (site, made)):
        return 0.0
    count = _count(ranges, ranges.root(made), site)
    least = float(count) ** -exponent / 2 if count else 0.0
    return least if least > _SMALLEST else 0.0


def all_shares(ranges: Ranges, site: Site, made: Site) -> Range | None:
    """Bounds of a sum over all shares that add up to 1, of so many rows: each row is 1, but for rounding."""
    count = _count(ranges, made, site) if is_plain(ranges, site, 0) else 0
    rows = reduced_count(site) / count if count else 0
    return Range(rows / 2, 2 * rows) if rows else None


def all_one_hot(site: Site) -> Range | None:
    """Bounds of a sum over all kinds, of what one_hot gave and no view has turned: each row has a single 1."""
    shape = site.inputs[0].shape if site.inputs else ()
    is_whole = 0 in site.attrs.get("one_hot", ()) and 0 not in (site.attrs.get("views") or {})
    if not is_whole or not shape or not shape[-1] or len(shape) - 1 not in _axes(site, len(shape)):
        return None
    return point(float(reduced_count(site) // shape[-1]))


def _count(ranges: Ranges, shares: Site | None, total: Site) -> int:
    """Over how many numbers shares add up to 1, where a sum runs over all of those; 0 for what are no shares."""
    if shares is None or not shares.outputs or not shares.outputs[0].shape:
        return 0
    rank = len(shares.outputs[0].shape)
    axis = _axes(shares, rank) if shares.op in SHARES else {rank - 1}
    if len(axis) != 1 or not axis <= _axes(total, rank) or not _adds_to_one(ranges, shares, axis):
        return 0
    return int(shares.outputs[0].shape[axis.pop()])


def _adds_to_one(ranges: Ranges, site: Site, axis: set[int], depth: int = 0) -> bool:
    """Whether the numbers of a result are not negative and add up to 1 along an axis: those of a softmax, of one_hot,
    of ones that were scattered, of x / x.sum(), or means over other axes of these."""
    shape = site.outputs[0].shape if site.outputs else ()
    if not shape or depth > _DEPTH:
        return False
    rank = len(shape)
    if site.op in SHARES:
        return _axes(site, rank) == axis
    if axis != {rank - 1}:
        return False
    if site.op == "scatter":
        return _is_one_hot(ranges, site, rank)
    if site.op == "mean":
        own = len(site.inputs[0].shape) if site.inputs else 0
        return own - 1 not in _axes(site, own) and _rows_add_to_one(ranges, site, depth + 1)
    whole = ranges.root(site, 1) if site.op == "div" else None
    if whole is None or whole.op != "sum" or not ranges.same(whole, 0, site, 0) or ranges.operand(site, 0).low < 0:
        return False
    if not meets(ranges, whole, (whole, 0), (site, 0), (site, 1)):
        return False
    read = len(whole.inputs[0].shape)
    return _axes(whole, read) == {read - 1} == {rank - 1} and (rank == 1 or bool(whole.attrs.get("keepdim")))


def _is_one_hot(ranges: Ranges, site: Site, rank: int) -> bool:
    """zeros.scatter_(-1, index, 1) with one index in each row."""
    literal = site.attrs.get("src", site.attrs.get("value"))
    index = site.inputs[1].shape if len(site.inputs) == 2 else ()
    along = site.attrs.get("dim")
    last = isinstance(along, int) and along % rank == rank - 1
    one_each = index == (*site.outputs[0].shape[:-1], 1)
    return last and literal == 1 and one_each and ranges.input(site, 0) == point(0.0)


def _rows_add_to_one(ranges: Ranges, site: Site, depth: int) -> bool:
    """The same of the first operand of a site, seen through views that leave the last axis as it is."""
    views = (site.attrs.get("views") or {}).get(0, ("", ""))[1]
    if any(not step.startswith(_KEEP_ROWS) for step in views.split("} ") if step):
        return False
    if 0 in site.attrs.get("one_hot", ()):
        return True
    made = ranges.root(site)
    last = site.inputs[0].shape[-1:]
    if made is None or not made.outputs or made.outputs[0].shape[-1:] != last:
        return False
    return _adds_to_one(ranges, made, {len(made.outputs[0].shape) - 1}, depth)


_DEPTH = 4
_KEEP_ROWS = ("view", "reshape", "flatten", "unsqueeze(0")


def _axes(site: Site, rank: int) -> set[int]:
    """The axes that an op runs over, counted from 0: all where it names none."""
    dims = site.attrs.get("dim")
    named = dims if isinstance(dims, list | tuple) else [dims]
    return {dim % rank for dim in named if isinstance(dim, int)} if dims is not None else set(range(rank))

"""Products p * log(p) of shares, and their sums: the entropy of n shares that add up to 1 is at most log(n)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.intervals import Range
from amptune.core.range_rules import reduced_count

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

LOGARITHMS = {"log": 1.0, "log2": 1 / math.log(2.0), "log10": 1 / math.log(10.0)}
"""Ops, and what they give for e."""
SHARES = ("softmax", "softmin", "gumbel_softmax")
"""Ops whose results add up to 1 along an axis."""
_ROUNDING = 1.01
"""Room for shares that add up to 1 but for rounding."""


def is_entropy(ranges: Ranges, site: Site, other: int, logarithm: Site) -> bool:
    """Whether a product is x * log(x) or x * log(x + eps), for x in [0, 1]: at least -1/e."""
    share = ranges.operand(site, other)
    if share.low < 0 or share.high > 1:
        return False
    inner = ranges.root(logarithm)
    guarded = inner is not None and inner.op in ("add", "clamp") and ranges.same(inner, 0, site, other)
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
        if logarithm is None or logarithm.op not in LOGARITHMS or not is_entropy(ranges, made, other, logarithm):
            continue
        if count := _count(ranges, ranges.root(made, other), site):
            rows = max(reduced_count(site) // count, 1)
            return Range(-LOGARITHMS[logarithm.op] * math.log(count) * rows * _ROUNDING, math.inf)
    return None


def _count(ranges: Ranges, shares: Site | None, total: Site) -> int:
    """Over how many numbers shares add up to 1, where a sum runs over all of those; 0 for what are no shares."""
    if shares is None or not shares.outputs or not shares.outputs[0].shape:
        return 0
    softmax = ranges.root(shares) if shares.op == "mean" else shares
    if softmax is None or softmax.op not in SHARES or not softmax.outputs:
        return 0
    own = len(softmax.outputs[0].shape)
    axis = _axes(softmax, own)
    if shares.op == "mean" and (axis != {own - 1} or axis & _axes(shares, own)):
        return 0  # the mean of shares over rows has shares again
    kept = len(shares.outputs[0].shape)
    axis = {kept - 1} if shares.op == "mean" else axis
    if len(axis) != 1 or not axis <= _axes(total, kept):
        return 0
    return int(shares.outputs[0].shape[axis.pop()])


def _axes(site: Site, rank: int) -> set[int]:
    """The axes that an op runs over, counted from 0: all where it names none."""
    dims = site.attrs.get("dim")
    named = dims if isinstance(dims, list | tuple) else [dims]
    return {dim % rank for dim in named if isinstance(dim, int)} if dims is not None else set(range(rank))

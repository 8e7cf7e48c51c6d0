"""Mixtures y * a + (1 - y) * b with y between 0 and 1: they lie between a and b."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.intervals import Range, point
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_ONE = point(1.0)


def blended(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of a sum whose terms are y (or y * a) and (1 - y) * b, in any order; ``None`` for other sums."""
    for side in (0, 1):
        rest = ranges.root(site, side)
        if rest is None or rest.op != "mul" or is_scaled(site) or not is_plain(ranges, site, side):
            continue
        for place in (0, 1):
            share = ranges.root(rest, place)
            if share is None or share.op != "sub" or is_scaled(share) or ranges.operand(share, 0) != _ONE:
                continue
            if not is_plain(ranges, rest, place):
                continue
            first = _times(ranges, site, 1 - side, share)
            if first is not None and _is_share(ranges.operand(share, 1)):
                return first.union(ranges.operand(rest, 1 - place))
    return None


def _times(ranges: Ranges, site: Site, index: int, share: Site) -> Range | None:
    """What y is multiplied by in an operand, where ``share`` is 1 - y."""
    if ranges.same(site, index, share, 1):
        return _ONE
    product = ranges.root(site, index)
    if product is None or product.op != "mul" or not is_plain(ranges, site, index):
        return None
    for place in (0, 1):
        if ranges.same(product, place, share, 1):
            return ranges.operand(product, 1 - place)
    return None


def _is_share(found: Range) -> bool:
    return found.low >= 0 and found.high <= 1

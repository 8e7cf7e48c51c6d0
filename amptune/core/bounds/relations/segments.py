"""Sums of exponentials, which are above zero, and what is folded by segment and read back by the same index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.masked import kept_by_mask
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_DEPTH = 6


def is_positive_sum(ranges: Ranges, site: Site | None, depth: int = 0) -> bool:
    """Whether a site adds what is not negative to exponentials: above zero, until all of them underflow at once."""
    if site is None or depth > _DEPTH:
        return False
    if site.op == "sqrt":
        return is_positive_sum(ranges, ranges.root(site), depth + 1)
    if site.op in ("sum", "mean", "cumsum"):
        made = ranges.root(site)
        kept = kept_by_mask(site, made) if made is not None and is_plain(ranges, site, 0) else None
        return _is_exponential(
            ranges, ranges.root(made, kept) if made is not None and kept is not None else made, depth
        )
    if site.op != "add" or any(ranges.operand(site, side).low < 0 for side in (0, 1)):
        return False
    return any(_is_exponential(ranges, ranges.root(site, side), depth) for side in (0, 1))


def _is_exponential(ranges: Ranges, site: Site | None, depth: int) -> bool:
    """Whether all numbers of a site are exponentials, products of them, or sums of either."""
    if site is None or depth > _DEPTH:
        return False
    if site.op == "mul":
        return all(_is_exponential(ranges, ranges.root(site, side), depth + 1) for side in (0, 1))
    return site.op in ("exp", "exp2") or is_positive_sum(ranges, site, depth + 1)


def reads_back_sum(ranges: Ranges, site: Site, place: int) -> bool:
    """Whether an operand is what exponentials add up to by segment, read back by the index that they were added by: the
    softmax of a graph's edges, in which each edge is part of its own sum."""
    total = ranges.root(site, place)
    if total is None or total.op not in ("index_add", "scatter_add", "scatter_reduce"):
        return False
    exponentials = (ranges.root(total, part) for part in range(1, len(total.inputs) + 1))
    return reads_back(ranges, site, place, total) and any(_is_exponential(ranges, each, 0) for each in exponentials)


def reads_back(ranges: Ranges, site: Site, place: int, total: Site) -> bool:
    """Whether an operand is read from what was folded by segment, by the index that it was folded by."""
    position = input_of(site, place)
    picked = ranges.maker(site, position) if position is not None else None
    if picked is None or picked.op not in ("index", "index_select", "gather") or ranges.root(picked) is not total:
        return False
    if _axis_of(picked) is None or _axis_of(picked) != _axis_of(total):
        return False
    return any(
        ranges.covers(picked, own, total, part)
        for own in range(1, len(picked.inputs) + 1)
        for part in range(1, len(total.inputs) + 1)
    )


def _axis_of(site: Site) -> int | None:
    """The axis along which a site picks or folds by an index, counted from the first."""
    if site.op == "index":
        by = [place for place, index in enumerate((site.attrs.get("operands") or [])[1:]) if index is not None]
        return by[0] if len(by) == 1 else None
    dim, rank = site.attrs.get("dim"), max(len(site.outputs[0].shape), 1) if site.outputs else 1
    return dim % rank if isinstance(dim, int) else None

"""Differences of all pairs of one tensor's rows, ``x[:, None] - x[None]``: zero where a row meets itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.relations.squares import is_square
from amptune.core.graph import Site
from amptune.core.operands import input_of, written_into

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_MOVED = re.compile(r"permute|transpose|movedim|swap|\bt\(|flip|roll|as_strided|diagonal")
_WHOLE = re.compile(r"(slice\(\(((slice\(None, None, None\)|None|Ellipsis),? ?)+\),\)\{\}\s*)*")
"""Views that a recorded forward writes as indexing, and that add axes alone: ``x[:, None]``."""
_UNSIGNED = frozenset({"abs"})
_DEPTH = 4
"""Factors between distances and the exponential that they are in."""


def is_between_all_pairs(ranges: Ranges, site: Site) -> bool:
    """Whether a site reads sums of squares of such differences, over other axes than those of the pairs."""
    total = _maker(ranges, site)
    return total is not None and bool(_pairs_of(ranges, total))


def reaches_itself(ranges: Ranges, site: Site | None, axes: frozenset[int]) -> bool:
    """Whether each line of a site along ``axes`` has a zero: distances of all pairs, as sums of squares or magnitudes,
    times or over numbers. They are zero where a row meets itself."""
    for _ in range(_DEPTH):
        if site is None or site.op not in ("mul", "div", "neg"):
            break
        if site.op != "neg" and len(site.inputs) + len(site.params) != 1:
            return False
        if site.op == "div" and input_of(site, 0) is None:
            return False  # a number over the distances
        site = _maker(ranges, site)
    return site is not None and bool(axes & _pairs_of(ranges, site))


def _pairs_of(ranges: Ranges, total: Site) -> frozenset[int]:
    """The axes of the pairs, in a sum of squares or magnitudes of their differences over other axes; none of others."""
    squares = _maker(ranges, total) if total.op in ("sum", "mean") else None
    if squares is None or not (is_square(ranges, squares) or squares.op in _UNSIGNED):
        return frozenset()
    difference = _maker(ranges, squares)
    paired = _paired_axes(ranges, difference) if difference is not None else frozenset()
    summed = _summed_axes(total)
    if paired & summed:
        return frozenset()
    is_kept = len(total.outputs[0].shape) == len(total.inputs[0].shape)
    return frozenset(axis if is_kept else axis - sum(other < axis for other in summed) for axis in paired)


def _maker(ranges: Ranges, site: Site) -> Site | None:
    """The site whose result a site reads whole: what picks some of its numbers may leave the diagonal out."""
    position = input_of(site, 0)
    if position is None or not _WHOLE.fullmatch((site.attrs.get("views") or {}).get(position, ("", ""))[0]):
        return None
    return ranges.maker(site, position)


def _paired_axes(ranges: Ranges, site: Site) -> frozenset[int]:
    """The axes along which a difference pairs the rows of one tensor with each other; empty where it does not."""
    places = [input_of(site, side) for side in (0, 1)]
    if site.op != "sub" or None in places or is_scaled(site) or not site.outputs:
        return frozenset()
    shape, views = site.outputs[0].shape, site.attrs.get("views") or {}
    seen = [((1,) * len(shape) + site.inputs[place].shape)[-len(shape) :] for place in places if place is not None]
    first, second = (ranges.sources(site)[place] for place in places if place is not None)
    told = [views.get(place, ("", "")) for place in places]
    batch = site.attrs.get("batch") or {}
    names = [batch.get(place) for place in places]
    altered = any(written_into(site, place) for place in places if place is not None)
    is_one = not altered and first == second and (first in ranges.graph or (None not in names and names[0] == names[1]))
    cuts = [_WHOLE.sub("", each[0]) for each in told]
    if not is_one or cuts[0] != cuts[1] or any(_MOVED.search(each[1]) for each in told):
        return frozenset()
    axes = frozenset(axis for axis, (one, other) in enumerate(zip(*seen, strict=True)) if one != other)
    lone = [sorted(size for size in each if size != 1) for each in seen]
    return axes if len(axes) == 2 and lone[0] == lone[1] and 1 in {seen[0][axis] for axis in axes} else frozenset()


def _summed_axes(total: Site) -> frozenset[int]:
    """The axes that a reduction runs over, counted from the first."""
    rank, dims = len(total.inputs[0].shape) if total.inputs else 0, total.attrs.get("dim")
    if dims is None or not rank:
        return frozenset(range(rank))
    return frozenset(int(dim) % rank for dim in (dims if isinstance(dims, list | tuple) else (dims,)))

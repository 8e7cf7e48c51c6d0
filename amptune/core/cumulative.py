"""Differences of a cumulative sum: what is added from one place to a later one has the sign of its terms."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.intervals import Range
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

_LAST = re.compile(r"slice\(-1, None|, -1, 9223372036854775807|^select\([-\d]+, -1\)|^narrow\([-\d]+, -1")
"""Views that pick the last element along an axis, as torch.export and a recorded forward write them."""


def rest_of_sum(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``c[..., -1:] - c`` where c is the cumulative sum of terms of one sign."""
    whole = ranges.root(site, 1)
    if whole is None or whole.op != "cumsum" or ranges.root(site, 0) is not whole or site.attrs.get("alpha"):
        return None
    views = site.attrs.get("views") or {}
    last, every = (views.get(input_of(site, index), ("", "")) for index in (0, 1))
    if every[0] or not _LAST.search(last[0]) or not _is_last(site, whole):
        return None
    terms = ranges.operand(whole, 0)
    if terms.high <= 0:
        return Range(-math.inf, 0.0)
    return Range(0.0, math.inf) if terms.low >= 0 else None


def _is_last(site: Site, whole: Site) -> bool:
    """Whether the first operand has one element along the axis of the sum, and all along the others."""
    dim, shape = whole.attrs.get("dim"), whole.outputs[0].shape
    position = input_of(site, 0)
    if not isinstance(dim, int) or position is None:
        return False
    picked = list(shape)
    picked[dim] = 1
    return site.inputs[position].shape == tuple(picked)


_REARRANGES = re.compile(
    r"permute|transpose|movedim|view|reshape|flatten|swap|\bt\(|::-1|as_strided|diagonal|roll|flip"
)


def between_steps(ranges: Ranges, site: Site, operand: int, mask: int, *, kept: bool) -> Range | None:
    """Bounds of what a causal mask leaves of ``c[..., :, None] - c[..., None, :]``, c being a cumulative sum of terms
    of one sign: the decays from each step to each later one.

    Args:
        ranges: bounds of what comes before.
        site: a masked_fill or where.
        operand: which of its operands is the difference.
        mask: which of its operands is the mask.
        kept: whether the difference is left where the mask holds, rather than where it does not.
    """
    difference = ranges.root(site, operand)
    position = input_of(site, mask)
    is_causal = (site.attrs.get("triangles") or {}).get(position, (False, False))[0 if kept else 1]
    if difference is None or difference.op != "sub" or difference.attrs.get("alpha") or not is_causal:
        return None
    if any((site.attrs.get("views") or {}).get(input_of(site, operand), ("", ""))):
        return None
    whole = ranges.root(difference, 0)
    if whole is None or whole.op != "cumsum" or ranges.root(difference, 1) is not whole:
        return None
    forward = _rows_and_columns(ranges, difference, whole)
    terms = ranges.operand(whole, 0)
    below, above = (terms.high <= 0, terms.low >= 0) if forward else (terms.low >= 0, terms.high <= 0)
    if forward is None or not (below or above):
        return None
    return Range(-math.inf, 0.0) if below else Range(0.0, math.inf)


def _rows_and_columns(ranges: Ranges, difference: Site, whole: Site) -> bool | None:
    """Whether a difference is that of row less column over the last axis of a cumulative sum (False: column less row);
    ``None`` where it is neither."""
    shape, dim = whole.outputs[0].shape, whole.attrs.get("dim")
    places = [input_of(difference, side) for side in (0, 1)]
    if not shape or dim not in (-1, len(shape) - 1) or None in places:
        return None
    views = difference.attrs.get("views") or {}
    direct = all(ranges.sources(difference)[place] == whole.id for place in places if place is not None)
    if not direct or any(_REARRANGES.search(views.get(place, ("", ""))[1]) for place in places):
        return None
    seen = [difference.inputs[place].shape for place in places if place is not None]
    rows, columns = (*shape, 1), (*shape[:-1], 1, shape[-1])
    if seen == [rows, columns]:
        return True
    return False if seen == [columns, rows] else None

"""Differences of a cumulative sum: what is added from one place to a later one has the sign of its terms."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.intervals import Range, scaled
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.order import stepped_axis
from amptune.core.bounds.relations.terms import is_as_made, is_direct
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_LAST = re.compile(r"slice\(-1, None|, -1, 9223372036854775807|^select\([-\d]+, -1\)|^narrow\([-\d]+, -1")
"""Views that pick the last element along an axis, as torch.export and a recorded forward write them."""
_SELECTED = re.compile(r"(?:select\(0, -?\d+\)\{\}\s*|slice\(-?\d+,\)\{\}\s*)*")
"""Views that pick one element along leading axes, such as one chunk of many."""

_REARRANGES = re.compile(
    r"permute|transpose|movedim|view|reshape|flatten|swap|\bt\(|::-1|as_strided|diagonal|roll|flip"
)


def rest_of_sum(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``c[..., -1:] - c`` where c is the cumulative sum of terms of one sign, or one chunk of it."""
    whole = ranges.root(site, 1)
    if (
        whole is None
        or whole.op != "cumsum"
        or not ranges.repeats(ranges.root(site, 0), whole)
        or is_scaled(site)
        or not (is_direct(ranges, site, 0) and is_direct(ranges, site, 1))
    ):
        return None
    views = site.attrs.get("views") or {}
    last, every = (views.get(input_of(site, index), ("", "")) for index in (0, 1))
    if not _SELECTED.fullmatch(every[0]) or any(_REARRANGES.search(views) for _, views in (last, every)):
        return None
    if not last[0].endswith(every[0]) or not _LAST.search(last[0].removesuffix(every[0])):
        return None
    if not _is_last(site, whole, every[0].count("{}")):
        return None
    terms = ranges.operand(whole, 0)
    if terms.high <= 0:
        return Range(-math.inf, 0.0)
    return Range(0.0, math.inf) if terms.low >= 0 else None


def _is_last(site: Site, whole: Site, selected: int) -> bool:
    """Whether the first operand has one element along the axis of the sum, and all along the others but the first
    ``selected`` ones, of which both operands have one element alone."""
    dim, shape = whole.attrs.get("dim"), whole.outputs[0].shape
    position = input_of(site, 0)
    if not isinstance(dim, int) or position is None or not shape or dim % len(shape) < selected:
        return False
    picked = list(shape)
    picked[dim] = 1
    return site.inputs[position].shape == tuple(picked[selected:])


def whole_and_rest(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``t.sum() + (c - t).cumsum()`` with t within 0 and c, as in the union of the Lovasz extension: at each
    place c for what came so far, and the terms that are still to come."""
    for side in (0, 1):
        whole, rest = ranges.root(site, side), ranges.root(site, 1 - side)
        if whole is None or rest is None or whole.op != "sum" or rest.op != "cumsum" or is_scaled(site):
            continue
        terms = ranges.root(rest)
        if terms is None or terms.op != "sub" or is_scaled(terms) or not ranges.same(whole, 0, terms, 1):
            continue
        number, within = (terms.attrs.get("scalars") or {}).get(0), ranges.operand(terms, 1)
        if not isinstance(number, int | float) or within.low < 0 or within.high > number:
            continue
        if is_as_made(ranges, rest, 0) and _is_beside(ranges, site, side, whole, rest):
            return Range(float(number), math.inf)
    return None


def _is_beside(ranges: Ranges, site: Site, side: int, whole: Site, rest: Site) -> bool:
    """Whether each line of a cumulative sum meets the sum over that line, or over all there is."""
    position, other = input_of(site, side), input_of(site, 1 - side)
    if position is None or other is None or not all(is_as_made(ranges, site, index) for index in (0, 1)):
        return False
    if whole.outputs[0].numel == 1:
        return True
    line, shape, dim = list(rest.outputs[0].shape), whole.inputs[0].shape, rest.attrs.get("dim")
    if not isinstance(dim, int) or site.inputs[other].shape != tuple(line) or shape != tuple(line):
        return False
    line[dim] = 1
    dims = whole.attrs.get("dim")
    if isinstance(dims, list | tuple):
        dims = dims[0] if len(dims) == 1 else None
    same_axis = isinstance(dims, int) and dims % len(line) == dim % len(line)
    return same_axis and site.inputs[position].shape == tuple(line)


def steps_of_sum(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``c[..., 1:] - c[..., :-1]`` and of ``c.diff()`` where c is a cumulative sum, scaled and shifted by
    literals or not, that may start with a zero: those of its terms, as far as the rounding of c leaves them."""
    made = ranges.root(site, 0)
    axis = stepped_axis(site) if site.op == "sub" else site.attrs.get("dim", -1)
    if (
        made is None
        or not isinstance(axis, int)
        or (site.op == "sub" and not ranges.repeats(ranges.root(site, 1), made))
        or not all(is_direct(ranges, site, index) for index in range(2 if site.op == "sub" else 1))
    ):
        return None
    found = _sum_behind(ranges, made, axis)
    if found is None:
        return None
    whole, scale = found
    terms, size = scaled(ranges.operand(whole, 0), scale), ranges.operand(site, 0).magnitude
    lost = ranges.epsilon(site, 0) * size if math.isfinite(size) else math.inf
    if terms.low > 2 * lost:
        return Range(terms.low - lost, terms.high + lost)
    return None


def _sum_behind(ranges: Ranges, site: Site, axis: int) -> tuple[Site, float] | None:
    """The cumulative sum along an axis that literals scaled and shifted, and the scale."""
    current: Site | None = site
    if not site.outputs:  # what is written into a part of a tensor
        return None
    scale, rank = 1.0, len(site.outputs[0].shape)
    while current is not None and current.op != "cumsum":
        numbers = current.attrs.get("scalars") or {}
        views = (current.attrs.get("views") or {}).values()
        if any(views) or len(current.inputs) != 1 or not any(is_direct(ranges, current, side) for side in (0, 1)):
            return None
        if current.op == "pad":
            starts = current.attrs.get("pad") == [1, 0] and current.attrs.get("mode") == "constant"
            if not starts or current.attrs.get("value") or axis % rank != rank - 1:
                return None
        elif current.op in ("mul", "div") and numbers.get(1, 0) > 0:
            scale *= numbers[1] if current.op == "mul" else 1 / numbers[1]
        elif current.op not in ("add", "sub") or 1 not in numbers:
            return None
        current = ranges.root(current)
    dim = current.attrs.get("dim") if current is not None else None
    return (current, scale) if current is not None and isinstance(dim, int) and dim % rank == axis % rank else None


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
    if difference is None or difference.op != "sub" or is_scaled(difference) or not is_causal:
        return None
    if not is_plain(ranges, site, operand):
        return None
    whole = ranges.root(difference, 0)
    if whole is None or whole.op != "cumsum" or not ranges.repeats(ranges.root(difference, 1), whole):
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
    direct = all(ranges.repeats(ranges.maker(difference, place), whole) for place in places if place is not None)
    if not direct or any(_REARRANGES.search(views.get(place, ("", ""))[1]) for place in places):
        return None
    seen = [difference.inputs[place].shape for place in places if place is not None]
    rows, columns = (*shape, 1), (*shape[:-1], 1, shape[-1])
    if seen == [rows, columns]:
        return True
    return False if seen == [columns, rows] else None

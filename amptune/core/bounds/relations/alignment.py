"""Where the numbers of two operands meet: a reduction read beside what it was made of, number by number or line by
line, with nothing on the way that turns round, picks or pairs all with all."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from amptune.core.bounds.relations.terms import is_as_made, is_direct
from amptune.core.bounds.structure import told_once
from amptune.core.graph import Site
from amptune.core.operands import arity, input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_DEPTH = 8
_REDUCTIONS = frozenset(
    {"max", "amax", "min", "amin", "sum", "mean", "var", "std", "norm", "linalg_vector_norm", "logsumexp"}
)
_EXPANDED = re.compile(r"expand\([^{]*\)\{\}|expand_as\([^{]*\)\{\}|broadcast_to\([^{]*\)\{\}")
_ALONG = frozenset({"gather", "take_along_dim", "index_select", "flip", "roll", "sort", "topk", "cummax", "cummin"})
"""Ops that pick numbers along one axis, and leave the others as they are."""


@told_once
def is_plain(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether an operand is the result of a site as it was made: all of it, in its order and in its shape."""
    position, made = input_of(site, index), ranges.root(site, index)
    if position is None or made is None or not made.outputs:
        return False
    return site.inputs[position].shape == made.outputs[0].shape and is_as_made(ranges, site, index)


def axes_of(site: Site) -> frozenset[int]:
    """The axes that a reduction folds, counted from the first; all of them where none is named."""
    rank = len(site.inputs[0].shape) if site.inputs else 0
    named = site.attrs.get("dim", site.attrs.get("axis"))
    axes = named if isinstance(named, list | tuple) else (named,)
    if named is None or not axes or not rank:
        return frozenset(range(rank))
    return frozenset(axis % rank for axis in axes if isinstance(axis, int))


def is_elementwise(site: Site) -> bool:
    """Whether a site gives a number for each number that it reads, as ``max(x, y)`` does and ``max(x)`` does not."""
    return site.op not in _REDUCTIONS or (site.op in ("max", "min") and len(site.inputs) > 1)


def meets(ranges: Ranges, total: Site, over: tuple[Site, int], part: tuple[Site, int], seen: tuple[Site, int]) -> bool:
    """Whether each number of an operand meets the reduction of a line that holds it.

    Args:
        ranges: the analysis.
        total: the reduction, or an op that gives a number for each.
        over: what it reduces, as an operand of the reduction itself or of plain arithmetic before it.
        part: the operand.
        seen: the operand of the same site through which the reduction is read, with plain arithmetic on the way or not.
    """
    if not total.outputs or not total.inputs or not ranges.covers(*over, *part):
        return False
    if total.outputs[0].numel == 1 and not is_elementwise(total):
        return True
    shape, own = _shape(*part), _shape(*seen)
    whole = total.inputs[0].shape if not is_elementwise(total) else total.outputs[0].shape
    folded = frozenset() if is_elementwise(total) else axes_of(total)
    if shape is None or own is None or len(shape) != len(whole) or len(own) > len(whole):
        return False
    own = (1,) * (len(whole) - len(own)) + own
    kept = [axis for axis in range(len(whole)) if axis not in folded]
    if any(shape[axis] != whole[axis] or own[axis] != whole[axis] for axis in kept):
        return False
    if any(own[axis] not in (1, shape[axis]) for axis in folded):
        return False
    return _is_turned_alike(ranges, over, part, folded) and _reaches(ranges, *seen, total)


def _shape(site: Site, index: int) -> tuple[int, ...] | None:
    position = input_of(site, index)
    return None if position is None else tuple(site.inputs[position].shape)


def _is_turned_alike(
    ranges: Ranges, over: tuple[Site, int], part: tuple[Site, int], folded: frozenset[int]
) -> bool:  # fmt: skip
    """Whether two operands see a tensor the same way, but for what one of them picks along the axes that are folded."""
    left, right = ranges.seen(*over), ranges.seen(*part)
    position = input_of(*part)
    cuts = (part[0].attrs.get("views") or {}).get(position, ("", ""))[0]
    if left is not None and left == right:
        return ranges.same(*over, *part) or not _moves_axes(cuts)
    picked = ranges.maker(part[0], position) if position is not None else None
    if picked is None or picked.op not in _ALONG or not is_plain_maker(part[0], position, picked):
        return False
    dims, rank = picked.attrs.get("dim"), max(len(picked.inputs[0].shape), 1)
    along = dims if isinstance(dims, list | tuple) else (dims,)
    if not all(isinstance(dim, int) and dim % rank in folded for dim in along):
        return False
    return left is not None and left == ranges.seen(picked, 0)


def _moves_axes(cuts: str) -> bool:
    """Whether picking a part gives numbers another axis than the one that they were on."""
    return "as_strided" in cuts or "None" in _SLICE.sub("", cuts)


_SLICE = re.compile(r"slice\((?:-?\w+, ){2}-?\w+\)")


def is_plain_maker(site: Site, position: int | None, made: Site) -> bool:
    """Whether an input is a result as it was made, with no view on the way."""
    return position is not None and bool(made.outputs) and position not in (site.attrs.get("views") or {})


def _reaches(ranges: Ranges, site: Site, index: int, total: Site, depth: int = 0) -> bool:
    """Whether an operand is a reduction, with arithmetic on the way that gives a number for each and turns nothing."""
    made = ranges.root(site, index)
    if made is None or depth > _DEPTH or not made.outputs or not _is_in_order(ranges, site, index):
        return False
    if made is total:
        return True
    if made.outputs[0].numel != total.outputs[0].numel:
        return False
    return any(_reaches(ranges, made, place, total, depth + 1) for place in range(arity(made)))


def _is_in_order(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether an operand has the numbers of its root in their order, each once or spread along axes of one."""
    if is_as_made(ranges, site, index):
        return True
    position = input_of(site, index)
    views = (site.attrs.get("views") or {}).get(position, ("", ""))[1]
    left = _EXPANDED.sub("", views).strip()
    return not left and is_direct(ranges, site, index)

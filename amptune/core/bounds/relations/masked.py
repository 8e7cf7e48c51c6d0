"""Sums of positive numbers of which a constant mask takes some away: log(sum(exp(x) * ~eye)) and its like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


def least_kept(ranges: Ranges, site: Site, made: Site) -> float:
    """The least that a sum of positive numbers can be of which a constant mask takes some away: the smallest of them,
    where each row that is summed keeps one; 0 where that is not known."""
    if not is_plain(ranges, site, 0):
        return 0.0
    if made.op == "mul":
        sides = [(side, 1 - side) for side in (0, 1) if ranges.operand(made, side).low > 0]
        return max((ranges.operand(made, side).low for side, mask in sides if _keeps(site, made, mask, 0)), default=0.0)
    if made.op == "masked_fill" and made.attrs.get("value") == 0 and _keeps(site, made, 1, 1):
        return ranges.operand(made, 0).low
    if made.op == "where" and (made.attrs.get("scalars") or {}).get(2) == 0 and _keeps(site, made, 0, 0):
        return ranges.operand(made, 1).low
    is_diagonal = made.op == "index_put" and made.attrs.get("called") == "fill_diagonal_"
    if is_diagonal and made.attrs.get("in_place") and made.inputs[0].shape[-1:] > (1,) and len(made.inputs) == 1:
        return ranges.operand(made, 0).low
    return 0.0


def kept_by_mask(site: Site, made: Site) -> int | None:
    """The operand of ``made`` of which a constant mask leaves at least one number in each row that ``site`` sums, zeros
    beside it; ``None`` where there is no such mask."""
    if made.op == "masked_fill" and made.attrs.get("value") == 0 and _keeps(site, made, 1, 1):
        return 0
    if made.op == "where" and (made.attrs.get("scalars") or {}).get(2) == 0 and _keeps(site, made, 0, 0):
        return 1
    return None


def _keeps(site: Site, made: Site, mask: int, which: int) -> bool:
    """Whether along one of the axes that ``site`` sums, every line of a constant mask has a number that is not zero
    (``which`` 0), or a zero (1)."""
    position = input_of(made, mask)
    kept = (made.attrs.get("kept") or {}).get(position, ((), ()))[which]
    whole, own = site.inputs[0].shape, made.inputs[position or 0].shape
    rank, dims = len(whole), site.attrs.get("dim")
    axes = dims if isinstance(dims, list | tuple) else range(rank) if dims is None else [dims]
    ends = [axis % rank - rank for axis in axes if rank and isinstance(axis, int)]
    return any(end in kept and end >= -len(own) and own[end] == whole[end] for end in ends)

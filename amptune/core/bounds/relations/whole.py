"""Operands that are whole numbers, whatever format they are in: counts, places, rounded numbers and their sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.operands import arity, input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_WHOLE = frozenset({"floor", "ceil", "sign", "count_nonzero", "eq", "ne", "lt", "le", "gt", "ge", "one_hot"})
_KEEP = frozenset(
    {
        "add",
        "sub",
        "mul",
        "maximum",
        "minimum",
        "neg",
        "abs",
        "square",
        "sum",
        "cumsum",
        "amax",
        "amin",
        "relu",
        "clamp",
    }
)
"""Ops that make whole numbers of whole numbers."""
_DEPTH = 6


def is_whole(ranges: Ranges, site: Site, index: int, depth: int = 0) -> bool:
    """Whether an operand holds whole numbers alone, so that none of them is so small that it rounds to zero."""
    literal = (site.attrs.get("scalars") or {}).get(index)
    if literal is not None:
        return float(literal).is_integer()
    position, made = input_of(site, index), ranges.root(site, index)
    if position is not None and position in site.attrs.get("whole", ()):
        return True
    if made is None or depth > _DEPTH:
        return False
    if made.op in _WHOLE:
        return True
    return made.op in _KEEP and all(is_whole(ranges, made, place, depth + 1) for place in range(arity(made)))

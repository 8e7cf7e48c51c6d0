"""Site ids of ops that were watched, as a plan has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amptune.debug.record import Op


def site_of(op: Op, ops: Sequence[Op]) -> str:
    """Module path of a layer, or ``path#op.n`` with n in order of line and column where calls end."""
    if op.leaf:
        return op.path
    spots = {_order(other) for other in ops if other.path == op.path and other.op == op.op and not other.leaf}
    return f"{op.path}#{op.op}.{sorted(spots).index(_order(op))}" if _order(op) in spots else op.path


def same_line(op: Op, ops: Sequence[Op]) -> tuple[str, ...]:
    """Paths of other modules that run the same line."""
    found = dict.fromkeys(other.path for other in ops if other.spot == op.spot and other.path != op.path)
    return tuple(found)


def _order(op: Op) -> tuple[Any, ...]:
    spot = op.place.origin
    if spot is None:
        return ("", op.index, 0, 0, 0)
    # As amptune.core.opcodes orders them: an inner call comes before the one around it.
    return (spot.filename, spot.end_line, spot.end_column, -spot.line, -spot.column)

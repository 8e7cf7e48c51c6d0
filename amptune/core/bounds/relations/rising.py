"""Differences of a rising function at two places of which one is always the larger: the share of a bin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.order import RISING
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_DEPTH = 6


def is_rise(ranges: Ranges, site: Site) -> bool:
    """Whether a difference is ``f((x + a) / s) - f((x - b) / s)`` of a rising f: never below zero."""
    first, second = ranges.root(site, 0), ranges.root(site, 1)
    if first is None or second is None or first.op != second.op or first.op not in RISING:
        return False
    if any(each.attrs.get("called") == "erfc" for each in (first, second)):
        return False  # it falls, and shares its name in the op table
    return _is_above(ranges, first, 0, second, 0)


def _is_above(ranges: Ranges, first: Site, place: int, second: Site, other: int, depth: int = 0) -> bool:
    """Whether an operand of one site is at least as large as that of another, number by number."""
    if ranges.same(first, place, second, other):
        return True
    left, right = ranges.root(first, place), ranges.root(second, other)
    if depth > _DEPTH or left is None or right is None:
        return False
    if not (is_plain(ranges, first, place) and is_plain(ranges, second, other)):
        return False
    if (shift := _shift(ranges, left, right)) is not None:
        return shift >= 0
    if left.op != right.op:
        return False
    if left.op in RISING:
        return _is_above(ranges, left, 0, right, 0, depth + 1)
    if left.op == "div":
        return _is_same_scale(ranges, left, right, 1) and _is_above(ranges, left, 0, right, 0, depth + 1)
    if left.op == "mul":
        return any(
            _is_same_scale(ranges, left, right, side) and _is_above(ranges, left, 1 - side, right, 1 - side, depth + 1)
            for side in (0, 1)
        )
    return False


def _is_same_scale(ranges: Ranges, left: Site, right: Site, side: int) -> bool:
    """Whether both are scaled by the same numbers, none of them negative."""
    numbers = [(each.attrs.get("scalars") or {}).get(side) for each in (left, right)]
    if numbers != [None, None]:
        return numbers[0] == numbers[1] and isinstance(numbers[0], (int, float)) and numbers[0] > 0
    return ranges.operand(left, side).low >= 0 and ranges.same(left, side, right, side)


def _shift(ranges: Ranges, left: Site, right: Site) -> float | None:
    """What a literal adds to one tensor beyond what another adds to the same; ``None`` where they differ otherwise."""
    moved, still = _literal(left), _literal(right)
    if moved is not None and still is not None:
        return moved - still if ranges.same(left, 0, right, 0) else None
    return None


def _literal(site: Site) -> float | None:
    number = (site.attrs.get("scalars") or {}).get(1)
    if site.op not in ("add", "sub") or not isinstance(number, (int, float)) or is_scaled(site):
        return None
    return float(number) if site.op == "add" else -float(number)

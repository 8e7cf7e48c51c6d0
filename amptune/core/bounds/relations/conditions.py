"""What a condition says of the numbers that it chooses: ``where(x > c, x, y)``, ``x[x > 0]``, ``x + (x == 0)``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.intervals import Range, point
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.cumulative import between_steps
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


def chosen(ranges: Ranges, site: Site) -> Range | None:
    """where(x > c, x, y): the condition bounds the branch that it is about."""
    branches = []
    for branch, holds in ((1, True), (2, False)):
        found = _under(ranges, site, 0, branch, holds)
        if (later := between_steps(ranges, site, branch, 0, kept=holds)) is not None:
            found = found.within(later)
        branches.append(found)
    return branches[0].union(branches[1])


def filled(ranges: Ranges, site: Site) -> Range | None:
    """x.masked_fill(x == 0, y): what is left of x is what the mask does not hold for."""
    value = site.attrs.get("value")
    filled = point(float(value)) if isinstance(value, (int, float)) else ranges.operand(site, 2)
    found = _under(ranges, site, 1, 0, holds=False)
    if (later := between_steps(ranges, site, 0, 1, kept=False)) is not None:
        found = found.within(later)
    return found.union(filled)


def selected(ranges: Ranges, site: Site) -> Range | None:
    """x[x > 0]."""
    return _under(ranges, site, 1, 0, holds=True) if len(site.inputs) > 1 else None


def guarded_sum(ranges: Ranges, site: Site) -> Range | None:
    """x + (x == 0), or x + eps * (x == 0), is above zero where x is not negative."""
    for side in (0, 1):
        test = ranges.root(site, side)
        kept, added = ranges.operand(site, 1 - side), 1.0
        if not is_plain(ranges, site, side) or is_scaled(site):
            continue
        if test is not None and test.op == "mul" and len(test.attrs.get("scalars") or ()) == 1:
            if not any(is_plain(ranges, test, place) for place in (0, 1)):
                continue
            added, test = ranges.operand(site, side).high, ranges.root(test, 0) or ranges.root(test, 1)
        if test is None or test.op != "eq" or kept.low < 0 or ranges.operand(test, 1) != point(0.0):
            continue
        if 0 < added <= 1 and ranges.same(test, 0, site, 1 - side):
            return Range(min(added, ranges.smallest(site, 1 - side)), math.inf)
    return None


_NEGATED = {"gt": "le", "ge": "lt", "lt": "ge", "le": "gt", "eq": "ne", "ne": "eq"}


def _under(ranges: Ranges, site: Site, condition: int, branch: int, holds: bool) -> Range:
    """Bounds of an operand at the places where a condition on the same tensor holds, or where it does not."""
    found = ranges.operand(site, branch)
    test = ranges.root(site, condition)
    if test is None or test.op not in _NEGATED or not ranges.same(test, 0, site, branch):
        return found
    if not is_plain(ranges, site, condition):
        return found  # a mask that was turned round is about other numbers
    limit = ranges.operand(test, 1)
    if limit.low != limit.high:
        return found
    relation, value = (test.op if holds else _NEGATED[test.op]), limit.low
    return _limited(found, relation, value, ranges.smallest(site, branch))


def _limited(found: Range, relation: str, value: float, step: float) -> Range:
    """A range under ``x relation value``; an open end is one step of the format away from zero."""
    match relation:
        case "gt":
            return found.within(Range(value + step, math.inf))
        case "ge":
            return found.within(Range(value, math.inf))
        case "lt":
            return found.within(Range(-math.inf, value - step))
        case "le":
            return found.within(Range(-math.inf, value))
        case "eq":
            return found.within(point(value))
        case "ne" if value == found.low:
            return Range(value + step, found.high)
        case "ne" if value == found.high:
            return Range(found.low, value - step)
    return found

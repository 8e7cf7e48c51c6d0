"""Squares, however they are written, and what follows from one: x + sqrt(x * x + c) is not negative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.intervals import Range
from amptune.core.range_rules import exponent_of

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges


def is_square(ranges: Ranges, site: Site) -> bool:
    """Whether a site is x * x, x ** 2 or square(x)."""
    if site.op == "pow":
        return exponent_of(site) == 2
    return site.op == "square" or (site.op == "mul" and ranges.same(site, 0, site, 1))


def squareplus(ranges: Ranges, site: Site) -> Range | None:
    """x + sqrt(x * x + c) is not negative where c is not."""
    for side in (0, 1):
        root = ranges.root(site, side)
        total = ranges.root(root) if root is not None and root.op == "sqrt" else None
        if total is None or total.op != "add":
            continue
        for part in (0, 1):
            squares = ranges.root(total, part)
            kept = squares is not None and is_square(ranges, squares) and ranges.same(squares, 0, site, 1 - side)
            if kept and ranges.operand(total, 1 - part).low >= 0:
                return Range(0.0, math.inf)
    return None

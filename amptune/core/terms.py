"""What a site adds up, term by term, through sums, differences, signs and literal factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

ADDED = frozenset({"addmm", "baddbmm"})
"""Products that are added to something."""
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a sum, with the factor that it has there, and whether it is the diagonal of a matrix."""

    site: Site
    factor: float
    is_diagonal: bool = False


def terms_of(ranges: Ranges, site: Site, factor: float, depth: int = 0, *, is_diagonal: bool = False) -> Iterator[Term]:
    """What a site adds up, through sums, differences, signs and factors."""
    scalars = site.attrs.get("scalars") or {}
    if depth > _DEPTH:
        return
    if is_diagonal:
        yield Term(site, factor, is_diagonal=True)
    elif site.op in ("diag", "diagonal"):
        made = ranges.root(site)
        yield Term(site if made is None else made, factor, is_diagonal=made is not None)
    elif site.op in ("add", "sub"):
        for side in (0, 1):
            sign = (-1.0 if site.op == "sub" and side else 1.0) * (_number(site, "alpha") if side else 1.0)
            yield from _within(ranges, site, side, factor * sign, depth)
    elif site.op == "neg":
        yield from _within(ranges, site, 0, -factor, depth)
    elif site.op == "mul" and len(scalars) == 1:
        ((place, value),) = scalars.items()
        yield from _within(ranges, site, 1 - place, factor * float(value), depth)
    elif site.op == "div" and isinstance(by := scalars.get(1), int | float) and by:
        yield from _within(ranges, site, 0, factor / by, depth)
    elif site.op in ADDED:
        yield Term(site, factor * _number(site, "alpha"))
        yield from _within(ranges, site, 0, factor * _number(site, "beta"), depth)
    else:
        yield Term(site, factor)


def _within(ranges: Ranges, site: Site, index: int, factor: float, depth: int) -> Iterator[Term]:
    made = ranges.root(site, index)
    if made is not None:
        views = (site.attrs.get("views") or {}).get(input_of(site, index), ("", ""))[1]
        yield from terms_of(ranges, made, factor, depth + 1, is_diagonal="diagonal" in views)


def _number(site: Site, name: str) -> float:
    value = site.attrs.get(name)
    return float(value) if isinstance(value, int | float) else 1.0

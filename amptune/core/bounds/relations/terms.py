"""What a site adds up, term by term, through sums, differences, signs and literal factors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from amptune.core.bounds.structure import told_once
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

ADDED = frozenset({"addmm", "baddbmm"})
"""Products that are added to something."""
_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class Term:
    """A term of a sum, with the factor that it has there, whether it is the diagonal of a matrix, and whether each of
    its numbers is added at the place where it was made."""

    site: Site
    factor: float
    is_diagonal: bool = False
    in_place: bool = True


def terms_of(ranges: Ranges, site: Site, factor: float = 1.0) -> Iterator[Term]:
    """What a site adds up, through sums, differences, signs and factors."""
    yield from _added(ranges, Term(site, factor), 0)


def _added(ranges: Ranges, term: Term, depth: int) -> Iterator[Term]:
    site, factor = term.site, term.factor
    scalars = site.attrs.get("scalars") or {}
    if depth > _DEPTH:
        return
    if term.is_diagonal:
        yield term
    elif site.op in ("diag", "diagonal"):
        made = ranges.root(site)
        yield Term(site if made is None else made, factor, is_diagonal=made is not None, in_place=False)
    elif site.op in ("add", "sub"):
        for side in (0, 1):
            sign = (-1.0 if site.op == "sub" and side else 1.0) * (_number(site, "alpha") if side else 1.0)
            yield from _within(ranges, term, side, factor * sign, depth)
    elif site.op == "neg":
        yield from _within(ranges, term, 0, -factor, depth)
    elif site.op == "mul" and len(scalars) == 1:
        ((place, value),) = scalars.items()
        yield from _within(ranges, term, 1 - place, factor * float(value), depth)
    elif site.op == "div" and isinstance(by := scalars.get(1), int | float) and by:
        yield from _within(ranges, term, 0, factor / by, depth)
    elif site.op in ADDED:
        yield dataclasses.replace(term, factor=factor * _number(site, "alpha"))
        yield from _within(ranges, term, 0, factor * _number(site, "beta"), depth)
    else:
        yield term


def _within(ranges: Ranges, term: Term, index: int, factor: float, depth: int) -> Iterator[Term]:
    site = term.site
    made = ranges.root(site, index)
    if made is not None:
        views = (site.attrs.get("views") or {}).get(input_of(site, index), ("", ""))[1]
        in_place = term.in_place and stays_in_place(ranges, site, index)
        yield from _added(ranges, Term(made, factor, "diagonal" in views, in_place), depth + 1)


@told_once
def stays_in_place(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether elementwise arithmetic reads each number of what made an operand once, in the order in which it made
    them: no part, no other order, no pairs of all with all."""
    made = ranges.root(site, index)
    if made is None or not made.outputs or not site.outputs:
        return False
    return is_as_made(ranges, site, index) and made.outputs[0].numel == site.outputs[0].numel


@told_once
def is_as_made(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether an operand is all of what a site made, in that order, be it under another shape."""
    position = input_of(site, index)
    views = (site.attrs.get("views") or {}).get(position, ("", ""))[1]
    made = ranges.maker(site, position) if position is not None else None
    if made is not None and made.op in PAIRS:
        views = _VALUES.sub("", views)
    return not set(_VIEW.findall(views)) - _KEEP_ORDER and is_direct(ranges, site, index)


@told_once
def is_direct(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether there are views alone between an operand and its root: nothing that picks, turns round or repeats."""
    position = input_of(site, index)
    if position is None or (made := ranges.maker(site, position)) is None:
        return False
    if made is ranges.root(site, index):
        return True
    return made.op in ("clone", "contiguous") and not made.attrs.get("in_place") and is_as_made(ranges, made, 0)


PAIRS = frozenset({"max", "min", "sort", "topk", "cummax", "cummin", "median"})
"""Ops that give numbers and their places."""
_VALUES = re.compile(r"\s*(?:getitem|slice)\(0,\)\{\}$")
"""What picks the numbers."""
_VIEW = re.compile(r"([a-z_]+)\(")
_KEEP_ORDER = frozenset({"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"})
"""Views that give the same numbers in the same order."""


def _number(site: Site, name: str) -> float:
    value = site.attrs.get(name)
    return float(value) if isinstance(value, int | float) else 1.0

"""Sums in which one bounded number stands several times, as t in d * t * t + e * (1 - t) * (1 - t): never zero for
positive d and e, where each term by itself may be.

The range of t is cut into pieces. Within a piece the sum is linear in all else, with factors that are ranges.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of, factor_of_second
from amptune.core.bounds.intervals import Range, multiply, point, square
from amptune.core.bounds.relations.terms import stays_in_place
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_PIECES = 32
_DEPTH = 8
_MOST = 24
"""Operands of the whole formula from which it is left alone."""
_WIDEST = 1e3
_ROUNDINGS = 8
_ZERO = point(0.0)
_OPS = frozenset({"add", "sub", "mul", "neg", "square", "pow", "div"})


@dataclasses.dataclass(frozen=True, eq=False)
class _Leaf:
    """An operand that no arithmetic of the formula makes."""

    site: Site
    index: int

    def __hash__(self) -> int:
        return hash((self.site.id, self.index))  # a site's own goes through all that is known of it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Leaf) and (self.site.id, self.index) == (other.site.id, other.index)


@dataclasses.dataclass(frozen=True)
class _Factor:
    """What a leaf is multiplied by: its range, and the sum of the sizes of what was added up to it."""

    range: Range
    size: float

    @property
    def cancels(self) -> bool:
        """Whether terms of both signs were added up."""
        return self.size > 1.001 * self.range.magnitude


_Sum = dict[int | None, _Factor]
"""Number of a leaf -> its factor; ``None`` is what no leaf has a part in."""


def with_shared_number(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of a sum or difference by pieces of a number that stands in it more than once; ``None`` without one."""
    leaves = list(_leaves(ranges, site, 0))
    if not 3 <= len(leaves) <= _MOST or not _stands_twice(ranges, leaves):
        return None
    kinds: list[_Leaf] = []
    numbers: dict[_Leaf, int] = {}
    for leaf in leaves:
        same = (place for place, each in enumerate(kinds) if ranges.same(leaf.site, leaf.index, each.site, each.index))
        numbers[leaf] = next(same, len(kinds))
        if numbers[leaf] == len(kinds):
            kinds.append(leaf)
    counts = [sum(numbers[leaf] == number for leaf in leaves) for number in range(len(kinds))]
    known = [ranges.operand(leaf.site, leaf.index) for leaf in kinds]
    several = frozenset(number for number, count in enumerate(counts) if count > 1)
    if not several:
        return None
    bounded = sorted((each for each in several if 0 < _width(known[each]) <= _WIDEST), key=lambda each: -counts[each])
    cut: list[int | None] = [*bounded[:2]] or [None]
    bounds = [_by_pieces(_Formula(ranges, numbers, known, number, several), site) for number in cut]
    found = Range(max(each.low for each in bounds), min(each.high for each in bounds))
    return found if found.is_known else None


def _stands_twice(ranges: Ranges, leaves: list[_Leaf]) -> bool:
    """Whether two operands come from one place: a first look, before they are compared one by one."""
    places = []
    for leaf in leaves:
        made, position = ranges.root(leaf.site, leaf.index), input_of(leaf.site, leaf.index)
        if made is not None:
            places.append(made.id)
        elif position is not None:
            places.append(ranges.sources(leaf.site)[position])
    return len(set(places)) < len(places)


def _width(found: Range) -> float:
    return found.high - found.low if found.is_known else math.inf


def _inner(ranges: Ranges, site: Site, index: int) -> Site | None:
    """The arithmetic that makes an operand, number by number; ``None`` for a leaf."""
    made = ranges.root(site, index)
    is_step = made is not None and made.op in _OPS and _is_arithmetic(made) and stays_in_place(ranges, site, index)
    return made if is_step else None


def _is_arithmetic(site: Site) -> bool:
    """Whether a site is a step of a polynomial."""
    numbers = site.attrs.get("scalars") or {}
    if site.calls > 1 or site.attrs.get("in_place"):
        return False
    if site.op == "pow":
        return exponent_of(site) == 2
    return site.op != "div" or (1 in numbers and bool(numbers[1]))


def _sides(site: Site) -> tuple[int, ...]:
    """The operands of a step that are tensors."""
    numbers = site.attrs.get("scalars") or {}
    places = (0,) if site.op in ("neg", "square", "pow", "div") else (0, 1)
    return tuple(place for place in places if place not in numbers)


def _leaves(ranges: Ranges, site: Site, depth: int) -> Iterator[_Leaf]:
    for side in _sides(site):
        inner = _inner(ranges, site, side) if depth < _DEPTH else None
        if inner is None:
            yield _Leaf(site, side)
        else:
            yield from _leaves(ranges, inner, depth + 1)


@dataclasses.dataclass(frozen=True)
class _Formula:
    """The formula above a site, with the number of each leaf, the one that is cut into pieces, and those that stand in
    it several times."""

    ranges: Ranges
    numbers: Mapping[_Leaf, int]
    known: list[Range]
    shared: int | None
    several: frozenset[int]

    def of(self, site: Site, piece: Range, depth: int = 0) -> _Sum:
        """What a step gives while the shared number lies in a piece."""
        sides = [self._operand(site, side, piece, depth) for side in (0, 1) if side in _sides(site)]
        literals = site.attrs.get("scalars") or {}
        match site.op:
            case "neg":
                return _times(sides[0], point(-1.0))
            case "div":
                return _times(sides[0], point(1 / float(literals[1])))
            case "square" | "pow":
                return self._product(sides[0], sides[0], is_square=True)
            case "mul":
                if literals:
                    return _times(sides[0], point(float(next(iter(literals.values())))))
                return self._product(sides[0], sides[1], is_square=self.ranges.same(site, 0, site, 1))
        alpha = factor_of_second(site) * (-1.0 if site.op == "sub" else 1.0)
        both = [_of_literal(literals[side]) if side in literals else sides.pop(0) for side in (0, 1)]
        return _added(both[0], _times(both[1], point(alpha)))

    def _operand(self, site: Site, side: int, piece: Range, depth: int) -> _Sum:
        inner = _inner(self.ranges, site, side) if depth < _DEPTH else None
        if inner is not None:
            return self.of(inner, piece, depth + 1)
        number = self.numbers[_Leaf(site, side)]
        return {None: _Factor(piece, piece.magnitude)} if number == self.shared else {number: _Factor(point(1.0), 1.0)}

    def _product(self, left: _Sum, right: _Sum, *, is_square: bool) -> _Sum:
        if set(left) <= {None} and set(right) <= {None}:
            one, other = left.get(None), right.get(None)
            if one is None or other is None:
                return {}
            found = square(one.range) if is_square else multiply(one.range, other.range)
            return {None: _Factor(found, one.size * other.size)}
        if set(left) <= {None} or (self.several.isdisjoint(left) and not self.several.isdisjoint(right)):
            left, right = right, left  # what stands there once is a range
        return _times(left, self.total(right))

    def total(self, terms: _Sum) -> Range:
        """The range of what a linear sum adds up to."""
        found = [
            factor.range if number is None else multiply(factor.range, self.known[number])
            for number, factor in terms.items()
        ]
        return Range(math.fsum(_ends(found, "low")), math.fsum(_ends(found, "high"))) if found else _ZERO


def _ends(found: list[Range], end: str) -> list[float]:
    values = [float(getattr(each, end)) for each in found]
    infinite = next((value for value in values if math.isinf(value)), None)
    return values if infinite is None else [infinite]


def _of_literal(value: object) -> _Sum:
    number = float(value) if isinstance(value, int | float) else math.nan
    return {None: _Factor(point(number), abs(number))}


def _times(terms: _Sum, by: Range) -> _Sum:
    return {number: _Factor(multiply(each.range, by), each.size * by.magnitude) for number, each in terms.items()}


def _added(left: _Sum, right: _Sum) -> _Sum:
    found = dict(left)
    for number, factor in right.items():
        if number in found:
            low, high = found[number].range.low + factor.range.low, found[number].range.high + factor.range.high
            found[number] = _Factor(Range(low, high), found[number].size + factor.size)
        else:
            found[number] = factor
    return found


def _by_pieces(formula: _Formula, site: Site) -> Range:
    """The bounds of all pieces together, and what the rounding of terms that cancel may add to them."""
    whole = formula.known[formula.shared] if formula.shared is not None else _ZERO
    count = _PIECES if formula.shared is not None else 1
    step = (whole.high - whole.low) / count
    epsilon = max(formula.ranges.epsilon(site, side) for side in (0, 1))
    found = []
    for piece in range(count):
        end = whole.high if piece == count - 1 else min(whole.low + (piece + 1) * step, whole.high)
        terms = formula.of(site, Range(min(whole.low + piece * step, end), end))
        rounded = {
            number: dataclasses.replace(each, range=_widened(each, _ROUNDINGS * epsilon))
            for number, each in terms.items()
        }
        found.append(formula.total(rounded))
    low, high = min(each.low for each in found), max(each.high for each in found)
    return Range(_beyond(low, -_ROUNDINGS * epsilon), _beyond(high, _ROUNDINGS * epsilon))


def _beyond(end: float, share: float) -> float:
    return end + share * abs(end) if math.isfinite(end) else end


def _widened(factor: _Factor, share: float) -> Range:
    slack = share * factor.size if factor.cancels else 0.0
    return Range(factor.range.low - slack, factor.range.high + slack)

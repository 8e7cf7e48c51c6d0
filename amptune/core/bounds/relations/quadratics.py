"""Quadratic forms a^2 + b^2 - 2 r a b with r between -1 and 1, as in the exponent of two correlated normal variables:
they are never negative, but for their rounding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of
from amptune.core.bounds.relations.terms import stays_in_place, terms_of
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_DEPTH = 8
_CLOSE = 1e-3
_STEPS = frozenset({"mul", "div", "square", "pow", "neg"})
Leaf = tuple[Site, int]
Powers = dict[int, float]
"""Number of a leaf -> its power in a product."""


def sign_of_quadratic(ranges: Ranges, site: Site) -> int:
    """1 where a site adds up a form that is never negative, -1 for its negative, 0 for anything else."""
    if site.op not in ("add", "sub", "neg", "mul", "div"):
        return 0
    terms = list(terms_of(ranges, site))
    if len(terms) != 3 or not all(term.in_place for term in terms):
        return 0
    leaves: list[Leaf] = []
    products = [_product_of(ranges, term.site, term.factor, leaves) for term in terms]
    for mixed in range(3):
        first, second = (each for place, each in enumerate(products) if place != mixed)
        sign = _sign(ranges, first, second, products[mixed], leaves)
        if sign:
            return sign
    return 0


def _sign(
    ranges: Ranges, first: tuple[float, Powers], second: tuple[float, Powers], mixed: tuple[float, Powers],
    leaves: list[Leaf],
) -> int:  # fmt: skip
    """The sign of two squares and the product of their roots with a number up to 1; 0 where they are none."""
    if first[0] * second[0] <= 0 or any(power % 2 for _, powers in (first, second) for power in powers.values()):
        return 0
    numbers = {*first[1], *second[1], *mixed[1]}
    rest = {
        number: left
        for number in numbers
        if (left := mixed[1].get(number, 0) - (first[1].get(number, 0) + second[1].get(number, 0)) / 2)
    }
    size = abs(mixed[0])
    for number, power in rest.items():
        found = ranges.operand(*leaves[number])
        if power != 1 or not found.is_known:
            return 0
        size *= found.magnitude
    fits = size <= 2 * math.sqrt(first[0] * second[0]) * (1 + _CLOSE)
    return (1 if first[0] > 0 else -1) if fits else 0


def _product_of(ranges: Ranges, site: Site, factor: float, leaves: list[Leaf]) -> tuple[float, Powers]:
    """A site as a literal factor and powers of leaves."""
    powers: Powers = {}
    return factor * _multiplied(ranges, site, 1.0, powers, leaves, 0), powers


def _multiplied(
    ranges: Ranges, site: Site, power: float, powers: Powers, leaves: list[Leaf], depth: int
) -> float:  # fmt: skip
    """Add the powers that a step has, raised to ``power``; returns its literal factor."""
    literals = site.attrs.get("scalars") or {}
    if site.op == "neg":
        return -_of_operand(ranges, site, 0, power, powers, leaves, depth)
    if site.op in ("square", "pow"):
        exponent = 2.0 if site.op == "square" else exponent_of(site)
        if exponent != 2:
            return math.nan
        return _of_operand(ranges, site, 0, 2 * power, powers, leaves, depth)
    if site.op not in ("mul", "div"):
        return math.nan
    found = 1.0
    for side in (0, 1):
        raised = -power if site.op == "div" and side else power
        if side in literals:
            found *= float(literals[side]) ** raised if literals[side] else math.nan
        else:
            found *= _of_operand(ranges, site, side, raised, powers, leaves, depth)
    return found


def _of_operand(
    ranges: Ranges, site: Site, index: int, power: float, powers: Powers, leaves: list[Leaf], depth: int
) -> float:
    made = ranges.root(site, index)
    if made is not None and made.op in _STEPS and depth < _DEPTH and stays_in_place(ranges, site, index):
        before = dict(powers)
        found = _multiplied(ranges, made, power, powers, leaves, depth + 1)
        if not math.isnan(found):
            return found
        powers.clear()
        powers.update(before)
    number = next(
        (place for place, leaf in enumerate(leaves) if ranges.same(site, index, *leaf)),
        len(leaves),
    )
    if number == len(leaves):
        leaves.append((site, index))
    powers[number] = powers.get(number, 0) + power
    return 1.0

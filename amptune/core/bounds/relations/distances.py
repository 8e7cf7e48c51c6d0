"""Squared distances as |a|^2 - 2ab + |b|^2: a product between two sums of squares, which cancels for near points."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of
from amptune.core.bounds.relations.parts import NORMS
from amptune.core.bounds.relations.products import is_self_dot
from amptune.core.bounds.relations.quadratics import sign_of_quadratic
from amptune.core.bounds.relations.squares import is_square
from amptune.core.bounds.relations.terms import ADDED, Term, terms_of
from amptune.core.graph import Site
from amptune.core.operands import COPIES_ONE

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "linear"})
_DEPTH = 8
_PICKS = COPIES_ONE | {"sort", "topk", "min", "amin"}
"""Ops that pick some of several distances."""


def product_of_distance(ranges: Ranges, site: Site) -> Site | None:
    """The product 2ab, where ``site`` adds up |a|^2 - 2ab + |b|^2 or its negative; ``None`` where it does not."""
    if site.op not in ("add", "sub", *ADDED):
        return None
    product = _product_among(ranges, list(terms_of(ranges, site)))
    return None if product is None else product.site


def is_minus_distance(ranges: Ranges, site: Site, index: int, depth: int = 0) -> bool:
    """Whether an operand is such a distance, or another form that is never negative, times a negative number, as
    kernels and densities raise it, over a learnt width too."""
    made = ranges.root(site, index)
    if made is None or depth > _DEPTH:
        return False
    product = _product_among(ranges, list(terms_of(ranges, made)))
    if product is not None:
        return product.factor > 0
    if sign_of_quadratic(ranges, made) < 0:
        return True
    sides = {"mul": (0, 1), "div": (0,)}.get(made.op, ())
    return any(
        ranges.operand(made, 1 - side).low >= 0 and is_minus_distance(ranges, made, side, depth + 1) for side in sides
    )


def _product_among(ranges: Ranges, terms: list[Term]) -> Term | None:
    """The term -2ab of terms that add up to a distance, or to a multiple of one."""
    if (gram := _gram(terms)) is not None:
        return gram
    products = [term for term in terms if term.site.op in _PRODUCTS and not is_self_dot(ranges, term.site)]
    squares = [term for term in terms if _is_sum_of_squares(ranges, term.site)]
    if len(products) != 1 or len(squares) < 2:
        return None
    product = products[0]
    sides = [_side(ranges, product.site, place, squares) for place in _factors(product.site)]
    factor = product.factor * math.prod(literal for literal, _ in sides)
    if any(factor != -2 * square.factor for square in squares):
        return None
    return dataclasses.replace(product, factor=factor) if any(reads for _, reads in sides) else None


def distance_of(ranges: Ranges, site: Site, index: int) -> tuple[Site, float] | None:
    """The product 2ab where an operand is such a distance, or some of several, and what was added to it since."""
    eps, root = 0.0, ranges.root(site, index)
    for _ in range(_DEPTH):
        if root is None or (product := product_of_distance(ranges, root)) is not None:
            return None if root is None or product is None else (product, eps)
        numbers = root.attrs.get("scalars") or {}
        if root.op == "add" and len(numbers) == 1:
            ((place, value),) = numbers.items()
            eps += float(value)
            root = ranges.root(root, 1 - place)
        elif root.op in _PICKS:
            root = ranges.root(root)
        else:
            return None
    return None


def _gram(terms: list[Term]) -> Term | None:
    """The product g of diag(g) - 2g + diag(g)'."""
    whole = [term for term in terms if not term.is_diagonal]
    if len(terms) != 3 or len(whole) != 1 or whole[0].site.op not in _PRODUCTS:
        return None
    same = all(term.site is whole[0].site and -2 * term.factor == whole[0].factor for term in terms if term.is_diagonal)
    return whole[0] if same else None


def _factors(site: Site) -> tuple[int, int]:
    """The places of the two factors of a product."""
    return (1, 2) if site.op in ADDED else (0, 1)


def _side(ranges: Ranges, product: Site, place: int, squares: list[Term]) -> tuple[float, bool]:
    """The literal that a factor of a product was multiplied with, as in (2 * a) @ b, and whether one of the squares is
    of that factor: a literal that the square has too, as in a = 3 * x, is none of the product's."""
    if any(_reads(ranges, square.site, product, place) for square in squares):
        return 1.0, True
    made = ranges.root(product, place)
    if made is None or made.op != "mul" or len(made.attrs.get("scalars") or {}) != 1:
        return 1.0, False
    ((at, value),) = made.attrs["scalars"].items()
    return float(value), any(_reads(ranges, square.site, made, 1 - at) for square in squares)


def _is_sum_of_squares(ranges: Ranges, site: Site) -> bool:
    made = ranges.root(site)
    if site.op == "sum":
        return made is not None and is_square(ranges, made)
    if site.op == "pow":
        return exponent_of(site) == 2 and made is not None and made.op in NORMS
    return site.op == "einsum" and is_self_dot(ranges, site)


def _reads(ranges: Ranges, squares: Site, holder: Site, index: int) -> bool:
    """Whether the squares are of an operand."""
    inner = squares if squares.op == "einsum" else ranges.root(squares)
    own = next((place for place, at in enumerate((inner or squares).attrs.get("operands") or ()) if at is not None), 0)
    return inner is not None and ranges.covers(inner, own, holder, index)

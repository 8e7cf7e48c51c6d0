"""Squared distances as |a|^2 - 2ab + |b|^2: a product between two sums of squares, which cancels for near points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of
from amptune.core.graph import Site
from amptune.core.operands import input_of
from amptune.core.parts import NORMS
from amptune.core.relations import COPIES_ONE, is_self_dot
from amptune.core.squares import is_square

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "linear"})
_ADDED = frozenset({"addmm", "baddbmm"})
_DEPTH = 8
_PICKS = COPIES_ONE | {"sort", "topk", "min", "amin"}
"""Ops that pick some of several distances."""


@dataclasses.dataclass(frozen=True)
class _Term:
    """A term of a sum, with the factor that it has there, and whether it is the diagonal of a matrix."""

    site: Site
    factor: float
    is_diagonal: bool = False


def product_of_distance(ranges: Ranges, site: Site) -> Site | None:
    """The product 2ab, where ``site`` adds up |a|^2 - 2ab + |b|^2 or its negative; ``None`` where it does not."""
    if site.op not in ("add", "sub", *_ADDED):
        return None
    product = _product_among(ranges, list(_terms(ranges, site, 1.0)))
    return None if product is None else product.site


def is_minus_distance(ranges: Ranges, site: Site, index: int) -> bool:
    """Whether an operand is such a distance times a negative number, as kernels raise it."""
    made = ranges.root(site, index)
    product = None if made is None else _product_among(ranges, list(_terms(ranges, made, 1.0)))
    return product is not None and product.factor > 0


def _product_among(ranges: Ranges, terms: list[_Term]) -> _Term | None:
    """The term -2ab of terms that add up to a distance, or to a multiple of one."""
    if (gram := _gram(terms)) is not None:
        return gram
    products = [term for term in terms if term.site.op in _PRODUCTS and not is_self_dot(ranges, term.site)]
    squares = [term for term in terms if _is_sum_of_squares(ranges, term.site)]
    if len(products) != 1 or len(squares) < 2:
        return None
    product = products[0]
    factor = product.factor * _literals_within(ranges, product.site)
    if any(factor != -2 * square.factor for square in squares):
        return None
    reads = any(_reads(ranges, square.site, product.site) for square in squares)
    return dataclasses.replace(product, factor=factor) if reads else None


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


def _gram(terms: list[_Term]) -> _Term | None:
    """The product g of diag(g) - 2g + diag(g)'."""
    whole = [term for term in terms if not term.is_diagonal]
    if len(terms) != 3 or len(whole) != 1 or whole[0].site.op not in _PRODUCTS:
        return None
    same = all(term.site is whole[0].site and -2 * term.factor == whole[0].factor for term in terms if term.is_diagonal)
    return whole[0] if same else None


def _terms(ranges: Ranges, site: Site, factor: float, depth: int = 0, *, is_diagonal: bool = False) -> Iterator[_Term]:
    """What a site adds up, through sums, differences, signs and factors."""
    scalars = site.attrs.get("scalars") or {}
    if depth > _DEPTH:
        return
    if is_diagonal:
        yield _Term(site, factor, is_diagonal=True)
    elif site.op in ("diag", "diagonal"):
        made = ranges.root(site)
        yield _Term(site if made is None else made, factor, is_diagonal=made is not None)
    elif site.op in ("add", "sub"):
        for side in (0, 1):
            sign = (-1.0 if site.op == "sub" and side else 1.0) * (_number(site, "alpha") if side else 1.0)
            yield from _inner(ranges, site, side, factor * sign, depth)
    elif site.op == "neg":
        yield from _inner(ranges, site, 0, -factor, depth)
    elif site.op == "mul" and len(scalars) == 1:
        ((place, value),) = scalars.items()
        yield from _inner(ranges, site, 1 - place, factor * float(value), depth)
    elif site.op == "div" and isinstance(by := scalars.get(1), int | float) and by:
        yield from _inner(ranges, site, 0, factor / by, depth)
    elif site.op in _ADDED:
        yield _Term(site, factor * _number(site, "alpha"))
        yield from _inner(ranges, site, 0, factor * _number(site, "beta"), depth)
    else:
        yield _Term(site, factor)


def _inner(ranges: Ranges, site: Site, index: int, factor: float, depth: int) -> Iterator[_Term]:
    made = ranges.root(site, index)
    if made is not None:
        views = (site.attrs.get("views") or {}).get(input_of(site, index), ("", ""))[1]
        yield from _terms(ranges, made, factor, depth + 1, is_diagonal="diagonal" in views)


def _number(site: Site, name: str) -> float:
    value = site.attrs.get(name)
    return float(value) if isinstance(value, int | float) else 1.0


def _factors(site: Site) -> tuple[int, int]:
    """The places of the two factors of a product."""
    return (1, 2) if site.op in _ADDED else (0, 1)


def _literals_within(ranges: Ranges, product: Site) -> float:
    """The literals that the factors of a product were multiplied with, as in (2 * a) @ b."""
    found = 1.0
    for place in _factors(product):
        made = ranges.root(product, place)
        if made is not None and made.op == "mul" and len(made.attrs.get("scalars") or {}) == 1:
            found *= float(next(iter(made.attrs["scalars"].values())))
    return found


def _is_sum_of_squares(ranges: Ranges, site: Site) -> bool:
    made = ranges.root(site)
    if site.op == "sum":
        return made is not None and is_square(ranges, made)
    if site.op == "pow":
        return exponent_of(site) == 2 and made is not None and made.op in NORMS
    return site.op == "einsum" and is_self_dot(ranges, site)


def _reads(ranges: Ranges, squares: Site, product: Site) -> bool:
    """Whether the squares are of a factor of the product."""
    inner = squares if squares.op == "einsum" else ranges.root(squares)
    if inner is None:
        return False
    for place in _factors(product):
        holder, index = product, place
        made = ranges.root(product, place)
        if made is not None and made.op == "mul" and len(made.attrs.get("scalars") or {}) == 1:
            holder, index = made, 1 - next(iter(made.attrs["scalars"]))
        if ranges.covers(inner, 0, holder, index):
            return True
    return False

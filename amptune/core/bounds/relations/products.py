"""Bounds of products of matrices by how their operands belong together: unit vectors, squares, no negative number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.bounds.intervals import Range, symmetric
from amptune.core.bounds.relations.parts import is_unit_vector
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


def matrix_product(ranges: Ranges, site: Site) -> Range | None:
    """Products of unit vectors lie within 1; of what is not negative, or of a tensor with itself, they are not."""
    places = [0, 1] if len(site.inputs) == 2 else [0, 0] if len(site.inputs) == 1 and not site.params else []
    layout = site.attrs.get("operands")
    if layout is not None and site.op == "einsum":
        return _einsum(ranges, site, [place for place, index in enumerate(layout) if index is not None])
    is_row = (
        site.op in ("linear", "linalg_vecdot", "mv")
        or site.attrs.get("called") == "inner"
        or (site.inputs and len(site.inputs[-1].shape) == 1)
    )
    contracted = (-1, -1 if is_row else -2)
    if site.op == "linalg_vecdot" and isinstance(dim := site.attrs.get("dim"), int):
        contracted = (dim, dim)
    if places and all(is_unit_vector(ranges, site, place, contracted[side]) for side, place in enumerate(places)):
        return symmetric(1.0)
    return Range(0.0, math.inf) if _has_no_negative(ranges, site) else None


def _einsum(ranges: Ranges, site: Site, places: list[int]) -> Range | None:
    axes = contracted_axes(str(site.attrs.get("equation", "")))
    if (
        len(places) == 2
        and axes
        and all(is_unit_vector(ranges, site, place, axis) for place, axis in zip(places, axes, strict=True))
    ):
        return symmetric(1.0)
    return Range(0.0, math.inf) if is_self_dot(ranges, site) or _has_no_negative(ranges, site) else None


def _has_no_negative(ranges: Ranges, site: Site) -> bool:
    """Whether no number that a product reads is negative."""
    weights = site.params or site.attrs.get("operand_params")
    return not weights and all(ranges.input(site, position).low >= 0 for position in range(len(site.inputs)))


def with_bias(ranges: Ranges, site: Site) -> Range | None:
    """A linear layer or convolution of what is not negative, by a weight and a bias that were computed: at least the
    bias, as the padding adds zeros (divisive normalisation)."""
    if len(site.inputs) != 3 or not _has_no_negative(ranges, site):
        return None
    return Range(ranges.input(site, 2).low, math.inf)


def contracted_axes(equation: str) -> tuple[int, int] | None:
    """The one axis that both operands of an einsum share and that is summed, counted from the last of each; ``None``
    where it sums otherwise."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    left, comma, right = before.partition(",")
    if not comma or "," in right or not arrow or any(len(set(each)) != len(each) for each in (left, right)):
        return None
    summed = (set(left) | set(right)) - set(after) - {"."}
    if len(summed) != 1 or not summed <= set(left) & set(right):
        return None
    (letter,) = summed
    if any("." in each[each.index(letter) :] for each in (left, right)):
        return None
    return left.index(letter) - len(left), right.index(letter) - len(right)


def is_self_dot(ranges: Ranges, site: Site) -> bool:
    """Whether an einsum multiplies a tensor with itself, element by element: a sum of squares."""
    equation = str(site.attrs.get("equation", "")).replace(" ", "").partition("->")[0]
    left, _, right = equation.partition(",")
    places = [place for place, index in enumerate(site.attrs.get("operands") or ()) if index is not None]
    return left == right != "" and len(places) == 2 and ranges.same(site, places[0], site, places[1])

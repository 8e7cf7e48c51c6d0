"""A part divided by a whole that is made of it: ``x / norm(x)``, ``x / x.sum()``, ``x * rsqrt(mean(x * x))``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled, limits_of, norm_order, reduced_count
from amptune.core.bounds.intervals import UNIT, Range, symmetric
from amptune.core.bounds.narrowing import keeps_numbers
from amptune.core.bounds.relations.alignment import axes_of, is_plain, meets
from amptune.core.bounds.relations.axes import axis_before
from amptune.core.bounds.relations.cosines import is_cosine
from amptune.core.bounds.relations.squares import is_square
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.operands import input_of, passed_on

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

Operand = tuple[Site, int]
"""A site and the place of one of its operands."""
COPIES_ALL = frozenset({"cat", "stack"})
"""Ops whose result holds the numbers of all of their operands and no others."""
NORMS = frozenset({"norm", "linalg_vector_norm"})
MAXIMA = frozenset({"max", "amax", "cummax"})
_SIZES = frozenset(
    {"sum", "max", "amax", "norm", "linalg_vector_norm", "sqrt", "abs", "mean", "std", "add", "clamp", "mul"}
)
_DEPTH = 6


def part_of(ranges: Ranges, part: Operand, whole_at: Operand, seen: Operand) -> Range | None:
    """Bounds of a part divided by a whole that is made of it: its own sum, norm, maximum or deviation.

    Args:
        ranges: the analysis.
        part: the operand that is divided.
        whole_at: the operand that it is divided by.
        seen: the operand through which the site of the part reads that: the same, but for a reciprocal between.
    """
    whole = _without_eps(ranges, ranges.root(*whole_at))
    if whole is None:
        return None
    if whole.op == "add":
        return _part_of_sum(ranges, part, whole, seen)
    if whole.op == "sqrt" and (count := root_of_squares(ranges, whole, part, seen)):
        return symmetric(count)
    if whole.op == "mul":
        plain = all(is_plain(ranges, *each) for each in (part, whole_at, seen))
        return symmetric(1.0) if plain and is_cosine(ranges, *part, whole) else None
    inner = ranges.root(whole)
    sizes = whole.op in ("sum", *MAXIMA) and inner is not None and inner.op == "abs" and is_plain(ranges, whole, 0)
    if sizes and inner is not None and meets(ranges, whole, (inner, 0), part, seen):
        return symmetric(1.0)
    if not meets(ranges, whole, (whole, 0), part, seen):
        return None
    if whole.op in ("sum", *MAXIMA) and ranges.operand(*part).low >= 0:
        return UNIT
    is_norm = whole.op in NORMS and _is_positive(norm_order(whole))
    return symmetric(1.0) if is_norm or whole.op == "abs" else None


def _is_positive(order: float | str) -> bool:
    return order == "fro" or (not isinstance(order, str) and order > 0)


def _without_eps(ranges: Ranges, whole: Site | None) -> Site | None:
    """What an eps was added to: it makes a denominator that is not negative larger."""
    for _ in range(_DEPTH):
        if whole is None or whole.op not in ("add", "clamp", "maximum"):
            break
        literal = whole.attrs.get("scalars") or {}
        if whole.op == "add" and not any(value >= 0 for value in literal.values()):
            break
        if whole.op == "clamp" and limits_of(whole)[1] < math.inf:
            return None  # an upper limit makes it smaller
        inner = ranges.root(whole, 1 if 0 in literal else 0)
        if inner is None or (whole.op == "add" and inner.op not in _SIZES):
            break
        whole = inner
    return whole


def _part_of_sum(ranges: Ranges, part: Operand, whole: Site, seen: Operand) -> Range | None:
    """x / (x + y) lies within [0, 1], and x / (1 + |x|) within [-1, 1], for what is not negative."""
    if any(ranges.operand(whole, side).low < 0 for side in (0, 1)) or is_scaled(whole):
        return None
    for side in (0, 1):
        if (
            ranges.same(whole, side, *part)
            and ranges.operand(*part).low >= 0
            and meets(ranges, whole, (whole, side), part, seen)
        ):
            return UNIT
        inner = ranges.root(whole, side)
        is_size = inner is not None and inner.op == "abs" and is_plain(ranges, whole, side)
        if (
            is_size
            and inner is not None
            and ranges.same(inner, 0, *part)
            and meets(ranges, whole, (inner, 0), part, seen)
        ):
            return symmetric(1.0)
    return None


def root_of_squares(ranges: Ranges, root: Site, part: Operand, seen: Operand) -> float:
    """For a root of the sum or mean of the squares of a part: how large the quotient can get; 0 where it is not."""
    total = ranges.root(root)
    for _ in range(_DEPTH):
        if total is not None and total.op in ("add", "clamp", "maximum") and total.attrs.get("scalars", True):
            if limits_of(total)[1] < math.inf or any(
                value < 0 for value in (total.attrs.get("scalars") or {}).values()
            ):
                return 0.0
            total = ranges.root(total)
    if total is None or _may_vanish(ranges, root, total):
        return 0.0
    count = math.sqrt(max(reduced_count(total), 1))
    if total.op == "var":
        return count + 1 if _is_centred(ranges, part, total, seen) else 0.0
    squares = ranges.root(total)
    if total.op not in ("sum", "mean") or squares is None or not is_square(ranges, squares):
        return 0.0
    if total.attrs.get("called") == "trace" or not is_plain(ranges, total, 0):
        return 0.0
    if not meets(ranges, total, (squares, 0), part, seen):
        return 0.0
    return 1.0 if total.op == "sum" else count


def _may_vanish(ranges: Ranges, root: Site, total: Site) -> bool:
    """Whether FP16 may have zero under a root for numbers that it has, as the square of 2e-4 is none of its numbers."""
    is_coarse = any(ranges.smallest(site, 0) > Format.BF16.smallest_normal for site in (root, total))
    return is_coarse and ranges.operand(root, 0).low <= 0


def _is_centred(ranges: Ranges, part: Operand, variance: Site, seen: Operand) -> bool:
    """Whether a part is x - mean(x), of the x whose variance it is divided by."""
    made = ranges.root(*part)
    if made is None or made.op != "sub" or not ranges.same(made, 0, variance, 0) or not is_plain(ranges, *part):
        return False
    mean = ranges.root(made, 1)
    if mean is None or mean.op != "mean" or not ranges.same(mean, 0, variance, 0) or is_scaled(made):
        return False
    alike = axes_of(mean) == axes_of(variance) and meets(ranges, mean, (mean, 0), (made, 0), (made, 1))
    return (
        alike
        and made.outputs[0].shape == variance.inputs[0].shape
        and meets(ranges, variance, (variance, 0), (made, 0), seen)
    )


def is_unit_vector(ranges: Ranges, site: Site, index: int, axis: int, depth: int = 0) -> bool:
    """Whether an operand's lines have a norm of at most 1: normalised by a function or by hand.

    Args:
        ranges: the analysis.
        site: which reads the operand.
        index: which of its operands.
        axis: along which the lines run, counted from the last as the site sees it.
        depth: of the recursion.
    """
    position = input_of(site, index)
    made = ranges.maker(site, position) if position is not None else None
    if (
        made is None
        or position is None
        or depth > _DEPTH
        or not made.outputs
        or not keeps_numbers(passed_on(site, position))
    ):
        return False
    before = axis_before(site, position, made, axis)
    if before is None:
        return False
    if made.op in COPIES_ALONG:
        return _copies_lines(made, before) and is_unit_vector(ranges, made, 0, before, depth + 1)
    match made.op:
        case "normalize":
            return _is_normalized(made, before)
        case "div":
            return _is_over_norm(ranges, made, before)
        case "mul":
            return any(_is_times_rsqrt(ranges, made, side, before) for side in (0, 1))
    if made.op not in COPIES_ALL or (inner := _axis_before_joining(made, before)) is None:
        return False
    return all(is_unit_vector(ranges, made, place, inner, depth + 1) for place in range(len(made.inputs)))


def _is_normalized(made: Site, axis: int) -> bool:
    """Whether F.normalize ran along an axis, by the Euclidean norm."""
    along, rank = made.attrs.get("dim", 1), len(made.outputs[0].shape)
    own = made.attrs.get("p", 2) == 2 and len(made.inputs) + len(made.params) == 1
    return own and isinstance(along, int) and along % rank - rank == axis


def _is_over_norm(ranges: Ranges, made: Site, axis: int) -> bool:
    """Whether a quotient is of a tensor and its own norm along an axis, with an eps or without."""
    whole = _without_eps(ranges, ranges.root(made, 1))
    if whole is None or made.attrs.get("rounding_mode"):
        return False
    if whole.op == "sqrt":
        return _folds(ranges, whole, axis) and root_of_squares(ranges, whole, (made, 0), (made, 1)) == 1.0
    own = whole.op in NORMS and norm_order(whole) in (1, 2, "fro")
    return own and _holds_axis(whole, axis) and meets(ranges, whole, (whole, 0), (made, 0), (made, 1))


def _is_times_rsqrt(ranges: Ranges, made: Site, side: int, axis: int) -> bool:
    """Whether a factor of a product is one over the norm of the other along an axis."""
    factor = ranges.root(made, side)
    if factor is None or factor.op != "rsqrt" or not _folds(ranges, factor, axis):
        return False
    return root_of_squares(ranges, factor, (made, 1 - side), (made, side)) == 1.0


def _axis_before_joining(made: Site, axis: int) -> int | None:
    """The axis of each part of a cat or stack that is one of the result's, counted from the last; ``None`` for the one
    along which they are joined."""
    along, rank = made.attrs.get("dim", 0), len(made.outputs[0].shape)
    if not isinstance(along, int) or along % rank - rank == axis:
        return None
    return axis + 1 if made.op == "stack" and along % rank - rank > axis else axis


def _folds(ranges: Ranges, root: Site, axis: int) -> bool:
    """Whether a root is of a sum over an axis, with an eps or without."""
    total = ranges.root(root)
    for _ in range(_DEPTH):
        if total is not None and total.op in ("add", "clamp", "maximum"):
            total = ranges.root(total)
    return total is not None and _holds_axis(total, axis)


def _holds_axis(total: Site, axis: int) -> bool:
    return bool(total.inputs) and axis + len(total.inputs[0].shape) in axes_of(total)


COPIES_ALONG = frozenset({"clone", "contiguous", "alias", "identity", "flip", "roll", "index_select", "index"})
"""Copies after which lines may still be those that they were."""


def _copies_lines(site: Site, axis: int) -> bool:
    """Whether a copy leaves the lines along an axis whole, in whatever order."""
    if site.attrs.get("in_place"):
        return False
    rank = len(site.outputs[0].shape)
    if site.op == "index_select":
        dim = site.attrs.get("dim")
        return isinstance(dim, int) and dim % rank - rank != axis
    if site.op == "index":  # x[index]: rows of x, where shapes say that it can be nothing else
        own, places = site.inputs[0].shape, [tensor.shape for tensor in site.inputs[1:]]
        rows = len(places) == 1 and site.outputs[0].shape == (*places[0], *own[1:])
        return rows and axis > -len(own) and own[0] not in (*places[0],)
    return True

"""Relations between terms that intervals do not see: ``x - max(x)``, ``x * x``, ``x / norm(x)``, guarded operands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.alignment import axes_of, is_elementwise, is_plain, meets
from amptune.core.arguments import axis_size, is_scaled, limits_of, reduced_count
from amptune.core.blends import blended
from amptune.core.conditions import chosen, filled, guarded_sum, selected
from amptune.core.cumulative import rest_of_sum, steps_of_sum, whole_and_rest
from amptune.core.entropy import LOGARITHMS, SHARES, entropy, is_entropy, least_of_powers
from amptune.core.graph import Site
from amptune.core.intervals import Range, point, square, symmetric
from amptune.core.masked import kept_by_mask, least_kept
from amptune.core.operands import arity, input_of, passed_on
from amptune.core.order import steps_upwards
from amptune.core.parts import MAXIMA, is_unit_vector, part_of, root_of_squares
from amptune.core.rising import is_rise
from amptune.core.shared import with_shared_number
from amptune.core.squares import is_square, mean_square_left, scaled_square, squareplus, weighted_square
from amptune.core.terms import stays_in_place
from amptune.core.variances import covariance

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

_DEPTH = 6


def related(ranges: Ranges, site: Site) -> Range | None:
    """Bounds that follow from how the terms of a site belong together; ``None`` where nothing does."""
    found = _related(ranges, site)
    pieces = with_shared_number(ranges, site) if site.op in ("add", "sub") else None
    return found if pieces is None else pieces if found is None else pieces.within(found)


def _related(ranges: Ranges, site: Site) -> Range | None:
    match site.op:
        case "sub":
            return _difference(ranges, site)
        case "diff":
            return (steps_of_sum(ranges, site) or steps_upwards(ranges, site)) if len(site.inputs) == 1 else None
        case "cdist" | "pdist":
            return _distance(ranges, site)
        case "max" | "amax":
            return _largest_share(ranges, site)
        case "sum" | "mean":
            return _total(ranges, site)
        case "mul":
            return _product(ranges, site)
        case "div":
            return _ratio(ranges, site)
        case "where":
            return chosen(ranges, site)
        case "masked_fill":
            return filled(ranges, site)
        case "masked_select" | "index":
            return selected(ranges, site)
        case "add":
            return (
                guarded_sum(ranges, site)
                or squareplus(ranges, site)
                or blended(ranges, site)
                or whole_and_rest(ranges, site)
                or covariance(ranges, site)
            )
        case "matmul" | "mm" | "bmm" | "einsum" | "mv" | "linalg_vecdot":
            return _matrix_product(ranges, site)
        case "linear" | "conv1d" | "conv2d" | "conv3d" | "conv_transpose1d" | "conv_transpose2d" | "conv_transpose3d":
            return _with_bias(ranges, site) or _matrix_product(ranges, site)
    return None


def is_shifted(ranges: Ranges, site: Site | None) -> bool:
    """Whether a site is ``x - max(x)`` or ``x - logsumexp(x)``, also less what is not negative: never above 0."""
    if site is None or site.op != "sub" or is_scaled(site):
        return False
    return _dominates(ranges, site, 1, site, 0) or _is_lowered(ranges, site)


def _is_lowered(ranges: Ranges, site: Site) -> bool:
    """Whether a site is ``x - y - max(x)`` of a y that is not negative."""
    made = ranges.root(site, 0) if is_plain(ranges, site, 0) else None
    if made is None or made.op != "sub" or is_scaled(made) or ranges.operand(made, 1).low < 0:
        return False
    return _dominates(ranges, site, 1, made, 0)


def _dominates(
    ranges: Ranges, site: Site, index: int, other: Site, place: int, depth: int = 0,
    through: tuple[Site, int] | None = None,
) -> bool:  # fmt: skip
    """Whether an operand of ``site`` is at least as large as an operand of ``other``, everywhere."""
    upper = ranges.root(site, index)
    if upper is None or depth > _DEPTH:
        return False
    part, seen = (other, place), through or (site, index)
    if upper.op in MAXIMA | {"logsumexp", "relu"} and meets(ranges, upper, (upper, 0), part, seen):
        return True
    if upper.op in ("scatter_reduce", "index_reduce") and upper.attrs.get("reduce") in ("amax", "max"):
        # The largest of a segment, read back by the index that it was scattered by: the softmax of a graph's edges.
        scattered = any(ranges.covers(upper, source, other, place) for source in range(1, len(upper.inputs) + 1))
        return scattered and _reads_back(ranges, site, index, upper)
    limited = upper.op == "clamp" and limits_of(upper)[1] == math.inf and len(upper.inputs) == 1
    sides = (0,) if limited else (0, 1) if upper.op in ("maximum", "max", "logaddexp") and arity(upper) > 1 else ()
    return any(
        is_at_least(ranges, upper, side, part, seen) or _dominates(ranges, upper, side, other, place, depth + 1, seen)
        for side in sides
    )


def is_at_least(ranges: Ranges, upper: Site, side: int, part: tuple[Site, int], seen: tuple[Site, int]) -> bool:
    """Whether an operand of what is as large as its operands is another operand, number by number."""
    return ranges.same(upper, side, *part) and meets(ranges, upper, (upper, side), part, seen)


def is_positive_sum(ranges: Ranges, site: Site | None, depth: int = 0) -> bool:
    """Whether a site adds what is not negative to exponentials: above zero, until all of them underflow at once."""
    if site is None or depth > _DEPTH:
        return False
    if site.op == "sqrt":
        return is_positive_sum(ranges, ranges.root(site), depth + 1)
    if site.op in ("sum", "mean", "cumsum"):
        made = ranges.root(site)
        kept = kept_by_mask(site, made) if made is not None and is_plain(ranges, site, 0) else None
        return _is_exponential(
            ranges, ranges.root(made, kept) if made is not None and kept is not None else made, depth
        )
    if site.op != "add" or any(ranges.operand(site, side).low < 0 for side in (0, 1)):
        return False
    return any(_is_exponential(ranges, ranges.root(site, side), depth) for side in (0, 1))


def _is_exponential(ranges: Ranges, site: Site | None, depth: int) -> bool:
    """Whether all numbers of a site are exponentials, products of them, or sums of either."""
    if site is None or depth > _DEPTH:
        return False
    if site.op == "mul":
        return all(_is_exponential(ranges, ranges.root(site, side), depth + 1) for side in (0, 1))
    return site.op in ("exp", "exp2") or is_positive_sum(ranges, site, depth + 1)


def reads_back_sum(ranges: Ranges, site: Site, place: int) -> bool:
    """Whether an operand is what exponentials add up to by segment, read back by the index that they were added by: the
    softmax of a graph's edges, in which each edge is part of its own sum."""
    total = ranges.root(site, place)
    if total is None or total.op not in ("index_add", "scatter_add", "scatter_reduce"):
        return False
    exponentials = (ranges.root(total, part) for part in range(1, len(total.inputs) + 1))
    return _reads_back(ranges, site, place, total) and any(_is_exponential(ranges, each, 0) for each in exponentials)


def _reads_back(ranges: Ranges, site: Site, place: int, total: Site) -> bool:
    """Whether an operand is read from what was folded by segment, by the index that it was folded by."""
    position = input_of(site, place)
    picked = ranges.maker(site, position) if position is not None else None
    if picked is None or picked.op not in ("index", "index_select", "gather") or ranges.root(picked) is not total:
        return False
    if _axis_of(picked) is None or _axis_of(picked) != _axis_of(total):
        return False
    return any(
        ranges.covers(picked, own, total, part)
        for own in range(1, len(picked.inputs) + 1)
        for part in range(1, len(total.inputs) + 1)
    )


def _axis_of(site: Site) -> int | None:
    """The axis along which a site picks or folds by an index, counted from the first."""
    if site.op == "index":
        by = [place for place, index in enumerate((site.attrs.get("operands") or [])[1:]) if index is not None]
        return by[0] if len(by) == 1 else None
    dim, rank = site.attrs.get("dim"), max(len(site.outputs[0].shape), 1) if site.outputs else 1
    return dim % rank if isinstance(dim, int) else None


def _reaches_zero(ranges: Ranges, site: Site | None, axes: frozenset[int], whole: bool) -> bool:
    """Whether ``site`` is ``x - max(x)``, which is 0 somewhere along the named axes, or in all of it."""
    if site is None or site.op != "sub":
        return False
    maximum = ranges.root(site, 1)
    if maximum is None or maximum.op not in MAXIMA or is_elementwise(maximum) or is_scaled(site):
        return False
    over, part = (maximum, 0), (site, 0)
    if not ranges.same(*over, *part) or not meets(ranges, maximum, over, part, (site, 1)):
        return False
    return (maximum.outputs[0].numel == 1 and whole) or axes_of(maximum) <= axes


def _difference(ranges: Ranges, site: Site) -> Range | None:
    if is_shifted(ranges, site):
        return Range(-math.inf, 0.0)
    if is_scaled(site):
        return None
    if ranges.same(site, 0, site, 1):
        return point(0.0)
    exact = not any(passed_on(site, position) for position in range(len(site.inputs)))  # in no fewer digits
    if (
        exact
        and all(stays_in_place(ranges, site, side) for side in (0, 1))
        and (_exceeds(ranges, ranges.root(site, 0), ranges.root(site, 1)) or is_rise(ranges, site))
    ):
        return Range(0.0, math.inf)
    return (
        rest_of_sum(ranges, site)
        or steps_of_sum(ranges, site)
        or steps_upwards(ranges, site)
        or mean_square_left(ranges, site)
        or covariance(ranges, site)
    )


def _exceeds(ranges: Ranges, total: Site | None, least: Site | None) -> bool:
    """Whether one site is p + q of what is not negative, and the other min(p, r): a union less an intersection."""
    if total is None or least is None or total.op != "add" or least.op not in ("minimum", "min"):
        return False
    if any(ranges.operand(total, side).low < 0 for side in (0, 1)):
        return False
    return any(ranges.same(total, side, least, other) for side in (0, 1) for other in (0, 1))


def _total(ranges: Ranges, site: Site) -> Range | None:
    """The sum of exp(x - max x) is at least 1, as is that of who equals whom; that of x * y of two unit vectors is
    within 1."""
    made = ranges.root(site)
    count = float(max(site.inputs[0].numel, 1)) if site.inputs else 1.0
    if site.op == "sum" and 0 in site.attrs.get("pairs", ()):
        return Range(1.0, count)
    if made is None:
        return None
    if site.op == "sum" and made.op == "topk" and (found := _top_shares(ranges, site, made)):
        return found
    if site.attrs.get("called") in ("trace", "trapezoid", "trapz", "cumulative_trapezoid"):
        return None
    exponents = (
        ranges.root(made) if made.op == "exp" and is_plain(ranges, site, 0) and is_plain(ranges, made, 0) else None
    )
    if _reaches_zero(ranges, exponents, axes_of(site), site.outputs[0].numel == 1):
        return Range(1.0, count) if site.op == "sum" else Range(1 / max(reduced_count(site), 1), 1.0)
    if site.op == "sum" and made.op == "mul" and (found := entropy(ranges, site, made)):
        return found
    if site.op == "sum" and (least := least_kept(ranges, site, made) or least_of_powers(ranges, site, made)) > 0:
        return Range(least, math.inf)
    if site.op == "sum" and made.op == "mul" and is_plain(ranges, site, 0) and len(axes := axes_of(site)) == 1:
        axis = next(iter(axes)) - len(site.inputs[0].shape)
        if all(is_unit_vector(ranges, made, side, axis) for side in (0, 1)):
            return symmetric(1.0)
    return None


def _top_shares(ranges: Ranges, site: Site, made: Site) -> Range | None:
    """The sum of the largest of n shares that add up to 1 is at least 1 / n."""
    shares = ranges.root(made)
    if shares is None or shares.op not in SHARES or not (is_plain(ranges, made, 0) and is_plain(ranges, site, 0)):
        return None
    rank = max(len(made.inputs[0].shape), 1)
    dims = [each.attrs.get("dim", -1) for each in (made, shares)]
    along = {dim % rank for dim in dims if isinstance(dim, int)}
    if len(along) != 1 or axes_of(site) != along or made.attrs.get("largest") is False:
        return None
    return Range(1 / max(axis_size(shares), 1), 1.0)


def _distance(ranges: Ranges, site: Site) -> Range | None:
    """Euclidean distances: within 2 of unit vectors, within the diagonal of a box of bounded ones."""
    if site.attrs.get("p", 2) != 2 or not site.inputs or not site.inputs[0].shape:
        return None
    sides = range(len(site.inputs))
    if all(is_unit_vector(ranges, site, side, -1) for side in sides):
        return Range(0.0, 2.0)
    both = ranges.operand(site, 0).union(ranges.operand(site, len(site.inputs) - 1))
    return Range(0.0, (both.high - both.low) * math.sqrt(site.inputs[0].shape[-1])) if both.is_known else None


def _largest_share(ranges: Ranges, site: Site) -> Range | None:
    """Of n numbers that add up to 1 the largest is at least 1 / n; of n sums over r rows of these at least r / n."""
    made = ranges.root(site)
    if made is None or not made.inputs or len(site.inputs) != 1 or not is_plain(ranges, site, 0):
        return None
    if made.op in SHARES:
        axis, rank = made.attrs.get("dim", -1), max(len(made.inputs[0].shape), 1)
        if site.outputs[0].numel > 1 and not (isinstance(axis, int) and axis % rank in axes_of(site)):
            return None
        return Range(1 / max(axis_size(made), 1), 1.0)
    shares = ranges.root(made) if made.op == "sum" and is_plain(ranges, made, 0) else None
    if shares is None or shares.op not in SHARES or site.attrs.get("dim") is not None:
        return None
    rows, rank = reduced_count(made), len(made.inputs[0].shape)
    dims = [dim for each in (made, shares) if isinstance(dim := each.attrs.get("dim"), int)]
    if rows < 1 or len(dims) < 2 or dims[0] % rank == dims[1] % rank:
        return None
    return Range(rows / max(axis_size(shares), 1), float(rows))


def _product(ranges: Ranges, site: Site) -> Range | None:
    if not all(tensor.is_floating for tensor in site.inputs):
        return None
    if is_square(ranges, site):
        return square(ranges.operand(site, 0))
    if (found := scaled_square(ranges, site) or weighted_square(ranges, site)) is not None:
        return found
    for side, other in ((0, 1), (1, 0)):
        factor = ranges.root(site, side)
        if factor is None:
            continue
        if factor.op in LOGARITHMS and is_plain(ranges, site, side) and is_entropy(ranges, site, other, factor):
            return Range(-LOGARITHMS[factor.op] / math.e, math.inf)
        if factor.op == "rsqrt" and (count := root_of_squares(ranges, factor, (site, other), (site, side))):
            return symmetric(count)
        if (
            factor.op == "reciprocal"
            and (found := part_of(ranges, (site, other), (factor, 0), (site, side))) is not None
        ):
            return found
    return None


def _ratio(ranges: Ranges, site: Site) -> Range | None:
    if site.attrs.get("rounding_mode"):
        return None
    return part_of(ranges, (site, 0), (site, 1), (site, 1))


def _matrix_product(ranges: Ranges, site: Site) -> Range | None:
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


def _has_no_negative(ranges: Ranges, site: Site) -> bool:
    """Whether no number that a product reads is negative."""
    weights = site.params or site.attrs.get("operand_params")
    return not weights and all(ranges.input(site, position).low >= 0 for position in range(len(site.inputs)))


def _with_bias(ranges: Ranges, site: Site) -> Range | None:
    """A linear layer or convolution of what is not negative, by a weight and a bias that were computed: at least the
    bias, as the padding adds zeros (divisive normalisation)."""
    if len(site.inputs) != 3 or not _has_no_negative(ranges, site):
        return None
    return Range(ranges.input(site, 2).low, math.inf)


def _einsum(ranges: Ranges, site: Site, places: list[int]) -> Range | None:
    axes = contracted_axes(str(site.attrs.get("equation", "")))
    if (
        len(places) == 2
        and axes
        and all(is_unit_vector(ranges, site, place, axis) for place, axis in zip(places, axes, strict=True))
    ):
        return symmetric(1.0)
    return Range(0.0, math.inf) if is_self_dot(ranges, site) or _has_no_negative(ranges, site) else None


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

"""Relations between terms that intervals do not see: ``x - max(x)``, ``x * x``, ``x / norm(x)``, guarded operands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import axis_size, is_scaled, limits_of, reduced_count
from amptune.core.bounds.intervals import Range, point, square, symmetric
from amptune.core.bounds.relations.alignment import axes_of, is_elementwise, is_plain, meets
from amptune.core.bounds.relations.blends import blended
from amptune.core.bounds.relations.conditions import chosen, filled, guarded_sum, selected
from amptune.core.bounds.relations.cumulative import rest_of_sum, steps_of_sum, whole_and_rest
from amptune.core.bounds.relations.entropy import (
    LOGARITHMS,
    SHARES,
    all_one_hot,
    all_shares,
    entropy,
    is_entropy,
    least_of_powers,
)
from amptune.core.bounds.relations.masked import least_kept
from amptune.core.bounds.relations.order import steps_upwards
from amptune.core.bounds.relations.pairs import reaches_itself
from amptune.core.bounds.relations.parts import MAXIMA, is_unit_vector, part_of, root_of_squares
from amptune.core.bounds.relations.products import matrix_product, with_bias
from amptune.core.bounds.relations.rising import is_rise
from amptune.core.bounds.relations.segments import reads_back
from amptune.core.bounds.relations.shared import with_shared_number
from amptune.core.bounds.relations.squares import (
    is_square,
    mean_square_left,
    scaled_square,
    squareplus,
    weighted_square,
)
from amptune.core.bounds.relations.terms import stays_in_place
from amptune.core.bounds.relations.variances import covariance
from amptune.core.graph import Site
from amptune.core.operands import arity, passed_on

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

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
            return matrix_product(ranges, site)
        case "linear" | "conv1d" | "conv2d" | "conv3d" | "conv_transpose1d" | "conv_transpose2d" | "conv_transpose3d":
            return with_bias(ranges, site) or matrix_product(ranges, site)
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
        return scattered and reads_back(ranges, site, index, upper)
    limited = upper.op == "clamp" and limits_of(upper)[1] == math.inf and len(upper.inputs) == 1
    sides = (0,) if limited else (0, 1) if upper.op in ("maximum", "max", "logaddexp") and arity(upper) > 1 else ()
    return any(
        is_at_least(ranges, upper, side, part, seen) or _dominates(ranges, upper, side, other, place, depth + 1, seen)
        for side in sides
    )


def is_at_least(ranges: Ranges, upper: Site, side: int, part: tuple[Site, int], seen: tuple[Site, int]) -> bool:
    """Whether an operand of what is as large as its operands is another operand, number by number."""
    return ranges.same(upper, side, *part) and meets(ranges, upper, (upper, side), part, seen)


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
    if site.op == "sum" and (found := all_one_hot(site)):
        return found
    if made is None:
        return None
    if site.op == "sum" and (found := all_shares(ranges, site, made)):
        return found
    if site.op == "sum" and made.op == "topk" and (found := _top_shares(ranges, site, made)):
        return found
    if site.attrs.get("called") in ("trace", "trapezoid", "trapz", "cumulative_trapezoid"):
        return None
    exponents = (
        ranges.root(made) if made.op == "exp" and is_plain(ranges, site, 0) and is_plain(ranges, made, 0) else None
    )
    if _reaches_zero(ranges, exponents, axes_of(site), site.outputs[0].numel == 1):
        return Range(1.0, count) if site.op == "sum" else Range(1 / max(reduced_count(site), 1), 1.0)
    if reaches_itself(ranges, exponents, axes_of(site)):
        return Range(1.0 if site.op == "sum" else 1 / max(reduced_count(site), 1), math.inf)
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

"""Variances and covariances as a mean of products less a product of means: by windows, along axes, in several terms."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from amptune.core.arguments import reduced_count
from amptune.core.bounds.intervals import Range, scaled, symmetric
from amptune.core.bounds.relations.alignment import is_plain
from amptune.core.bounds.relations.squares import is_square
from amptune.core.bounds.relations.terms import Term, stays_in_place, terms_of
from amptune.core.bounds.structure import told_once
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_WINDOWS = ("conv1d", "conv2d", "conv3d")
_MEANS = frozenset({"mean", "avg_pool1d", "avg_pool2d", "avg_pool3d"})
_AXES = ("dim", "kernel_size", "stride", "padding", "dilation", "groups", "ceil_mode", "count_include_pad")
_DEPTH = 6
_CLOSE = 1e-3


@dataclasses.dataclass(frozen=True)
class Spread:
    """A variance or covariance times a number.

    Attributes:
        products: the site that averages, or sums, the products.
        factor: how many times the covariance the result is.
        sides: the two tensors, as operands of the site that multiplies them.
    """

    products: Site
    factor: float
    sides: tuple[tuple[Site, int], tuple[Site, int]]

    @property
    def is_variance(self) -> bool:
        """Whether both sides are one tensor."""
        return self.sides[0] == self.sides[1]


@told_once
def spread_of(ranges: Ranges, site: Site) -> Spread | None:
    """The variance or covariance that a sum of terms is; ``None`` where it is none."""
    if site.op not in ("add", "sub"):
        return None
    terms = list(terms_of(ranges, site))
    if not all(term.in_place for term in terms):
        return None  # pairs of all with all
    means = [term for term in terms if _average(term.site) and _multiplied(ranges, term.site)]
    if len(means) != 1 or len(terms) < 2:
        return None
    (first,) = means
    made = ranges.root(first.site)
    if made is None or not is_plain(ranges, first.site, 0):
        return None
    sides = ((made, 0), (made, 0 if is_square(ranges, made) else 1))
    rest = [_of_means(ranges, term, first.site, sides) for term in terms if term is not first]
    factor = first.factor * _average(first.site)
    total = sum(each for each in rest if each is not None)
    if None in rest or not factor or abs(total / factor + 1) > _CLOSE:
        return None
    return Spread(first.site, factor, sides)


def covariance(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of a covariance: a quarter of the product of how far its two sides reach, and what rounding leaves."""
    found = spread_of(ranges, site)
    if found is None or not _is_even(found.products):
        return None
    sides = [ranges.operand(made, place) for made, place in found.sides]
    if not all(side.is_known and side.magnitude < float("inf") for side in sides):
        return None
    # Windows over the edge read zeros.
    widths = [max(side.high, 0.0) - min(side.low, 0.0) for side in sides]
    rounding = 8 * max(ranges.epsilon(site, place) for place in (0, 1)) * sides[0].magnitude * sides[1].magnitude
    return scaled(symmetric(widths[0] * widths[1] / 4 + rounding), abs(found.factor))


def _average(site: Site) -> float:
    """How many times the mean of its first operand a site is; 0 where it is none."""
    if site.op in _MEANS:
        return 0.0 if site.attrs.get("divisor_override") else 1.0
    if site.op == "sum":
        return float(reduced_count(site))
    if site.op not in _WINDOWS or site.params or len(site.inputs) != 2 or not site.gemms:
        return 0.0
    low = (_weights(site) or (0.0,))[0]
    return low * max(gemm.k for gemm in site.gemms) if _is_even(site) else 1.0


def _is_even(site: Site) -> bool:
    """Whether all numbers have one weight, so that what is summed is known; others are taken to add up to 1."""
    low, high = (_weights(site) or (0.0, 1.0))[:2]
    return site.op not in _WINDOWS or low == high


def _multiplied(ranges: Ranges, site: Site) -> bool:
    made = ranges.root(site)
    if made is None:
        return False
    return is_square(ranges, made) or (made.op == "mul" and not made.attrs.get("scalars"))


def _of_means(
    ranges: Ranges, term: Term, first: Site, sides: tuple[tuple[Site, int], tuple[Site, int]]
) -> float | None:  # fmt: skip
    """How many times the product of the two means a term is; ``None`` where it is none of it."""
    site = term.site
    if is_square(ranges, site):
        places = (0, 0)
    elif site.op == "mul" and not site.attrs.get("scalars"):
        places = (0, 1)
    else:
        return None
    means = [_mean_behind(ranges, site, place, first) for place in places]
    if means[0] is None or means[1] is None:
        return None
    (one, by), (other, times) = means[0], means[1]
    for left, right in (sides, sides[::-1]):
        if ranges.same(one, 0, *left) and ranges.same(other, 0, *right):
            return term.factor * by * times
    return None


def _mean_behind(ranges: Ranges, site: Site, place: int, like: Site) -> tuple[Site, float] | None:
    """The average, of the kind of another one, that an operand is but for literals, and how many times the mean."""
    factor, made = 1.0, ranges.root(site, place)
    for _ in range(_DEPTH):
        if made is None or not stays_in_place(ranges, site, place):
            return None
        if average := _average(made):
            return (made, factor * average) if _is_alike(ranges, made, like) else None
        numbers = made.attrs.get("scalars") or {}
        if made.op not in ("mul", "div") or len(numbers) != 1 or (made.op == "div" and not numbers.get(1)):
            return None
        ((at, value),) = numbers.items()
        factor *= float(value) if made.op == "mul" else 1 / float(value)
        site, place, made = made, 1 - at, ranges.root(made, 1 - at)
    return None


def _is_alike(ranges: Ranges, made: Site, like: Site) -> bool:
    """Whether two averages are over the same parts of tensors of one shape, with the same weights."""
    if made.op != like.op and {made.op, like.op} != {"mean", "sum"}:
        return False
    shapes = [[tensor.shape for tensor in each.inputs] for each in (made, like)]
    if shapes[0] != shapes[1] or any(made.attrs.get(name) != like.attrs.get(name) for name in _AXES):
        return False
    return made.op not in _WINDOWS or ranges.same(made, 1, like, 1) or _weights(made) == _weights(like)


def _weights(site: Site) -> tuple[float, ...] | None:
    found: tuple[float, ...] | None = (site.attrs.get("bounds") or {}).get(1)
    return found

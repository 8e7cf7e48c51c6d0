"""What is known of logarithms: the end of their domain, and whether their input comes to it."""

from __future__ import annotations

import math

from amptune.core.arguments import axis_size, reduced_count
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.relations.segments import is_positive_sum
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune_rules.graph._numeric import is_signed, of_batch


def end_of(site: Site) -> float:
    """The end of the domain, where the logarithm is -inf."""
    return -1.0 if site.op == "log1p" else 0.0


_TELLING = 1e9
"""Size up to which a bound says something: products and powers of many terms have larger ones, and come to no end."""


def reaches_end(site: Site, found: Range) -> bool:
    """Whether the bound says that zero or less is reached, rather than that nothing is known."""
    return found.is_known and -_TELLING < found.low <= end_of(site)


def is_share_of_more(run: Run, site: Site) -> bool:
    """Whether the input is a / b with a above zero, and zero for an infinite b alone: no end that numbers come to.

    In FP16 a quotient rounds to zero from a b that is quite usual, and an exponential as b overflows by itself.
    """
    quotient = run.ranges.root(site, 0)
    if quotient is None or quotient.op not in ("div", "reciprocal"):
        return False
    place = 0 if quotient.op == "reciprocal" else 1
    above = place == 0 or run.ranges.operand(quotient, 0).low > 0
    below, divisor = run.ranges.operand(quotient, place), run.ranges.root(quotient, place)
    grows = divisor is not None and (divisor.op in ("exp", "exp2", "expm1") or is_positive_sum(run.ranges, divisor))
    plain = above and below.low >= 0 and below.high == math.inf and not grows
    return plain and "float16" not in run.dtypes[quotient.id].outputs


def is_off_end_in_batch(context: GraphContext, site: Site) -> bool:
    """Whether the input is worked out from the batch alone and stays off the end with its numbers, as noise levels."""
    found = of_batch(context, site)
    return found.is_known and not reaches_end(site, found)


def adds_signed_product(run: Run, site: Site) -> bool:
    """Whether the logarithm is of ``1 + x * y`` where x or y has both signs, and nothing keeps the product above -1."""
    total = run.ranges.root(site, 0)
    product: Site | None = total
    if site.op != "log1p":
        numbers = (total.attrs.get("scalars") or {}) if total is not None and total.op == "add" else {}
        if total is None or len(numbers) != 1 or next(iter(numbers.values())) <= 0:
            return False
        product = run.ranges.root(total, 1 if 0 in numbers else 0)
    if product is None or product.op not in ("mul", "div") or run.ranges.covers(product, 0, product, 1):
        return False
    if run.ranges.operand(site, 0).low > -math.inf:
        return False
    sides = (0, 1) if product.op == "mul" else (0,)
    factors = [run.ranges.root(product, side) for side in sides]
    if any(factor is not None and factor.op in ("sign", "sgn") for factor in factors):
        return False
    return any(_has_both_signs(run, product, side) for side in sides)


_LONG = 64
"""Factors from which a product comes to zero in FP32 where they are a fifth each."""
_ON_THE_WAY = frozenset({"sum", "mean", "mul", "div", "matmul", "mm", "bmm", "einsum", "linear", "abs"})
_SEEN = 8


def long_product(run: Run, site: Site) -> tuple[str, int]:
    """The op that multiplies many numbers which the logarithm is taken of, through sums and further factors, and how
    many; nothing where there is none, or something was added to it."""
    fresh, seen = [run.ranges.root(site, 0)], 0
    while fresh and seen < _SEEN:
        made, seen = fresh.pop(), seen + 1
        if made is None:
            continue
        if made.op in ("prod", "cumprod"):
            count = reduced_count(made) if made.op == "prod" else axis_size(made)
            return (made.op, count) if count >= _LONG else ("", 0)
        if made.op in _ON_THE_WAY:
            fresh += [run.ranges.root(made, side) for side in (0, 1)]
    return "", 0


def _has_both_signs(run: Run, site: Site, side: int) -> bool:
    found = run.ranges.operand(site, side)
    return is_signed(run, site, side) or (found.is_known and -math.inf < found.low < 0 < found.high)

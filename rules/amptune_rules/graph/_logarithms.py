"""What is known of logarithms: the end of their domain, and whether their input comes to it."""

from __future__ import annotations

import math

from amptune.core.bounds.intervals import Range
from amptune.core.bounds.relations.segments import is_positive_sum
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune_rules.graph._numeric import of_batch


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

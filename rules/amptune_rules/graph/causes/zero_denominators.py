"""G205: denominators that are zero, or can be, in every format."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.autocast import HALF
from amptune.core.bounds.intervals import Range
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._denominators import (
    buffer_with_zeros,
    constant_zeros,
    epsilons,
    fades,
    is_kept_off_zero,
    is_off_zero_by_data,
    may_vanish,
    quotient,
    what_may_vanish,
)
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    floating_sites,
    gives_zeros,
    is_settled,
    is_signed_sum,
)
from amptune_rules.graph._roots import normalises
from amptune_rules.graph._spectra import spectrum_behind
from amptune_rules.graph.causes.denominator_eps import lost_guard

_FADES_AT = 103.97
"""Where exp comes to zero in FP32: half of its smallest number."""


def of_constants(rule: GraphRule, context: GraphContext, site: Site, place: int) -> Finding | None:
    """Denominators that are worked out from constants, and are zero somewhere."""
    zeros = constant_zeros(context, site, place)
    if not zeros:
        return None
    text = f"the denominator is worked out from constants, and {zeros} of its numbers are zero: x / 0 is infinite, and "
    return context.finding(rule, site, f"{text}0 / 0 NaN", zeros=zeros)


def of_distance(rule: GraphRule, context: GraphContext, site: Site, product: Site, eps: float) -> Iterator[Finding]:
    """Squared distances by three terms: where two points are near, their rounding errors are all that is left."""
    runs = tuple(run for run in context.runs if eps < max(epsilons(run, product), default=0.0))
    if not runs:
        return
    added = f" + {eps:g}" if eps else ""
    in_half = any(dtype in HALF for run in runs for dtype in run.dtypes[product.id].outputs)
    yield context.finding(
        rule,
        site,
        f"division by |a|^2 - 2ab + |b|^2{added}, which rounding takes to zero and below for near points (under "
        f"{recipes_in(runs)}): clamp it above zero, and compute the product in float32",
        severity=None if in_half else Severity.INFO,
        chain=chain(context, site),
    )


def of_both_signs(rule: GraphRule, context: GraphContext, site: Site, place: int) -> Iterator[Finding]:
    """Denominators of both signs, or of which nothing is known: a parameter, a difference, or what stands for zeros and
    is lost itself."""
    root = context.runs[0].ranges.root(site, place) if context.runs else None
    if root is None:
        yield from _of_stored(rule, context, site, place)
    elif is_settled(context, root):
        return
    elif (lost := lost_guard(rule, context, site, root)) is not None:
        yield lost
    elif text := spectrum_behind(context.runs[0], site, place) or _vanishing(context, site, place, root):
        yield context.finding(rule, site, f"division by {text}", severity=Severity.INFO, chain=chain(context, site))


def _vanishing(context: GraphContext, site: Site, place: int, root: Site) -> str:
    """What a denominator is that may vanish, with what to do; empty where it does not."""
    if not may_vanish(context.runs[0].ranges.operand(site, place)) or is_off_zero_by_data(context, site, place):
        return ""
    what = what_may_vanish(context, root)
    return f"{what}: add an eps, or clamp it" if what else ""


def _of_stored(rule: GraphRule, context: GraphContext, site: Site, place: int) -> Iterator[Finding]:
    """Denominators that are a buffer of zeros, or a parameter whose first values do not lie on one side of zero."""
    if (site.attrs.get("as_stored") or {}).get(input_of(site, place)) == (0.0, 0.0):
        yield context.finding(
            rule,
            site,
            "the denominator is a buffer of zeros in the first step, as it is read before it is written: "
            f"{quotient(context.runs[0], site, place).rstrip(',')}",
        )
        return
    name = (site.attrs.get("operand_params") or {}).get(place)
    bounds = context.bounds(context.runs[0]) if context.runs else None
    if name is not None and (bounds is None or bounds.operand(site, place).holds(0.0)):
        yield context.finding(
            rule,
            site,
            f"division by the parameter {name}, which can be zero: store its logarithm, or put it through softplus",
            severity=Severity.INFO,
        )


def unguarded(rule: GraphRule, context: GraphContext, site: Site, place: int) -> Iterator[Finding]:
    """Denominators that end at zero in every format, by their terms."""
    run = context.runs[0]
    root, found = run.ranges.root(site, place), run.ranges.operand(site, place)
    if root is not None and fades(run, root):
        yield context.finding(
            rule,
            site,
            "the denominator is a sum of exponentials of negative distances, which are all zero for what is far "
            f"from everything (below exp({-_FADES_AT:g}) in float32): 0 / 0 is NaN; use softmax over the negative "
            "distances",
            severity=Severity.INFO,
            chain=chain(context, site),
        )
        return
    if is_kept_off_zero(context, run, site, place):
        return
    if found == Range(0.0, 0.0):
        text = "the denominator is a buffer of zeros, as it stands: x / 0 is infinite or NaN until it is written"
        yield context.finding(rule, site, text)
        return
    if name := buffer_with_zeros(context, run, root):
        text = f"the denominator is picked from the buffer {name}, some of whose numbers are zero: "
        yield context.finding(rule, site, f"{text}{quotient(run, site, place)} there", chain=chain(context, site))
        return
    is_lost = root is not None and root.op == "sqrt" and eps_before(run, root) is not None
    if is_lost and root is not None and not is_signed_sum(run, root):
        return  # G206 says so of the root
    what = f"the result of {root.op}" if root else "a count"
    where = "where a format rounds its eps to zero; make it larger" if is_lost else "in every format; add an eps"
    yield context.finding(
        rule,
        site,
        f"the denominator is {what}, which can be zero as far as its terms show: {quotient(run, site, place)} {where}",
        severity=None if gives_zeros(run, site, place) else Severity.INFO,
        chain=chain(context, site),
        **({"root": root.site_id} if root is not None and normalises(run, site, root) else {}),
    )


def without_eps(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Layers that divide by a norm, and were told to do so without an eps."""
    for site in floating_sites(context, "normalize", "cosine_similarity"):
        if site.attrs.get("eps") == 0:
            yield context.finding(
                rule, site, f"{site.op} with eps=0 divides by the norm as it is: NaN for a vector of zeros"
            )

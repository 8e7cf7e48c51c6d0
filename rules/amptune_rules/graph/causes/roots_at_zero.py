"""G206: roots of what is or can be zero, or whose eps the format rounds to zero."""

from __future__ import annotations

from amptune.core.bounds.relations.pairs import is_between_all_pairs
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    gives_zeros,
    is_signed_sum,
    lost_eps,
)
from amptune_rules.graph._roots import (
    breaks_at_zero,
    is_undone,
    named,
    normalised_by,
    root_exponent,
)
from amptune_rules.graph.causes.batch_zeros import closing_factor, zeros_of_batch


def rounded_eps(rule: GraphRule, context: GraphContext, site: Site, bad: tuple[Run, ...]) -> Finding | None:
    """An eps that a format rounds to zero where the root needs it."""
    eps = eps_before(context.runs[0], site)
    if not bad or eps is None or not breaks_at_zero(context, site) or is_signed_sum(context.runs[0], site):
        return None
    return context.finding(
        rule,
        site,
        f"the eps of {eps:g} under the root rounds to zero under {recipes_in(bad)}: at zero the gradient of "
        "sqrt, and rsqrt itself, is infinite",
        eps=eps,
        chain=chain(context, site),
    )


def zero_in_batch(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """What is zero with the batch, whatever the weights are, or where a relu that is a factor of it closes."""
    exponent = root_exponent(site) or 0.0
    zeros = zeros_of_batch(context, site) if exponent < 0 else max(int(site.attrs.get("zeros_read", 0)), 0)
    factor = closing_factor(context.runs[0], site, 0) if exponent < 0 else ""
    if not (zeros or factor) or not breaks_at_zero(context, site) or is_undone(context, site):
        return None
    if is_between_all_pairs(context.runs[0].ranges, site):
        return None  # told as such below
    where = f"zero at {zeros} place{'s' * (zeros > 1)} with the batch of make_batch() and any weights"
    if not zeros:
        where = f"a product with the result of {factor}, which is zero for much of what it reads"
    breaks = "infinite there" if exponent < 0 else "its gradient is infinite there, and times zero NaN"
    return context.finding(
        rule, site, f"{named(site)} of what is {where}: {breaks}", chain=chain(context, site), zeros=zeros
    )


def at_zero(rule: GraphRule, context: GraphContext, site: Site, bad: tuple[Run, ...]) -> Finding | None:
    """What can be exactly zero in every format, without an eps."""
    if not bad or len(bad) < len(context.runs) or not breaks_at_zero(context, site):
        return None
    is_inverse = (root_exponent(site) or 0) < 0
    what = "it" if is_inverse else "its gradient"
    if is_between_all_pairs(bad[0].ranges, site):
        return context.finding(
            rule,
            site,
            f"{named(site)} over all pairs of one tensor's rows: a row and itself are exactly zero apart, "
            f"where {what} is infinite, and no mask behind "
            "it helps (0 * inf is NaN); add an eps under the root, or leave the diagonal out before it",
            severity=None if context.train else Severity.INFO,
            chain=chain(context, site),
        )
    if is_undone(context, site):
        return None
    below = "; it can be below zero too as far as its terms show, and NaN" if _goes_below(context, bad[0], site) else ""
    normalised = ", and what is normalised by it NaN" if not is_inverse and normalised_by(context, site) else ""
    return context.finding(
        rule,
        site,
        f"{named(site)} of what can be exactly zero, without an eps: {what} is infinite there{normalised}{below}",
        severity=None if is_inverse and gives_zeros(bad[0], site) else Severity.INFO,
        chain=chain(context, site),
    )


_BELOW = -0.01
"""From where on a bound is below zero by more than rounding."""


def _goes_below(context: GraphContext, run: Run, site: Site) -> bool:
    """Whether the bounds of what a root is taken of reach below zero, with the numbers of the batch too."""
    bounds = context.bounds_with_batch(run) or run.ranges
    return max(each.operand(site, 0).low for each in (bounds, run.ranges)) < _BELOW


def lost_beside(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """An eps that no format of 16 bits has, added to what the user's code alone keeps above zero."""
    eps, runs = lost_eps(context, site)
    if not runs:
        return None
    return context.finding(
        rule,
        site,
        f"the eps of {eps:g} under {named(site)} rounds to zero under {recipes_in(runs)}: it guards nothing "
        "where what it is added to is zero; add it in float32",
        severity=Severity.INFO,
        eps=eps,
        chain=chain(context, site),
    )

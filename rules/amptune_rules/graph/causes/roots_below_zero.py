"""G206: roots of what can be below zero: differences that rounding makes negative, what has both signs."""

from __future__ import annotations

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    is_guarded_after,
    is_signed,
    of_batch,
)
from amptune_rules.graph._roots import (
    cancels,
    is_of_difference,
    is_of_distance,
    named,
    root_exponent,
    runs_below_zero,
)
from amptune_rules.graph._spectra import is_loaded, missing_rank, spectrum_behind
from amptune_rules.graph.causes.batch_zeros import below_zero_in_batch
from amptune_rules.graph.causes.roots_at_zero import at_zero

_CHOOSE = ("masked_fill", "where")
_COMPARES = ("eq", "ne", "gt", "lt", "ge", "le")


def of_small_difference(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """A difference that is never negative, but for its rounding: of moments, with an eps or not, of distances."""
    if root_exponent(site) is None:
        return None
    eps = eps_before(context.runs[0], site)
    if cancels(context.runs[0], site):
        return context.finding(
            rule,
            site,
            f"{site.op} of a difference that rounding can make negative (E[x^2] - E[x]^2): NaN; use var or std",
            chain=chain(context, site),
        )
    if eps is not None and (below := runs_below_zero(context, site, eps)):
        largest = min(mean for _, mean in below)
        return context.finding(
            rule,
            site,
            f"{site.op} of E[x^2] - E[x]^2 + {eps:g}: rounding takes the difference below -{eps:g} from means over "
            f"{largest:.1g} on (under {recipes_in(tuple(each for each, _ in below))}), and the result is NaN; use "
            "var, or subtract the mean first",
            eps=eps,
            chain=chain(context, site),
        )
    if is_of_distance(context.runs[0], site):
        return context.finding(
            rule,
            site,
            f"{site.op} of |a|^2 - 2ab + |b|^2, which rounding makes negative for near points: NaN; clamp it above "
            "zero, or use torch.cdist",
            chain=chain(context, site),
        )
    return None


def below_in_batch(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """What the batch alone takes below zero, as readings less their offset."""
    below = below_zero_in_batch(context, site)
    if not below:
        return None
    where = f"below zero at {below} place{'s' * (below > 1)} with the batch of make_batch()"
    text = f"{named(site)} of what is {where}, and NaN there; clamp it"
    return context.finding(rule, site, text, below=below, chain=chain(context, site))


def below_zero(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """What has both signs, as far as its terms show."""
    if root_exponent(site) is not None and is_of_difference(context, site):
        bounds = context.bounds_with_batch(context.runs[0])
        if bounds is not None and (lowest := bounds.operand(site, 0).low) >= 0:
            return at_zero(rule, context, site, context.runs) if lowest == 0 else None
        return context.finding(
            rule,
            site,
            f"{named(site)} of a difference, which can be below zero as far as its terms show, and is NaN there; "
            "clamp it",
            severity=Severity.INFO,
            chain=chain(context, site),
        )
    if (root_exponent(site) or 0) < 0 and _vanishes_in_batch(context, site):
        return context.finding(
            rule,
            site,
            f"{named(site)} of a sum of numbers of the batch, which is zero where all of them are: infinite there; "
            "clamp it, or take such rows out",
            severity=Severity.INFO,
            chain=chain(context, site),
        )
    if root_exponent(site) is not None and (what := spectrum_behind(context.runs[0], site)):
        rank, rows = missing_rank(context.runs[0], site)
        singular = f" (a product of rank {rank} at most: {rows - rank} of its {rows} are zero)" if rank else ""
        return context.finding(
            rule,
            site,
            f"{named(site)} of {what}{singular}",
            severity=None if rank else Severity.INFO,
            chain=chain(context, site),
        )
    if is_signed(context.runs[0], site):
        return context.finding(
            rule,
            site,
            f"{named(site)} of the output of a layer, which has both signs: NaN below zero",
            chain=chain(context, site),
        )
    return None


def _vanishes_in_batch(context: GraphContext, site: Site) -> bool:
    """Whether a root is taken of a sum or mean of numbers of the batch that are not negative and may all be zero, as of
    the edges of a node."""
    run, root = context.runs[0], context.runs[0].ranges.root(site)
    if root is None or root.op not in ("sum", "mean") or is_loaded(run, root) or is_guarded_after(context, site):
        return False
    return of_batch(context, site).low == 0 and not any(
        after.op in _CHOOSE and any(run.ranges.covers(test, 0, site, 0) for test in _tests(run, after))
        for after in context.graph.consumers(site.id)
    )


def _tests(run: Run, site: Site) -> list[Site]:
    """The comparison that a choice is made by: of data, whose infinity no gradient passes."""
    return [test for place in (0, 1) if (test := run.ranges.root(site, place)) is not None and test.op in _COMPARES]

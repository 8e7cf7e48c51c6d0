"""G205: unbiased variances and deviations of a single number, which are 0 / 0."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.arguments import reduced_count
from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import called, floating_sites, is_compared_alone, is_guarded_after
from amptune_rules.graph.causes.batch_zeros import is_taken_out


def lone_deviations(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Deviations from the mean of one number: it is its own mean, and n - 1 is zero."""
    for site in floating_sites(context, "var", "std", "var_mean", "std_mean"):
        less = site.attrs.get("correction", 1 if site.attrs.get("unbiased") is not False else 0)
        count = reduced_count(site)
        if not isinstance(less, int | float) or not 0 < count <= less:
            continue
        if is_guarded_after(context, site) or is_compared_alone(context, site) or is_taken_out(context, site):
            continue
        if not any(context.graph.graph.successors(site.id)) or _is_left_out(context, site):
            continue
        yield context.finding(
            rule,
            site,
            f"{called(site)} of {count} number{'s' * (count > 1)} with the batch of make_batch() divides by "
            f"n - {less:g}: 0 / 0 is NaN, in every step; use correction=0, or leave it out for so few",
            count=count,
        )


def _is_left_out(context: GraphContext, site: Site) -> bool:
    """Whether all that reads a site sums what is no NaN."""
    readers = context.graph.consumers(site.id)
    return bool(readers) and all(each.attrs.get("called", each.op) in ("nansum", "nanmean") for each in readers)

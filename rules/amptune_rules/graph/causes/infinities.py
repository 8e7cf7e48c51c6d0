"""G205: products of zero and infinity, which are NaN as 0 / 0 is."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding
from amptune.core.graph_context import GraphContext
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import is_compared_alone, is_guarded_after


def zero_times_infinity(rule: GraphRule, context: GraphContext) -> Iterable[Finding]:
    """Masks of numbers that are multiplied with infinity."""
    for site in context.graph:
        count = int(site.attrs.get("zero_times_infinity", 0))
        if not count or is_guarded_after(context, site) or is_compared_alone(context, site):
            continue
        where = f"at {count} place{'s' * (count > 1)} of it" if count > 0 else "wherever its test fails"
        yield context.finding(
            rule,
            site,
            f"a mask times infinity: the mask is zero {where}, and zero times infinity is NaN in every format; use "
            "masked_fill or torch.where",
            zeros=count,
        )
    for site in context.graph:
        count = int(site.attrs.get("zero_times_closed", 0))
        if not count or is_guarded_after(context, site) or is_compared_alone(context, site):
            continue
        where = f"at {count} place{'s' * (count > 1)} with the batch of make_batch() where a mask makes the other -inf"
        yield context.finding(
            rule,
            site,
            f"zero times infinity: one factor is zero {where}, and their product is NaN in every format; use "
            "masked_fill or torch.where in its place",
            zeros=count,
        )

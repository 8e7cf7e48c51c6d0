"""G205: denominators whose eps, or whose smallest number, the format rounds to zero, and an eps that guards nothing."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._denominators import (
    is_chosen,
    lost_beside,
    lost_numbers,
)
from amptune_rules.graph._numeric import (
    chain,
    eps_before,
    is_signed_sum,
    is_stored,
    source_dtype,
)


def rounded_eps(
    rule: GraphRule, context: GraphContext, site: Site, place: int, eps: float, bad: tuple[Run, ...]
) -> Finding:
    """An eps that was written, and that the format rounds to zero."""
    rounded = ", ".join(dict.fromkeys(source_dtype(run, site, place) or "float16" for run in bad))
    return context.finding(
        rule,
        site,
        f"the eps of {eps:g} in the denominator rounds to zero in {rounded} (under {recipes_in(bad)}): "
        "a zero denominator gives NaN or infinity",
        eps=eps,
        chain=chain(context, site),
    )


def rounded_away(
    rule: GraphRule, context: GraphContext, site: Site, place: int, bad: tuple[Run, ...]
) -> Iterator[Finding]:
    """A denominator that literals keep above zero, by less than a format can hold: ``x / exp(y.clamp(-20, 2))``."""
    kept = next(run for run in context.runs if run not in bad)
    root, low = kept.ranges.root(site, place), kept.ranges.operand(site, place).low
    if root is None or low <= 0 or is_chosen(kept, root) or is_stored(context, root):
        return
    if root.op in ("sqrt", "pow") and eps_before(kept, root) is not None and not is_signed_sum(kept, root):
        return  # G206 says of the root that its eps is lost
    dtypes = dict.fromkeys(source_dtype(run, site, place) or "float16" for run in bad)
    yield context.finding(
        rule,
        site,
        f"the denominator is the result of {root.op}, whose values start at {low:.2g} and round to zero in "
        f"{', '.join(dtypes)} (under {recipes_in(bad)}): divide in float32, or bound it higher",
        low=low,
        chain=chain(context, site),
    )


def over_eps(rule: GraphRule, context: GraphContext, site: Site, place: int, runs: tuple[Run, ...]) -> Finding:
    """An eps that is kept, and that something is divided by all the same."""
    eps, largest = runs[0].ranges.operand(site, place).low, runs[0].ranges.exact(site).high
    root = runs[0].ranges.root(site, place)
    return context.finding(
        rule,
        site,
        f"the eps of {eps:.3g} guards nothing in fp16 (under {recipes_in(runs)}): where the denominator comes down "
        f"to it, the quotient comes up to {largest:.3g}, over 65504; make the eps larger, or divide in float32",
        severity=Severity.INFO if root is not None and root.op == "add" else None,
        eps=eps,
        chain=chain(context, site),
    )


def lost_guard(rule: GraphRule, context: GraphContext, site: Site, root: Site) -> Finding | None:
    """An eps beside what only the user's code keeps from being negative, or a number that stands for zeros, which the
    format rounds to zero."""
    eps, runs = lost_beside(context, root)
    if runs:
        return context.finding(
            rule,
            site,
            f"the eps of {eps:g} in the denominator rounds to zero under {recipes_in(runs)}: it guards nothing "
            "where what it is added to is zero; add it in float32, or make it larger",
            severity=Severity.INFO,
            eps=eps,
            chain=chain(context, site),
        )
    lost = next((number for run in context.runs for number in lost_numbers(run, root)), None)
    if lost is None:
        return None
    runs = tuple(run for run in context.runs if lost in lost_numbers(run, root))
    return context.finding(
        rule,
        site,
        f"the {lost:g} that stands for zeros in the denominator rounds to zero under {recipes_in(runs)}",
        eps=lost,
        chain=chain(context, site),
    )

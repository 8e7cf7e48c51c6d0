"""G220: constants that are added to a matrix before a decomposition, inverse or solve, and are lost on it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.arguments import factor_of_second
from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.ops import Family, op_named
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import is_settled
from amptune_rules.graph._terms import format_of, half_ulp_of


def lost_jitters(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Constants beside a matrix that linear algebra reads, which are gone beside numbers that it may have."""
    for site in context.graph:
        if op_named(site.op).family is Family.LINALG:
            yield from _jitter(rule, context, site)


def _jitter(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    for total, jitter, side in _jitters(context, site):
        lost = {run: jitter / half for run in context.runs if jitter < (half := half_ulp_of(run, total))}
        runs = tuple(run for run in lost if (context.bounds(run) or run.ranges).operand(total, side).high > lost[run])
        if runs:
            yield context.finding(
                rule,
                total,
                f"{jitter:.3g} is added to a matrix before {site.op}: in {format_of(runs[0], total)} it is lost "
                f"beside numbers over {lost[runs[0]]:.2g}{_under(context, runs)}, so that it makes nothing "
                "positive definite that was not; add more, relative to the diagonal, or run this in float64",
                jitter=jitter,
                limit=lost[runs[0]],
            )


def _jitters(context: GraphContext, site: Site) -> Iterator[tuple[Site, float, int]]:
    """Sums that a site of linear algebra reads, the largest number of the constant matrix in them, and the side of the
    other term."""
    ranges = context.runs[0].ranges
    for index in range(len(site.inputs)):
        total = ranges.root(site, index)
        if total is None or total.op != "add" or is_settled(context, total) or total.attrs.get("scalars"):
            continue
        for side in (0, 1):
            found, made = ranges.operand(total, side), ranges.root(total, side)
            stands = made is None or is_settled(context, made)
            factor = abs(factor_of_second(total)) if side == 1 else 1.0
            if stands and found.is_known and found.low == 0 and 0 < found.high < math.inf:
                yield total, found.high * factor, 1 - side


def _under(context: GraphContext, runs: tuple[Run, ...]) -> str:
    return "" if len(runs) == len(context.runs) else f" (under {recipes_in(runs)})"

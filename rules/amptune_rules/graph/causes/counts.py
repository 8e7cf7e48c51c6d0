"""G220: counts and times that stand still: what is added to them is less than their format tells apart."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._terms import constant_of, format_of, half_ulp_of, is_stored_operand

_COUNTED = ("bool", "uint8", "int16", "int32", "int64")
_TALLIES = {"add": 1, "index_add": 2, "scatter_add": 2}
"""Ops that add to a tensor in place -> which operand they add."""


def stopped_counts(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Counts in stored tensors of 16 bits."""
    for site in context.graph:
        if _is_tally(context.runs[0], site):
            yield from _tally(rule, context, site)


def _tally(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    number = (site.attrs.get("scalars") or {}).get(_TALLIES[site.op], 1)
    by = max(int(number), 1)
    for half in HALF:
        runs = tuple(run for run in context.runs if half in run.dtypes[site.id].outputs)
        if runs:
            number_format = Format.parse(half)
            most = number_format.largest_exact_integer * 2 ** math.ceil(math.log2(by))
            if most > number_format.max:
                continue
            yield context.finding(
                rule,
                site,
                f"a count in {number_format} (under {recipes_in(runs)}), which has no {most + by}: adding {by} to "
                f"{most} changes nothing, so that it stops there; count in integers or in float32",
                most=most,
                format=str(number_format),
            )


def _is_tally(run: Run, site: Site) -> bool:
    """Whether numbers of things are added to a stored tensor: ones, or what was counted or compared."""
    if site.op not in _TALLIES or not is_stored_operand(run, site, 0) or not _is_kept(run, site):
        return False
    side = _TALLIES[site.op]
    position = input_of(site, side)
    number = (site.attrs.get("scalars") or {}).get(side, constant_of(run, site, side))
    is_whole = number == 1 or (side in (site.attrs.get("scalars") or {}) and number >= 1 and number == int(number))
    return is_whole or (position is not None and _counts(run, site, position))


def _is_kept(run: Run, site: Site) -> bool:
    """Whether a sum is written where its first term is stored."""
    after = (run.ranges.graph[name] for name in run.ranges.graph.graph.successors(site.id) if name in run.ranges.graph)
    first = input_of(site, 0)
    source = run.ranges.sources(site)[first] if first is not None else ""
    if source.rpartition(".")[2] in site.attrs.get("assigned", ()):
        return True
    return bool(site.attrs.get("in_place")) or any(
        each.op == "copy" and run.ranges.sources(each)[:1] == run.ranges.sources(site)[:1] for each in after
    )


def _counts(run: Run, site: Site, position: int) -> bool:
    """Whether an input is of integers or truth values, or was made of them."""
    if site.inputs[position].dtype in _COUNTED:
        return True
    source = run.ranges.sources(site)[position]
    if source not in run.ranges.graph:
        return False
    made = run.ranges.graph[source]
    return all(output.dtype in _COUNTED for output in made.outputs)


def crowded_counts(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Counts of one forward in 16 bits, term by term, of which some are past what the format can count to."""
    for site in context.graph:
        if site.op not in ("index_add", "scatter_add") or _is_tally(context.runs[0], site):
            continue
        most, terms = (
            int(site.attrs.get("most_added", 0)),
            math.prod(site.inputs[1].shape) if len(site.inputs) > 1 else 0,
        )
        if not _adds_ones(context.runs[0], site):
            continue
        for half in HALF:
            runs = tuple(run for run in context.runs if half in run.dtypes[site.id].outputs)
            number_format = Format.parse(half)
            last = number_format.largest_exact_integer
            if not runs or (most or terms) <= last:
                continue
            place = f"a place may be counted up to {terms} times"
            if most:
                place = f"with the batch of make_batch() a place is counted {most} times"
            yield context.finding(
                rule,
                site,
                f"a count in {number_format} (under {recipes_in(runs)}), which has no {last + 1}: {place}, and on a "
                f"GPU one more changes nothing from {last} on; count in integers or in float32",
                severity=None if most else Severity.INFO,
                most=last,
                format=str(number_format),
            )


def _adds_ones(run: Run, site: Site) -> bool:
    """Whether what is added is one everywhere, or yes and no."""
    number = (site.attrs.get("scalars") or {}).get(_TALLIES[site.op], constant_of(run, site, _TALLIES[site.op]))
    position = input_of(site, _TALLIES[site.op])
    return number == 1 or (position is not None and _counts(run, site, position))


def stopped_sums(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Sums that a loop adds a constant to, in vain from some turn on: the first call of each site."""
    told: set[str] = set()
    for site in context.graph:
        if site.site_id not in told and (found := _counter(rule, context, site)):
            told.add(site.site_id)
            yield found


def _counter(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """A constant that a loop adds again and again to a number beside which it is nothing."""
    if site.op not in ("add", "sub"):
        return None
    for run in context.runs:
        for side in (0, 1) if site.op == "add" else (0,):
            before, by = run.ranges.root(site, side), constant_of(run, site, 1 - side)
            if before is None or before is site or before.site_id != site.site_id or not by:
                continue
            half_ulp = half_ulp_of(run, site) / (2 if site.op == "sub" else 1)  # below a power of two it is half
            least = run.ranges.operand(site, side).least
            if not (0 < least < math.inf) or by >= half_ulp * 2.0 ** math.floor(math.log2(least)):
                continue
            runs = tuple(each for each in context.runs if format_of(each, site) == format_of(run, site))
            return context.finding(
                rule,
                site,
                f"a loop adds {by:.3g} to a number in {format_of(run, site)} (under {recipes_in(runs)}) that has "
                f"come to {least:.3g}, beside which that is rounded away: it stays where it is; count in integers "
                "and multiply, or add in float32",
                step=by,
                least=least,
            )
    return None

"""G201: results that lie outside of FP16: by their bounds, by a step on the batch, by what is assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.observed import Stat
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import called, chain, delivering, is_guarded_after, is_settled
from amptune_rules.graph._overflows import (
    delivering_fp16,
    is_outside,
    lies_outside,
    may_be_outside,
    reached,
    run_in_fp16,
)
from amptune_rules.graph.causes.batch_zeros import is_taken_out


def certain_results(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Results of any op that are always outside."""
    for site, runs in delivering_fp16(context):
        if all(is_outside(run, site) for run in runs):
            found = runs[0].ranges.exact(site)
            yield context.finding(
                rule,
                site,
                f"the result of this {called(site)} lies in {found}, always outside of fp16 (65504): infinity "
                f"under {recipes_in(runs)}{context.evidence.stated}",
                format="fp16",
                bound=[found.low, found.high],
                chain=chain(context, site),
            )


def results_of_batch(rule: GraphRule, context: GraphContext) -> Iterator[tuple[Site, Finding]]:
    """Results of the numbers of the batch, which no weight has a part in, that all lie outside: the first of a row."""
    told: set[str] = set()
    for site, runs in delivering_fp16(context):
        bounds = context.bounds_with_batch(runs[0])
        if bounds is None or site.id in context.weighted or is_outside(runs[0], site):
            continue
        found, makers = bounds.exact(site), {each.id for each in context.graph.producers(site.id)}
        if not lies_outside(found) or not told.isdisjoint(makers):
            told.update([site.id] if lies_outside(found) else [])
            continue
        told.add(site.id)
        if is_guarded_after(context, site) or is_taken_out(context, site):
            continue
        message = (
            f"the result of this {called(site)} lies in {found} with the numbers of the batch, outside of fp16 "
            f"(65504): infinity under {recipes_in(runs)}; compute it in float32, or scale it first"
        )
        yield (
            site,
            context.finding(
                rule, site, message, format="fp16", bound=[found.low, found.high], chain=chain(context, site)
            ),
        )


def seen_results(rule: GraphRule, context: GraphContext, told: Set[str], over: Mapping[str, Stat]) -> Iterator[Finding]:
    """Values that a recorded step showed to be outside: where they first are, and how many results follow."""
    for name, seen in over.items():
        site = context.graph[name]
        if name in told or any(before.id in over for before in context.graph.producers(name)):
            continue
        after = len(reached(context, name, over)) - 1
        more = f", and so {'are' if after > 1 else 'is'} {after} of the results after it" if after else ""
        yield context.finding(
            rule,
            site,
            f"this {called(site)} gave {seen.magnitude:.4g} in a step on the batch, over fp16's 65504: infinity "
            f"under {recipes_in(delivering(context, site, Format.FP16))}{more}; compute it in float32",
            format="fp16",
            observed=[seen.low, seen.high],
            chain=chain(context, site),
        )


def possible_results(rule: GraphRule, context: GraphContext, told: Set[str], *, first: bool) -> Iterator[Finding]:
    """All results whose bounds under the assumptions lie outside for certain, where ranges were asked for, and the
    ``first`` that may: where a step showed none."""
    run = run_in_fp16(context)
    bounds = context.bounds(run) if run and context.evidence.asked else None
    if run is None or bounds is None:
        return
    open_sites = [site for site in context.graph if site.id not in told and not is_settled(context, site)]
    outside = [site for site in open_sites if "float16" in run.dtypes[site.id].outputs
               and may_be_outside(bounds.exact(site))]  # fmt: skip
    certain = [site for site in outside if lies_outside(bounds.exact(site))
               and not lies_outside(run.ranges.exact(site))]  # fmt: skip
    for site in certain:
        yield context.finding(
            rule,
            site,
            f"the result of this {called(site)} lies in {bounds.exact(site)}, outside of fp16 (65504), with "
            f"{context.evidence.words}",
            format="fp16",
            chain=chain(context, site),
        )
    if first and len(outside) > len(certain):
        yield _first(rule, context, run, next(site for site in outside if site not in certain), len(outside))


def _first(rule: GraphRule, context: GraphContext, run: Run, site: Site, count: int) -> Finding:
    bound = (context.bounds(run) or run.ranges).exact(site)
    observed = context.evidence.observed
    seen = observed.forward.get(site.id) if observed else None
    shown = f"; the step on the batch showed at most {seen.magnitude:.3g}" if seen else ""
    more = f", and {count - 1} more results" if count > 1 else ""
    return context.finding(
        rule,
        site,
        f"by its bound {bound} this {called(site)} may leave fp16 (65504){more}, with {context.evidence.words}{shown}",
        severity=Severity.INFO,
        format="fp16",
        bound=[bound.low, bound.high],
        chain=chain(context, site),
    )

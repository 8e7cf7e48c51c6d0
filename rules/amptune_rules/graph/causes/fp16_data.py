"""G201: numbers of the batch, and what is worked out from numbers that ops or the batch bound, over FP16's 65504."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.bounds.intervals import ANY, Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import called, chain, is_guarded_after, is_settled, of_batch
from amptune_rules.graph._overflows import LIMIT, delivering_fp16, may_be_outside, only_grows, run_in_fp16
from amptune_rules.graph.causes.batch_zeros import is_taken_out

_GROWING = ("lgamma", "exp", "exp2", "expm1", "cosh", "sinh")
_EVEN, _SURE = 0.5, 4
"""What numbers that are spread evenly are of the largest on average, and how far over the end their sum has to be."""


def _over(
    rule: GraphRule,
    context: GraphContext,
    site: Site,
    reach: Range,
    message: str,
    severity: Severity = Severity.INFO,
) -> Finding:
    bound = [reach.low, reach.high]
    return context.finding(
        rule, site, message, severity=severity, bound=bound, format="fp16", chain=chain(context, site)
    )


def narrowed_batch(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Numbers of the batch that a cast to FP16 makes infinite."""
    for run, bounds in _bounded_run(context):
        for site in context.graph:
            found = next(
                (each for each in _cast_of_batch(run, bounds, site) if LIMIT < each.magnitude < math.inf), None
            )
            if found is not None:
                yield context.finding(
                    rule,
                    site,
                    f"numbers of the batch go from {found.low:.4g} to {found.high:.4g} in make_batch(), and are "
                    f"cast to fp16 for this {called(site)} (under {recipes_in((run,))}): infinity over 65504; "
                    "scale them, or take their logarithm, before the model",
                    severity=Severity.WARNING,
                    bound=[found.low, found.high],
                    format="fp16",
                )


def _bounded_run(context: GraphContext) -> Iterator[tuple[Run, Ranges]]:
    """The first run in FP16 with its bounds under the assumptions, if there is one and any are made."""
    run = run_in_fp16(context)
    bounds = context.bounds(run) if run is not None else None
    if run is not None and bounds is not None:
        yield run, bounds


def _cast_of_batch(run: Run, bounds: Ranges, site: Site) -> Iterator[Range]:
    """Bounds over 65504 of the tensors of the batch that a site reads in FP16."""
    for position in site.attrs.get("batch") or {}:
        found = bounds.arriving(site, position)
        is_cast = site.inputs[position].is_floating and run.dtypes[site.id].inputs[position] == "float16"
        if is_cast and found.is_known and LIMIT < found.magnitude < math.inf:
            yield found


def narrowed_results(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """What is worked out from the batch alone in FP32, and cast to FP16 though its bound is over it."""
    for run, bounds in _bounded_run(context):
        for site in context.graph:
            found = next(_cast_of_results(context, run, bounds, site), None)
            if found is not None:
                message = (
                    f"what is worked out from the batch may reach {found.magnitude:.3g}, and is cast to fp16 for "
                    f"this {called(site)} (under {recipes_in((run,))}): infinity over 65504; scale it first, or "
                    "run this in float32 with autocast off"
                )
                yield _over(rule, context, site, found, message)


def _cast_of_results(context: GraphContext, run: Run, bounds: Ranges, site: Site) -> Iterator[Range]:
    """Bounds over 65504 of what no weight has a part in and a site reads in FP16, though it was made in FP32."""
    dtypes = run.dtypes[site.id]
    for position, source in enumerate(bounds.sources(site)):
        if source not in context.graph or source in context.weighted or source == site.id:
            continue
        found, made = bounds.arriving(site, position), context.graph[source]
        if is_settled(context, made) or not may_be_outside(found) or not only_grows(context, made):
            continue
        if (dtypes.given[position], dtypes.inputs[position]) == ("float32", "float16"):
            yield found


def grown_batch(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Functions of numbers of the batch, which no weight has a part in, that FP16 holds, unlike their results."""
    for site, runs in delivering_fp16(context):
        if site.op not in _GROWING:
            continue
        data, bounds = of_batch(context, site), context.bounds(runs[0])
        reach = bounds.exact(site) if bounds is not None else ANY
        if data.is_known and data.magnitude <= LIMIT and may_be_outside(reach):
            message = (
                f"numbers of the batch in {data} give {reach.magnitude:.3g} by this {called(site)}, over fp16's "
                f"65504: infinity under {recipes_in(runs)}; compute it in float32"
            )
            yield _over(rule, context, site, reach, message, Severity.WARNING)


def bounded_products(rule: GraphRule, context: GraphContext) -> Iterator[tuple[Site, Finding]]:
    """Products of two tensors, each of them within FP16 by ops and literals alone, that may leave it together."""
    for site, runs in delivering_fp16(context):
        if site.op != "mul" or site.attrs.get("scalars"):
            continue
        sides = [runs[0].ranges.operand(site, side) for side in (0, 1)]
        reach = runs[0].ranges.exact(site)
        if all(0 < side.magnitude <= LIMIT for side in sides) and may_be_outside(reach):
            message = (
                f"a product of what lies in {sides[0]} and in {sides[1]} may reach {reach.magnitude:.3g}, over "
                f"fp16's 65504: infinity under {recipes_in(runs)}; compute it in float32, or scale the two first"
            )
            yield site, _over(rule, context, site, reach, message)


def summed_products(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Products of matrices without a negative number, of the batch and of weights, whose sums leave FP16."""
    for site, runs in delivering_fp16(context):
        bounds = context.bounds(runs[0]) if site.gemms else None
        if bounds is None or any(source in context.weighted for source in bounds.sources(site)):
            continue
        sides, reach = [bounds.operand(site, side) for side in (0, 1)], bounds.exact(site)
        if not all(side.is_known and side.low >= 0 for side in sides) or math.isinf(reach.high):
            continue
        if reach.high * math.prod(_share(context, site, *each) for each in enumerate(sides)) > LIMIT * _SURE:
            message = (
                f"a product of what lies in {sides[0]} and in {sides[1]}, none of it negative, adds up to as "
                f"much as {reach.high:.3g}, over fp16's 65504: infinity under {recipes_in(runs)}; scale "
                "one of the two first"
            )
            yield _over(rule, context, site, reach, message)


def _share(context: GraphContext, site: Site, side: int, found: Range) -> float:
    """What the numbers of a factor are of the largest on average: most of the counts of a batch may be zero."""
    name = (site.attrs.get("batch") or {}).get(input_of(site, side))
    mean = context.evidence.assumptions.means.get(name) if context.evidence.assumptions and name else None
    return _EVEN if mean is None or not found.high else min(mean / found.high, 1.0)


def infinite_results(rule: GraphRule, context: GraphContext) -> Iterator[tuple[Site, Finding]]:
    """What is infinite in the model's own dtypes with the numbers of the batch, whatever the weights are."""
    for site in context.graph:
        count = int(site.attrs.get("turned_infinite", 0))
        dtype = site.outputs[0].dtype if site.outputs else ""
        if count <= 0 or is_guarded_after(context, site) or is_taken_out(context, site):
            continue
        message = (
            f"the result of {called(site)} is infinite in {dtype} at {count} place{'s' * (count > 1)} with the batch "
            "of make_batch(), which is finite; scale it first, or compute it in float32"
        )
        yield site, context.finding(rule, site, message, severity=Severity.WARNING, chain=chain(context, site))

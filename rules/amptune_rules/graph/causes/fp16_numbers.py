"""G201: numbers that the code gives to ops in FP16, which cannot hold them: literals, constants, buffers, factors."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import called, chain, is_settled
from amptune_rules.graph._overflows import (
    FACTORS,
    LIMIT,
    delivering_fp16,
    factor_limit,
    infinite_factor,
    is_filled_outside,
    is_saturated,
    literals,
    lost_in_cast,
    number_outside,
    run_in_fp16,
    written,
)

_FILLS = ("masked_fill", "index_put", "full_like", "clamp", "pad", "scatter", "threshold", "hardtanh")
_ARITHMETIC = ("add", "sub", "where")
_JUDGED = (*_FILLS, *_ARITHMETIC, *FACTORS)


def given_numbers(rule: GraphRule, context: GraphContext) -> Iterator[tuple[Site, Finding]]:
    """Ops that are given a number over 65504, or a factor that takes numbers under 1 over it."""
    made = dict(_made(rule, context)) | dict(_assigned(rule, context))
    for name, found in made.items():
        yield context.graph[name], found
    for site, runs in delivering_fp16(context):
        if site.op not in _JUDGED or site.id in made:
            continue
        number = number_outside(runs[0], site)
        if number is not None:
            yield site, _number(rule, context, site, runs, number)
        elif (limit := factor_limit(runs, site)) is not None and (limit < 1 or not is_saturated(context, site)):
            found = context.finding(
                rule,
                site,
                f"this {called(site)} passes 65504 from |x| = {limit:.3g}, infinity in fp16 "
                f"(under {recipes_in(runs)}); use a smaller factor, or float32",
                severity=Severity.WARNING if limit < 1 else Severity.INFO,
                limit=limit,
                format="fp16",
            )
            yield site, found


def _made(rule: GraphRule, context: GraphContext) -> Iterator[tuple[str, Finding]]:
    """What fills a tensor with such a number in the dtype of an FP16 one, told at the first op that reads it."""
    told: set[tuple[str, float, str]] = set()
    for site in context.graph:
        for place, op in (site.attrs.get("filled") or {}).items():
            numbers = {run: number for run in context.runs if (number := _filled_with(run, site, place)) is not None}
            like = (site.attrs.get("like") or {}).get(place)
            number = next(iter(numbers.values()), None)
            if like is not None and number is not None and (op, number, like) not in told:
                told.add((op, number, like))
                yield site.id, _outside(rule, context, site, tuple(numbers), number, op)
                break


def _assigned(rule: GraphRule, context: GraphContext) -> Iterator[tuple[str, Finding]]:
    """Such a number that is assigned to a part of an FP16 tensor, which raises nowhere: ``x[mask] = -1e9``."""
    for site in context.graph:
        filled = literals(site)  # what a fill is given is refused
        number = next((n for n in written(site) if LIMIT < abs(n) < math.inf and n not in filled), None)
        runs = tuple(run for run in context.runs if run.dtypes[site.id].inputs[:1] == ("float16",))
        if number is not None and runs:
            yield site.id, _outside(rule, context, site, runs, number, "")


def _number(rule: GraphRule, context: GraphContext, site: Site, runs: tuple[Run, ...], number: float) -> Finding:
    raises = site.op in _FILLS and number in literals(site)
    return _outside(rule, context, site, runs, number, called(site) if raises else "")


def _outside(
    rule: GraphRule, context: GraphContext, site: Site, runs: tuple[Run, ...], number: float, raising: str
) -> Finding:  # fmt: skip
    """A number that FP16 cannot hold; ``raising`` names the op that refuses it."""
    asked, what = site.attrs.get("asks_for_half"), raising or ("assignment" if written(site) else called(site))
    branch = f", unless line {asked}, which asks for the precision, chooses another one there" if asked else ""
    severity = Severity.INFO if asked else Severity.ERROR if raising else Severity.WARNING
    return context.finding(
        rule,
        site,
        f"{number:g} is outside of fp16 (65504): this {what} "
        f"{'raises' if raising else 'gives infinity'} in fp16 (under {recipes_in(runs)}){branch}; "
        f"{_instead(site, raising, number)}",
        severity=severity,
        value=number,
        format="fp16",
        **({"stops": stopped(runs)} if raising and not asked else {}),
    )


def _instead(site: Site, filled: str, number: float) -> str:
    """What to write: a mask takes the limit of its own dtype, a mean or an offset is no mask."""
    is_mask = filled or number < 0 or site.op not in _ARITHMETIC or site.op == "where"
    return "use torch.finfo(x.dtype).min, or float32" if is_mask else "compute it in float32"


def _filled_with(run: Run, site: Site, place: int) -> float | None:
    """The number that an operand was filled with in FP16, where FP16 cannot hold it."""
    if run.dtypes[site.id].given[place] != "float16":
        return None
    bounds = run.ranges.arriving(site, place)
    return bounds.low if is_filled_outside(bounds) else None


def narrowed_masks(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """What was made with a large literal in FP32 and is then cast to FP16, as masks are."""
    for site in context.graph:
        for run in context.runs:
            number = next((n for place in range(len(site.inputs)) for n in lost_in_cast(run, site, place)), None)
            if number is not None:
                yield context.finding(
                    rule,
                    site,
                    f"an operand made with {number:g} is cast to fp16 (under {recipes_in((run,))}), where it is "
                    "infinite (65504): use torch.finfo(x.dtype).min, or float32",
                    value=number,
                    format="fp16",
                    chain=chain(context, site),
                )
                break


def infinite_factors(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Factors that are worked out from constants and that FP16 holds as infinity, in part or all."""
    run = run_in_fp16(context)
    if run is None:
        return
    for site in context.graph:
        number = infinite_factor(run, site) if site.op in FACTORS and not is_settled(context, site) else None
        if number is not None:
            yield context.finding(
                rule,
                site,
                f"a factor holds {number:.4g}, which fp16 has as infinity (under {recipes_in((run,))}): the "
                "product is infinite, and NaN where the other one is zero; use a number under 65504, or float32",
                severity=Severity.WARNING,
                value=number,
                format="fp16",
                chain=chain(context, site),
            )

"""G220: running averages in 16 bits whose steps are rounded away."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.arguments import factor_of_second
from amptune.core.autocast import HALF
from amptune.core.finding import Finding
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._terms import is_stored_operand

_DEAF = 0.1
"""Changes of a running average, as a share of the average itself, from which their loss is worth a word."""
_CLOSE = 1e-3


def deaf_averages(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Averages of stored tensors whose steps are too short for their format."""
    for site in context.graph:
        if step := _step_of_average(context.runs[0], site):
            yield from _average(rule, context, site, step)


def _average(rule: GraphRule, context: GraphContext, site: Site, step: float) -> Iterator[Finding]:
    kept = [site, *(after for after in context.graph.consumers(site.id) if after.op == "copy")]
    for half in HALF:
        runs = tuple(run for run in context.runs if any(half in run.dtypes[each.id].outputs for each in kept))
        lost = Format.parse(half).epsilon / 2 / step
        if runs and lost >= _DEAF:
            yield context.finding(
                rule,
                site,
                f"a running average in {Format.parse(half)} (under {recipes_in(runs)}) with a step of {step:.3g}: "
                f"changes of less than about {lost:.2g} times its own size are rounded away; keep it in float32",
                step=step,
                format=str(Format.parse(half)),
            )


def _step_of_average(run: Run, site: Site) -> float:
    """The weight of what is new in a running average of a stored tensor; 0 for anything else."""
    if site.op == "lerp":
        weight = (site.attrs.get("scalars") or {}).get(2)
        return _step(weight) if is_stored_operand(run, site, 0) else 0.0
    if site.op not in ("add", "sub"):
        return 0.0
    return next((step for side in (0, 1) if (step := _of_terms(run, site, side))), 0.0)


def _of_terms(run: Run, site: Site, side: int) -> float:
    """The weight of the other term, where the one at ``side`` is the stored tensor or most of it."""
    if site.op == "sub" and side == 1:
        return 0.0
    new = _weight(run, site, 1 - side)
    if is_stored_operand(run, site, side):
        return _step(new) if _is_difference(run, site, 1 - side) else 0.0
    kept = run.ranges.root(site, side)
    if site.op == "sub" or kept is None or kept.op != "mul" or len(kept.attrs.get("scalars") or {}) != 1:
        return 0.0
    ((place, share),) = kept.attrs["scalars"].items()
    is_average = is_stored_operand(run, kept, 1 - place) and abs(1 - float(share) - new) < _CLOSE * new
    return _step(new) if is_average else 0.0


def _step(weight: object) -> float:
    return float(weight) if isinstance(weight, int | float) and 0 < weight < 1 else 0.0


def _weight(run: Run, site: Site, side: int) -> float:
    """The number that a term is multiplied by: as alpha, or before."""
    factor = factor_of_second(site) if side == 1 else 1.0
    made = run.ranges.root(site, side)
    numbers = (made.attrs.get("scalars") or {}) if made is not None and made.op in ("mul", "div") else {}
    if made is None or len(numbers) != 1:
        return factor
    ((place, value),) = numbers.items()
    if made.op == "mul":
        return factor * float(value)
    return factor / float(value) if place == 1 and value else factor


def _is_difference(run: Run, site: Site, side: int) -> bool:
    """Whether a term is a difference from a stored tensor, multiplied or not."""
    made = run.ranges.root(site, side)
    if made is not None and made.op in ("mul", "div"):
        numbers = made.attrs.get("scalars") or {}
        made = run.ranges.root(made, 1 - next(iter(numbers), 1))
    kept = 1 if site.op == "add" else 0
    return made is not None and made.op == "sub" and is_stored_operand(run, made, kept)

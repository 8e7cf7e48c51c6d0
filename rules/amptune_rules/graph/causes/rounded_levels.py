"""G211: rounding to more levels than a format of 16 bits has between two whole numbers."""

from __future__ import annotations

import math

from amptune.core.finding import Finding
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import called, is_settled

_ROUNDS = ("round", "floor", "ceil", "trunc", "fix")


def rounded_levels(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """A quantiser in 16 bits: from some size on all numbers of the format are whole, or further apart than 1."""
    if site.op not in _ROUNDS or is_settled(context, site):
        return None
    for number_format in (Format.BF16, Format.FP16):
        most, name = number_format.largest_exact_integer, number_format.torch_name
        runs = tuple(run for run in context.runs if run.dtypes[site.id].inputs[:1] == (name,))
        levels = min((_levels(run, site) for run in runs), default=0.0)
        if levels <= most:
            continue
        return context.finding(
            rule,
            site,
            f"this {called(site)} is to give whole numbers up to {levels:.6g} in {number_format} (under "
            f"{recipes_in(runs)}), which has no {most + 1}: it leaves what is over {most // 2} as it came, rounded to "
            "the format already; scale and round in float32",
            levels=levels,
            format=str(number_format),
        )
    return None


def _levels(run: Run, site: Site) -> float:
    """How far the numbers go that are rounded: their bound, or else the literal that a number of the size of 1 is
    multiplied by; 0 where neither is known."""
    largest = run.ranges.operand(site, 0).magnitude
    if math.isfinite(largest):
        return largest
    made = run.ranges.root(site)
    numbers = (made.attrs.get("scalars") or {}) if made is not None else {}
    if made is None or len(numbers) != 1 or made.op not in ("mul", "div") or (made.op == "div" and 0 in numbers):
        return 0.0
    number = abs(float(next(iter(numbers.values()))))
    return number if made.op == "mul" else 1 / number if number else 0.0

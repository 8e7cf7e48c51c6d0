"""G212: predictions that 16 bits round after an offset is added, on their way to a loss in FP32."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.finding import Finding
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import delivering

_REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub")
_FINE = 1 / 64
"""The share of a prediction's spread that its steps may be: BF16 has half of it for numbers next to 1."""


def rounded_outputs(rule: GraphRule, context: GraphContext, loss: str) -> Iterator[Finding]:
    """``280 + 10 * y`` in BF16, whose numbers are 2 apart there, though y says more.

    Args:
        rule: the rule that tells of it.
        context: the model.
        loss: the name of the module that the loss is written in.
    """
    told: set[str] = set()
    for site in context.graph:
        if site.op not in _REGRESSION or site.module != loss or not context.runs:
            continue
        for place in (0, 1):
            made = context.runs[0].ranges.root(site, place)
            if made is None or made.id in told or made.op not in ("add", "sub") or made.id not in context.weighted:
                continue
            offset = next(iter((made.attrs.get("scalars") or {}).values()), 0.0)
            found = _rounded(rule, context, made, abs(float(offset)))
            if found is not None:
                told.add(made.id)
                yield found


def _rounded(rule: GraphRule, context: GraphContext, site: Site, offset: float) -> Finding | None:
    spread = _spread(context, site)
    if not 0 < offset < math.inf or not 0 < spread < math.inf:
        return None
    for number_format in (Format.BF16, Format.FP16):
        runs, step = delivering(context, site, number_format), number_format.spacing_at(offset)
        if not runs or step <= _FINE * spread:
            continue
        return context.finding(
            rule,
            site,
            f"a prediction is rounded to {number_format} after {offset:g} is added to it (under {recipes_in(runs)}): "
            f"numbers of that size are {step:g} apart there, of a spread of about {spread:g}; cast it with .float() "
            "before it is scaled and shifted",
            step=step,
            format=str(number_format),
        )
    return None


def _spread(context: GraphContext, site: Site) -> float:
    """How far predictions differ: the literal that what a layer gives is multiplied by, or a bound of it; else 1."""
    ranges = context.runs[0].ranges
    place = 1 if 0 in (site.attrs.get("scalars") or {}) else 0
    bound, made = ranges.operand(site, place).magnitude, ranges.root(site, place)
    if math.isfinite(bound):
        return bound
    numbers = (made.attrs.get("scalars") or {}) if made is not None and made.op in ("mul", "div") else {}
    if made is None or len(numbers) != 1 or (made.op == "div" and 0 in numbers):
        return 1.0
    number = abs(float(next(iter(numbers.values()))))
    return number if made.op == "mul" or not number else 1 / number

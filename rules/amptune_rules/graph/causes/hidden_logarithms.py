"""G204: gradients of logarithms that a function hides: of xlogy at zero, of logaddexp where both are -inf."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._logarithms import reaches_end
from amptune_rules.graph._numeric import chain, floating_sites

_NOTHING = (-math.inf, -math.inf)


def of_products(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """``xlogy(x, y)`` is 0 where both are, but its gradient in y is x / y."""
    for site in floating_sites(context, "xlogy"):
        place = input_of(site, 1)
        trained = place is not None and site.inputs[place].requires_grad and context.train
        if trained and context.runs and all(reaches_end(site, run.ranges.operand(site, 1)) for run in context.runs):
            yield context.finding(
                rule,
                site,
                "xlogy is 0 where both operands are, but its gradient in the second one is x / y: 0 / 0 is NaN; "
                "use log_softmax, or clamp the second operand",
                chain=chain(context, site),
            )


def of_nothing(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Sums of exponentials of -inf alone, as at places that no path of a lattice leads to."""
    for site in floating_sites(context, "logaddexp"):
        is_trained = context.train and any(tensor.requires_grad for tensor in site.inputs)
        if is_trained and all(_is_nowhere(context, site, place) for place in (0, 1)):
            yield context.finding(
                rule,
                site,
                "logaddexp of -inf and -inf, which a tensor filled with -inf has at the same places: its gradient "
                "there is NaN; fill it with a large negative number, such as -1e4",
                chain=chain(context, site),
            )


def _is_nowhere(context: GraphContext, site: Site, place: int) -> bool:
    """Whether an operand is -inf but for some places: filled so, and written in part, or moved along."""
    if (site.attrs.get("bounds") or {}).get(input_of(site, place)) == _NOTHING:
        return True
    made = context.runs[0].ranges.root(site, place) if context.runs else None
    if made is None:
        return False
    if made.op in ("copy", "index_put"):
        return (made.attrs.get("bounds") or {}).get(0) == _NOTHING
    if made.op == "pad":
        return made.attrs.get("value") == -math.inf and _is_nowhere(context, made, 0)
    return made.op in ("full", "full_like", "new_full") and made.attrs.get("fill_value") == -math.inf

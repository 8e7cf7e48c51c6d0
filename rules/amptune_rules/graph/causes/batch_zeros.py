"""G204, G205, G206: operands that are zero with the batch and any weights, or where a relu as a factor closes."""

from __future__ import annotations

from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.ops import Family, op_named
from amptune.core.rule import GraphRule
from amptune_rules.graph._denominators import quotient, what_may_vanish
from amptune_rules.graph._numeric import chain, gives_zeros, is_compared_alone, is_guarded_after


def zero_denominator(rule: GraphRule, context: GraphContext, site: Site, place: int) -> Finding | None:
    """A denominator that is zero with the batch, or where a relu that is a factor of it closes."""
    zeros = zeros_of_batch(context, site)
    factor = "" if zeros or not context.runs else closing_factor(context.runs[0], site, place)
    if not zeros and not factor:
        return None
    root = context.runs[0].ranges.root(site, place) if context.runs else None
    made = what_may_vanish(context, root) if root is not None else ""
    what = f"division by {made}" if made else "the denominator can be zero"
    if zeros:
        where = f"it is zero at {zeros} place{'s' * (zeros > 1)} with the batch of make_batch() and any weights"
    else:
        where = f"it is a product with the result of {factor}, which is zero for much of what it reads"
    breaks = quotient(context.runs[0], site, place).rstrip(",") if context.runs else "x / 0 is infinite or NaN"
    return context.finding(rule, site, f"{what}: {where}: {breaks}", zeros=zeros, chain=chain(context, site))


_TAKES_OUT = frozenset(
    {
        *("where", "masked_fill", "nan_to_num", "masked_select", "index", "index_put", "copy", "fill", "clamp"),
        *("minimum", "maximum", "min", "amin", "max", "amax", "sort", "topk", "argmin", "argmax"),
        *("exp", "tanh", "sigmoid", "atan"),
    }
)
"""Ops right behind what is not finite that may leave it out, or make a number of an infinity again."""
_CHOOSES = frozenset({"where", "masked_fill", "nan_to_num", "masked_select", "index", "index_put"})
_STEPS = 3


def zeros_of_batch(context: GraphContext, site: Site) -> int:
    """How many numbers are zero of the operand of a site that is to be off zero, with the batch of make_batch() and any
    weights; 0 where what reads the site may take out what comes of them."""
    zeros = int(site.attrs.get("zeros_read", 0))
    if zeros <= 0 or is_guarded_after(context, site) or is_compared_alone(context, site):
        return 0
    return 0 if is_taken_out(context, site) else zeros


def below_zero_in_batch(context: GraphContext, site: Site) -> int:
    """How many numbers below zero a root or logarithm is given by the batch alone; 0 where what reads the site may take
    out the NaN that comes of them."""
    below = int(site.attrs.get("below_read", 0))
    if below <= 0 or is_guarded_after(context, site) or is_compared_alone(context, site):
        return 0
    return 0 if is_taken_out(context, site) else below


def is_taken_out(context: GraphContext, site: Site) -> bool:
    """Whether what reads a site may take out what is not finite: right behind it, or by a choice some steps later."""
    fresh, taking = context.graph.consumers(site.id), _TAKES_OUT
    for _ in range(_STEPS):
        if any(after.op in taking for after in fresh):
            return True
        plain = (after for after in fresh if op_named(after.op).family is Family.POINTWISE)
        fresh, taking = [each for after in plain for each in context.graph.consumers(after.id)], _CHOOSES
    return False


_FACTORS = 8


def closing_factor(run: Run, site: Site, place: int) -> str:
    """The op of the factor that takes a product to zero for much of what it reads, as relu; empty for others."""
    fresh, seen = [(site, place)], 0
    while fresh and seen < _FACTORS:
        current, at = fresh.pop()
        made, seen = run.ranges.root(current, at), seen + 1
        if made is None:
            continue
        if current is not site and gives_zeros(run, current, at) and run.ranges.exact(made).low <= 0:
            return made.op
        fresh += [(made, each) for each in ((0, 1) if made.op == "mul" else (0,) if made.op == "div" else ())]
    return ""

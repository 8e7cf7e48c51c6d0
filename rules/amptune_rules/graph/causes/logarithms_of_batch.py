"""G204: logarithms of numbers of the batch, and of what is zero where the batch is."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._logarithms import end_of, reaches_end
from amptune_rules.graph._numeric import (
    chain,
    has_zeros_of_batch,
    of_batch,
)
from amptune_rules.graph.causes.batch_zeros import below_zero_in_batch, closing_factor, zeros_of_batch

_STEPS = 6
_REPLACES = frozenset({"where", "masked_fill", "nan_to_num", "clamp", "maximum", "masked_select", "index"})
"""Ops right behind a logarithm that may take out what is not finite."""
_EXACT = frozenset({"neg", "abs", "relu"})
_WITH_NUMBER = frozenset({"mul", "add", "sub", "div"})


def of_batch_itself(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """Numbers of the batch as they come: what there is of zero and below in it is data."""
    found = of_batch(context, site)
    if not reaches_end(site, found) or not _is_read_off(context, site):
        if (zeros := zeros_of_batch(context, site)) and site.id not in context.weighted:
            text = f"{site.op} of numbers that are zero at {zeros} place{'s' * (zeros > 1)} with the batch of "
            text += f"make_batch(): {site.op}(0) is -inf; use a clamp"
            yield context.finding(rule, site, text, zeros=zeros, chain=chain(context, site))
        elif below := below_zero_in_batch(context, site):
            text = f"{site.op} of what is below zero at {below} place{'s' * (below > 1)} with the batch of "
            text += "make_batch(), and NaN there; use a clamp"
            yield context.finding(rule, site, text, below=below, chain=chain(context, site))
        return
    if any(after.op in _REPLACES for after in context.graph.consumers(site.id)):
        return
    is_plain = input_of(site, 0) in (site.attrs.get("batch") or {})
    of = "numbers of the batch, which go" if is_plain else "what comes of numbers of the batch, which goes"
    yield context.finding(
        rule,
        site,
        f"{site.op} of {of} from {found.low:g} to {found.high + 0:g} in make_batch(): "
        f"{site.op}({end_of(site):g}) is -inf{', and NaN below' if found.low < end_of(site) else ''}; use "
        f"{'log1p, or ' if site.op == 'log' and found.low == 0 and found.high > 1 else ''}a clamp",
        low=found.low,
        chain=chain(context, site),
    )


def _is_read_off(context: GraphContext, site: Site) -> bool:
    """Whether the bounds of what a site reads are numbers of the batch, as they come or through steps with literals
    alone, such as ``1 - x``: then they are reached."""
    current = site
    for _ in range(_STEPS):
        place = next((at for at, index in enumerate(current.attrs.get("operands") or (0,)) if index is not None), 0)
        if input_of(current, place) in (current.attrs.get("batch") or {}):
            return True
        made = context.runs[0].ranges.root(current, place)
        is_step = made is not None and (
            made.op in _EXACT or (made.op in _WITH_NUMBER and len(made.attrs.get("scalars") or {}) == 1)
        )
        if made is None or not is_step:
            return False
        current = made
    return False


def of_zeros(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """What weights have a part in, and is zero where the batch is: its gradient comes back, whatever is chosen."""
    place = input_of(site, 0)
    is_trained = context.train and place is not None and site.inputs[place].requires_grad
    if site.op == "log1p" or not is_trained or site.id not in context.weighted:
        return
    if factor := closing_factor(context.runs[0], site, 0):
        text = f"{site.op} of a product with the result of {factor}, which is zero for much of what it reads: "
        yield context.finding(rule, site, f"{text}-inf, and its gradient NaN", chain=chain(context, site))
    elif has_zeros_of_batch(context, site, 0) or site.attrs.get("zeros_read", 0) > 0:
        yield context.finding(
            rule,
            site,
            f"{site.op} of what is zero wherever a tensor of make_batch() is: {site.op}(0) is -inf, and 0 * inf in "
            "its gradient NaN, also where a mask or where() leaves it out afterwards; put a number in the place of "
            "zeros before the logarithm",
            chain=chain(context, site),
        )

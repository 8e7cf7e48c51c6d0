"""G203: what an exponential that is infinite leads to in every format, beyond being infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping

from amptune.core.arguments import limits_of
from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.rule import GraphRule
from amptune_rules.graph._exponentials import EXPONENTIALS, FP16_LIMIT, FP32_LIMIT, LOGARITHMS, limit_of
from amptune_rules.graph._numeric import chain

_DIVIDED = "is divided by what is made of exponentials"
_SHIFTED = "plus a number is divided by what is made of exponentials"
_BELOW = "is a denominator"
_LOGGED = "is logged"
_NESTED = "is raised again"
_INSTEAD = {
    _DIVIDED: ", and inf / inf is NaN; use softmax, sigmoid or tanh, or subtract the maximum first",
    _SHIFTED: ", and inf / inf is NaN; clamp its input, or use softplus in its place",
    _BELOW: ", and the gradient of 1 / inf is 0 * inf = NaN; use sigmoid, or clamp the input",
    _LOGGED: ", where the logarithm would be small; use logsumexp, logcumsumexp, softplus or log_softmax",
    _NESTED: "; the exponential of an exponential does from 4.48",
}
_CARRIES = frozenset(
    {
        *("add", "sub", "mul", "sum", "mean", "neg", "sqrt", "pow", "square", "cumsum", "prod", "matmul", "mm", "bmm"),
        *("einsum", "cat", "stack", "where", "masked_fill", "dropout", "abs", "amax", "max", "index", "gather"),
        *("triu", "tril", "maximum", "scatter_add", "index_add"),
    }
)
"""Ops through which an infinity stays one."""
_STEPS = 8
_EPS = 1e-2


def harmful(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """An exponential that is then logged, divided by or raised again: infinite in every format."""
    harm = _harm(context, site)
    if not harm:
        return None
    return context.finding(
        rule,
        site,
        f"{site.op} {harm} and nothing bounds its input: it overflows over {limit_of(site, FP32_LIMIT):.1f} in "
        f"every format ({limit_of(site, FP16_LIMIT):.2f} in fp16){_instead(site, harm)}",
        limit=round(limit_of(site, FP32_LIMIT), 2),
        chain=chain(context, site),
    )


def _instead(site: Site, harm: str) -> str:
    if site.op == "i0" and harm == _LOGGED:
        return ": use log(torch.special.i0e(x)) + x"
    return _INSTEAD[harm]


def _harm(context: GraphContext, site: Site) -> str:
    """What an infinite result leads to, beyond being infinite; empty where there is no more to it."""
    reached = _reached(context, site)
    for after in reached:
        for consumer in context.graph.consumers(after):
            if consumer.op in LOGARITHMS:
                return _LOGGED
            if consumer.op in EXPONENTIALS and (consumer.id != site.id or site.calls > 1):
                return _NESTED
            if consumer.op == "reciprocal" and context.train:
                return _BELOW
            if consumer.op == "div" and (sides := _sides(context, consumer, reached))[1]:
                if sides[0]:
                    return _SHIFTED if _has_number_added(context, consumer, reached) else _DIVIDED
                if context.train:
                    return _BELOW
    return ""


def _reached(context: GraphContext, site: Site) -> Mapping[str, None]:
    """Sites that an infinity in ``site`` reaches as an infinity, the nearest first."""
    reached, fresh = {site.id: None}, [site.id]
    for _ in range(_STEPS):
        fresh = [
            consumer.id
            for name in fresh
            for consumer in context.graph.consumers(name)
            if _carries(consumer) and consumer.id not in reached
        ]
        reached.update(dict.fromkeys(fresh))
    return reached


def _carries(site: Site) -> bool:
    """Whether an infinity that a site reads stays one: also through a clamp that has no upper limit."""
    return site.op in _CARRIES or (site.op == "clamp" and limits_of(site)[1] == math.inf)


def _has_number_added(context: GraphContext, site: Site, reached: Mapping[str, None]) -> bool:
    """Whether what is divided is exponentials and a literal, as in ``exp(x) + 1``: no softmax, whose exponentials may
    all be divided by one. An eps is no such number."""
    ranges = context.runs[0].ranges
    current = ranges.root(site, 0)
    for _ in range(_STEPS):
        if current is None:
            return False
        numbers = (current.attrs.get("scalars") or {}).values() if current.op == "add" else ()
        if any(isinstance(number, (int, float)) and abs(number) > _EPS for number in numbers):
            return True
        roots = [ranges.root(current, place) for place in (0, 1)]
        current = next((root for root in roots if root is not None and root.id in reached), None)
    return False


def _sides(context: GraphContext, site: Site, reached: Mapping[str, None]) -> list[bool]:
    """Whether numerator and denominator of a division are infinite."""
    roots = [context.runs[0].ranges.root(site, place) for place in (0, 1)]
    return [root is not None and root.id in reached for root in roots]

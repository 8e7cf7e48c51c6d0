"""G206: roots of sums that a term of both signs takes below zero, as a step of a stochastic equation does."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.bounds.relations.squares import is_square
from amptune.core.bounds.relations.terms import terms_of
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import chain, is_stored
from amptune_rules.graph._roots import named, root_exponent

_FACTORS = 8
_TERMS = 24
_Leaf = tuple[Site, int]


def with_noise(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """A root of what a product with noise takes below zero."""
    if root_exponent(site) is None or not _has_noise(context, site):
        return None
    return context.finding(
        rule,
        site,
        f"{named(site)} of a sum with a term of both signs, a product with noise, which can take it below zero as "
        "far as its terms show, where it is NaN; clamp it",
        severity=Severity.INFO,
        chain=chain(context, site),
    )


def _has_noise(context: GraphContext, site: Site) -> bool:
    """Whether a site reads a sum of terms of which one is a product with noise of the batch, or random numbers, of both
    signs, with nothing that says that the sum stays above zero, as the squares of a quadratic form do."""
    run, bounds = context.runs[0], context.bounds(context.runs[0])
    total = run.ranges.root(site)
    if total is None or bounds is None or total.op not in ("add", "sub") or total.id not in context.weighted:
        return False
    if run.ranges.operand(site, 0).low >= 0 or bounds.operand(site, 0).low >= 0:
        return False
    terms = [term.site for term in terms_of(run.ranges, total)][:_TERMS]
    noisy = [
        leaves
        for term in terms
        if len(leaves := list(_leaves(context, term))) > 1 and any(_is_noise(context, *leaf) for leaf in leaves)
    ]
    squares = any(_is_square_of(context, term, leaves) for term in terms for leaves in noisy)
    return 0 < len(noisy) < len(terms) and not squares


def _leaves(context: GraphContext, term: Site) -> Iterator[_Leaf]:
    """The operands that a term multiplies, through products of products; none for a term that is no product."""
    fresh = [term] if term.op == "mul" else []
    for _ in range(_FACTORS):
        if not fresh:
            return
        current = fresh.pop()
        for place in (0, 1):
            made = context.runs[0].ranges.root(current, place)
            if made is not None and made.op == "mul" and made.id in context.weighted:
                fresh.append(made)
            elif place not in (current.attrs.get("scalars") or {}):
                yield current, place


def _is_noise(context: GraphContext, site: Site, place: int) -> bool:
    """Whether an operand is worked out from the batch or from random numbers alone, and has both signs."""
    made, bounds = context.runs[0].ranges.root(site, place), context.bounds(context.runs[0])
    if bounds is None or input_of(site, place) is None or (made is not None and made.id in context.weighted):
        return False
    found = bounds.operand(site, place)
    drawn = input_of(site, place) in (site.attrs.get("batch") or {}) or site.attrs.get("random")
    is_given = bool(drawn) if made is None else not is_stored(context, made)
    return is_given and -1e30 < found.low < 0 < found.high < 1e30


def _is_square_of(context: GraphContext, term: Site, leaves: list[_Leaf]) -> bool:
    """Whether a term is a square of a factor of a noisy one, as in ``a * a + b * b - 2 * a * b * c``."""
    ranges = context.runs[0].ranges
    return is_square(ranges, term) and any(ranges.covers(term, 0, *leaf) for leaf in leaves)

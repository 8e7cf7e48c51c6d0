"""G205, G206: decompositions and inverses of Gram matrices of fewer vectors than they have rows: they are singular."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import chain

_PRODUCTS = frozenset({"matmul", "mm", "bmm"})
_DEPTH = 4


def singular_matrices(rule: GraphRule, context: GraphContext, *ops: str) -> Iterator[Finding]:
    """Sites of the named ops that read ``x.T @ x``, with or without a factor, of too few rows of x."""
    for site in context.graph if context.runs else ():
        product = _gram_behind(context.runs[0], site) if site.op in ops else None
        if product is None:
            continue
        terms, rows = product.inputs[0].shape[-1], product.outputs[0].shape[-1]
        yield context.finding(
            rule,
            site,
            f"{site.op} of a product of a tensor with itself over {terms} terms, {rows} x {rows}: its rank is at most "
            f"{terms}, so that it is singular, and what rounding leaves of its zeros decides; add a share of its "
            "diagonal, or read more rows",
            rank=terms,
            rows=rows,
            chain=chain(context, site),
        )


def _gram_behind(run: Run, site: Site) -> Site | None:
    """The product of a tensor with itself, turned, that a site reads, where it has more rows than terms."""
    current = run.ranges.root(site)
    for _ in range(_DEPTH):
        scalars = (current.attrs.get("scalars") or {}) if current is not None else {}
        if current is None or current.op not in ("mul", "div") or len(scalars) != 1:
            break
        current = run.ranges.root(current, 1 if 0 in scalars else 0)
    if current is None or current.op not in _PRODUCTS or len(current.inputs) != 2 or len(current.inputs[0].shape) < 2:
        return None
    shape = current.outputs[0].shape
    is_gram = shape[-1] == shape[-2] > current.inputs[0].shape[-1] and run.ranges.covers(current, 0, current, 1)
    return current if is_gram else None

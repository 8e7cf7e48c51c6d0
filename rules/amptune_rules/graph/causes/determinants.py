"""Logarithms of determinants: a product of as many numbers as the matrix has rows, whose sum of logarithms is usual."""

from __future__ import annotations

from amptune.core.finding import Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext

SOME, MANY = 16, 64
"""Rows from which a determinant is told, and from which numbers of a tenth take it out of FP32."""
_KEEP = frozenset({"abs", "neg", "mul", "div"})
_DEPTH = 4


def determinant_behind(context: GraphContext, site: Site) -> tuple[str, Severity] | None:
    """What is to be said of a logarithm of a large determinant, its absolute value, or a number times it."""
    current = context.runs[0].ranges.root(site) if context.runs else None
    signed = True
    for _ in range(_DEPTH):
        if current is None or current.op not in _KEEP or not (current.op in ("abs", "neg") or _has_number(current)):
            break
        signed = signed and current.op != "abs"
        current = context.runs[0].ranges.root(current, 1 if 0 in (current.attrs.get("scalars") or {}) else 0)
    if current is None or current.op != "det":
        return None
    shapes = [tensor.shape for tensor in current.inputs] + [param.meta.shape for param in current.params]
    rows = shapes[0][-1] if shapes and len(shapes[0]) > 1 else 0
    if rows < SOME:
        return None
    below = ", and NaN of a negative one" if signed else ""
    text = (
        f"{site.op} of a determinant of {rows} x {rows}, a product of {rows} numbers, which leaves every format at "
        f"both ends: {site.op}(0) is -inf{below}; use torch.linalg.slogdet"
    )
    return text, Severity.WARNING if rows >= MANY else Severity.INFO


def _has_number(site: Site) -> bool:
    return len(site.attrs.get("scalars") or {}) == 1

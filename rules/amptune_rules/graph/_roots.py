"""What is known of roots and of what stands under them."""

from __future__ import annotations

import math

from amptune.core.arguments import exponent_of
from amptune.core.autocast import HALF
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.relations.distances import distance_of
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune_rules.graph._means import is_difference_of_means
from amptune_rules.graph._numeric import (
    CLOSED_AT_ZERO,
    floating_sites,
    is_guarded_after,
    is_signed,
    is_stored,
    of_batch,
)

_OF_NORMS = frozenset({"sum", "mean", "pow", "square", "mul", "abs", "einsum"})
_STEPS = 5
"""Ops from a root back to the vector that it is the norm of."""


def root_exponent(site: Site) -> float | None:
    """The literal exponent; ``None`` for one that is a tensor."""
    return {"sqrt": 0.5, "rsqrt": -0.5}.get(site.op, exponent_of(site))


def is_root(site: Site) -> bool:
    """Roots, negative powers, and powers with a tensor as exponent, which are NaN for a negative base as roots are."""
    exponent = root_exponent(site)
    if exponent is None:
        return site.op == "pow" and 0 not in (site.attrs.get("scalars") or {})
    return exponent < 1 and exponent != 0 and not (exponent < 0 and exponent == int(exponent) and exponent % 2 == 0)


def is_fractional(site: Site) -> bool:
    exponent = root_exponent(site)
    return exponent is not None and exponent > 1 and exponent != int(exponent)


def may_be_negative(run: Run, site: Site) -> bool:
    return is_signed(run, site) or -1e30 < run.ranges.operand(site, 0).low < 0


def named(site: Site) -> str:
    exponent = root_exponent(site)
    if site.op != "pow":
        return site.op
    return "a power with a tensor as exponent" if exponent is None else f"the power of {exponent:.3g}"


def touches_zero(found: Range) -> bool:
    return found.is_known and -1e30 < found.low <= 0


def cancels(run: Run, site: Site) -> bool:
    root = run.ranges.root(site)
    return root is not None and root.op == "sub" and is_difference_of_means(run, root)


def runs_below_zero(context: GraphContext, site: Site, eps: float) -> list[tuple[Run, float]]:
    """The runs in which E[x^2] - E[x]^2 + eps goes below zero for numbers of ordinary size, or for those of the batch,
    with the mean from which it does: each mean is off by half an ulp of the narrowest format that it was rounded to."""
    found = []
    for run in context.runs:
        total = run.ranges.root(site)
        difference = run.ranges.root(total) if total is not None and total.op == "add" else None
        if difference is None or difference.op != "sub" or not is_difference_of_means(run, difference):
            continue
        squared = run.ranges.root(difference, 1)
        parts = [difference, run.ranges.root(difference, 0), squared and run.ranges.root(squared, 0)]
        dtypes = [dtype for part in parts if part is not None for dtype in run.dtypes[part.id].outputs[:1]]
        coarsest = max(Format.parse(dtype).epsilon for dtype in dtypes if dtype in ("float32", *HALF))
        largest = math.sqrt(2 * eps / coarsest)
        if largest < 1 or (squared is not None and of_batch(context, squared).least > largest):
            found.append((run, largest))
    return found


def is_of_difference(context: GraphContext, site: Site) -> bool:
    """Whether a root is taken of a - b where nothing says that a is larger, not even the numbers of the batch."""
    root = context.runs[0].ranges.root(site)
    if root is None or root.op != "sub" or is_stored(context, root):
        return False
    return context.runs[0].ranges.operand(site, 0).low < 0 and of_batch(context, site).low < 0


def is_undone(context: GraphContext, site: Site) -> bool:
    """Whether an infinity at zero goes no further: replaced behind the site, or, of a gradient alone, in the relu of a
    layer's output, which lets no gradient through where it gives zero."""
    if is_guarded_after(context, site):
        return True
    run, rises = context.runs[0], (root_exponent(site) or 0) > 0
    root = run.ranges.root(site)
    return rises and root is not None and root.op in CLOSED_AT_ZERO and is_signed(run, root)


def breaks_at_zero(context: GraphContext, site: Site) -> bool:
    """Whether a root or its gradient is infinite at zero, and that counts."""
    exponent = root_exponent(site)
    return exponent is not None and (exponent < 0 or not context.train or site.inputs[0].requires_grad)


def is_of_distance(run: Run, site: Site) -> bool:
    """Whether a root is taken of |a|^2 - 2ab + |b|^2, or of some of several such, without an eps."""
    found = distance_of(run.ranges, site, 0)
    return found is not None and found[1] <= 0


def normalises(run: Run, division: Site, root: Site) -> bool:
    """Whether a division by a root is of what stands under the root: ``x / (x * x).sum().sqrt()``."""
    above = run.ranges.root(division, 0) if division.op == "div" else None
    current: Site | None = root
    for _ in range(_STEPS):
        current = run.ranges.root(current) if current is not None and _is_of_norm(current) else None
        if current is None or above is None:
            return False
        if current.id == above.id:
            return True
    return False


def _is_of_norm(site: Site) -> bool:
    """Whether a site is a step from a vector to its norm."""
    return is_root(site) or site.op in _OF_NORMS


def normalised_by(context: GraphContext, site: Site) -> bool:
    """Whether something is normalised by a root, in any of its calls, and is not guarded behind that."""
    run = context.runs[0]
    divisions = ((each, run.ranges.root(each, 1)) for each in floating_sites(context, "div"))
    own = [(each, root) for each, root in divisions if root is not None and root.site_id == site.site_id]
    return any(normalises(run, each, root) and not is_guarded_after(context, each) for each, root in own)

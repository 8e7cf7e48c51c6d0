"""What is known of a denominator: who made it, what keeps it off zero, and which eps a format loses."""

from __future__ import annotations

import math

from amptune.core.arguments import reduced_count
from amptune.core.autocast import HALF
from amptune.core.bounds.intervals import ANY, Range
from amptune.core.bounds.relations.distances import distance_of
from amptune.core.bounds.relations.parts import NORMS
from amptune.core.bounds.relations.segments import is_positive_sum, reads_back_sum
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.operands import COPIES_ONE, input_of
from amptune.core.ops import op_named
from amptune_rules.graph._numeric import (
    SIGNED_FAMILIES,
    delivering,
    eps_before,
    gives_zeros,
    is_signed,
    is_stored,
)

_CHOSEN = ("where", "masked_fill", "dropout", "one_hot", "eq", "ne", "gt", "lt", "ge", "le")
"""Denominators that a condition of the user's makes."""


def is_chosen(run: Run, root: Site) -> bool:
    """Whether a condition of the user's makes a denominator, or a term that it adds up."""
    terms = [run.ranges.root(root, side) for side in (0, 1)] if root.op == "add" else [root]
    return any(term is not None and term.op in _CHOSEN for term in terms)


def constant_zeros(context: GraphContext, site: Site, place: int) -> int:
    """How many numbers of a constant denominator are zero; 0 where it is not constant, or is read in part."""
    root = context.runs[0].ranges.root(site, place) if context.runs else None
    position = input_of(site, place)
    if root is None or position is None or (site.attrs.get("views") or {}).get(position, ("", ""))[0]:
        return 0
    return int(root.attrs.get("exact", (0, 0, 0))[2])


def buffer_with_zeros(context: GraphContext, run: Run, root: Site | None) -> str:
    """The buffer whose numbers a site picks, where the buffer as it stands has zeros; empty for anything else."""
    position = input_of(root, 0) if root is not None and root.op in COPIES_ONE else None
    bounds = context.bounds(run)
    if root is None or position is None or bounds is None:
        return ""
    source = bounds.sources(root)[position]
    found = bounds.assumed.buffers.get(source, ANY)
    return source if 0.0 in (found.low, found.high) else ""


def denominator_of_distance(context: GraphContext, site: Site, place: int) -> tuple[Site, float] | None:
    return distance_of(context.runs[0].ranges, site, place) if context.runs else None


def _is_sum_over_distances(context: GraphContext, root: Site) -> bool:
    terms = context.runs[0].ranges.root(root)
    if terms is None or terms.op not in ("div", "reciprocal"):
        return False
    return denominator_of_distance(context, terms, 0 if terms.op == "reciprocal" else 1) is not None


def epsilons(run: Run, product: Site) -> list[float]:
    """How exact a product is, relative to its terms."""
    return [Format.parse(each).epsilon for each in run.dtypes[product.id].outputs if each in ("float32", *HALF)]


def leaves_fp16(run: Run, site: Site, place: int) -> bool:
    """Whether a quotient of what is bounded leaves FP16 where its denominator comes down to an eps that was written."""
    below, found = run.ranges.operand(site, place), run.ranges.exact(site)
    if "float16" not in run.dtypes[site.id].outputs or not (0 < below.low < 1 and found.is_known):
        return False
    is_over = Format.FP16.max < found.high < math.inf and eps_before(run, site, place) is not None
    return is_over and not _is_beside_sum(run, site, place)


MANY = 32
"""Numbers of which some are off zero, unless what made them gives zeros: their sum does not come down to an eps."""


def _is_beside_sum(run: Run, site: Site, place: int) -> bool:
    """Whether the eps of a denominator stands beside a sum or mean of many numbers."""
    root = run.ranges.root(site, place)
    total = run.ranges.root(root) if root is not None and root.op == "add" else None
    if total is None or total.op not in ("sum", "mean") or reduced_count(total) < MANY:
        return False
    return not gives_zeros(run, total)


def what_may_vanish(context: GraphContext, root: Site) -> str:
    """What a denominator is, where it is a kind of value that has both signs unless something says otherwise, or adds
    up what the batch has no negative numbers of, as masks."""
    if root.op == "sub":
        return "a difference, which can be zero"
    if op_named(root.op).family in SIGNED_FAMILIES:
        return f"{f'the output of {root.id}' if root.is_module else f'the result of {root.op}'}, which can be zero"
    if root.op not in ("sum", "mean", "prod", "trace"):
        return ""
    if _is_sum_over_distances(context, root):
        return ""  # of weights by distances, whose own division is what breaks
    bounds = context.bounds(context.runs[0])
    if root.op == "prod" and bounds is not None and bounds.operand(root, 0).low >= 0:
        found, count = bounds.operand(root, 0), reduced_count(root)
        return f"a product of {count} numbers in [{found.low:.3g}, {found.high:.3g}], which can come to zero"
    if root.op in ("sum", "mean") and bounds is not None and bounds.operand(root, 0).low >= 0:
        return f"a {root.op}, which is zero where all its terms are"
    return f"a {root.op} of what can have both signs, which can then be zero"


def is_off_zero_by_data(context: GraphContext, site: Site, place: int) -> bool:
    """Whether a denominator of both signs is off zero with the numbers of the batch: images in [0, 1] less 2."""
    bounds = context.bounds(context.runs[0])
    return bounds is not None and not may_vanish(bounds.operand(site, place))


def is_off_zero_in_batch(context: GraphContext, site: Site, place: int, root: Site) -> bool:
    """Whether a denominator is worked out from the batch alone, and is off zero with its numbers, as noise levels."""
    bounds = context.bounds(context.runs[0])
    return bounds is not None and root.id not in context.weighted and bounds.operand(site, place).least > 0


def quotient(run: Run, site: Site, place: int) -> str:
    """What the division gives where the denominator is zero."""
    above = Range(1.0, 1.0) if place == 0 else run.ranges.operand(site, 0)
    if above.is_known and not above.holds(0.0):
        return "x / 0 is infinite"
    root = run.ranges.root(site, place)
    is_own = root is not None and (_is_norm_of(run, root, site) or _is_deviation_of(run, root, site))
    return "0 / 0 is NaN" if is_own else "x / 0 is infinite, and 0 / 0 NaN,"


_TO_NORM = NORMS | {"sum", "mean", "abs", "sqrt", "pow", "square", "mul", "amax"}
_NORM_STEPS = 4


def _is_deviation_of(run: Run, root: Site, site: Site) -> bool:
    """Whether ``(x - y) / x.std()`` is taken: where x is constant, and y its mean, both are zero."""
    spread = run.ranges.root(root) if root.op == "sqrt" else root
    above = run.ranges.root(site, 0)
    if spread is None or spread.op not in ("std", "var") or above is None or above.op != "sub":
        return False
    mean = run.ranges.root(above, 1)
    return mean is not None and mean.op == "mean" and run.ranges.covers(spread, 0, above, 0)


def _is_norm_of(run: Run, root: Site, site: Site) -> bool:
    """Whether a denominator is a norm of the numerator: where it is zero, so is all above it."""
    current: Site | None = root
    for _ in range(_NORM_STEPS):
        if current is None or current.op not in _TO_NORM:
            return False
        if run.ranges.covers(current, 0, site, 0):
            return True
        current = run.ranges.root(current)
    return False


def is_root_with_eps(context: GraphContext, root: Site) -> bool:
    """Whether a site is sqrt(x + eps) of an x of which nothing is known: the root says that the user has x above zero,
    as a running variance is, and the eps is there and is kept in every format."""
    return root.op == "sqrt" and all(_keeps_offset(run, run.ranges.root(root)) for run in context.runs)


def _keeps_offset(run: Run, total: Site | None) -> bool:
    if total is None or total.op != "add":
        return False
    numbers = [value for value in (total.attrs.get("scalars") or {}).values() if isinstance(value, (int, float))]
    formats = [Format.parse(dtype) for dtype in run.dtypes[total.id].outputs]
    return any(value > 0 and all(each.round(value) > 0 for each in formats) for value in numbers)


def lost_numbers(run: Run, root: Site) -> list[float]:
    """Numbers that a where or masked_fill puts in and that the format of its result rounds to zero."""
    if root.op not in ("where", "masked_fill"):
        return []
    formats = [Format.parse(dtype) for dtype in run.dtypes[root.id].outputs if dtype in ("float16", "bfloat16")]
    numbers = [*(root.attrs.get("scalars") or {}).values(), root.attrs.get("value")]
    given = [float(each) for each in numbers if isinstance(each, (int, float)) and each]
    return [number for number in given if any(each.round(number) == 0 for each in formats)]


def _eps_of_sum(root: Site) -> float | None:
    numbers = (root.attrs.get("scalars") or {}).values() if root.op == "add" else ()
    return next((float(each) for each in numbers if 0 < each < 1), None)


def lost_beside(context: GraphContext, root: Site) -> tuple[float, tuple[Run, ...]]:
    """The eps of a denominator ``y + eps`` whose y only the user's code keeps from being negative, as the union of two
    boxes, and the runs in which it rounds to zero."""
    eps = _eps_of_sum(root)
    place = 1 if 0 in (root.attrs.get("scalars") or {}) else 0
    beside = context.runs[0].ranges.operand(root, place)
    if eps is None or not (beside.low < 0 < beside.high) or is_signed(context.runs[0], root, place):
        return 0.0, ()
    bounds = context.bounds(context.runs[0])
    if bounds is not None and bounds.operand(root, place).least > 0:
        return 0.0, ()
    halves = (Format.FP16, Format.BF16)
    return eps, tuple(run for each in halves if each.round(eps) == 0 for run in delivering(context, root, each))


def may_vanish(found: Range) -> bool:
    """Whether nothing is known, or zero lies between the two ends of what is."""
    return not found.is_known or found.holds(0.0)


def touches_zero(found: Range) -> bool:
    """Whether zero is an end of what is known, or lies within what is known on one side."""
    return found.is_known and (found.low == 0 or found.high == 0 or (found.holds(0.0) and _is_one_sided(found)))


def _is_one_sided(found: Range) -> bool:
    return math.isinf(found.low) != math.isinf(found.high)


_DISTANCES = frozenset({"sum", "square", "pow", "cdist", "norm", "linalg_vector_norm", "abs"})


def fades(run: Run, root: Site) -> bool:
    """Whether a denominator is a sum of ``exp(-distance)``, of which each can be zero: nothing takes the smallest
    distance off, nor is a point its own neighbour."""
    made = run.ranges.root(root) if root.op == "sum" else None
    exponent = run.ranges.root(made) if made is not None and made.op == "exp" else None
    if made is None or exponent is None or run.ranges.operand(made, 0).low > -math.inf:
        return False
    for _ in range(_NORM_STEPS):
        if exponent is None or exponent.op not in ("neg", "mul", "div"):
            break
        place = 1 if 0 in (exponent.attrs.get("scalars") or {}) else 0
        exponent = run.ranges.root(exponent, place)
    if exponent is None or exponent.op not in _DISTANCES or run.ranges.operand(made, 0).high > 0:
        return False
    return _is_between(run, exponent)


def _is_between(run: Run, distance: Site) -> bool:
    """Whether a distance is between points of two tensors, rather than of one."""
    current: Site | None = distance
    for _ in range(_NORM_STEPS):
        if current is None or current.op == "cdist" or current.op not in _DISTANCES:
            break
        current = run.ranges.root(current)
    if current is None or current.op not in ("sub", "cdist"):
        return False
    stored = current.attrs.get("operand_params") or {}  # learnt centres
    is_known = [run.ranges.root(current, place) is not None or place in stored for place in (0, 1)]
    if len(stored) == 1 and input_of(current, 1 - next(iter(stored))) is not None:
        return True
    return all(is_known) and not run.ranges.covers(current, 0, current, 1)


def is_needless(run: Run, site: Site, place: int) -> bool:
    """Whether an eps is added to what is above zero without it: sums of exponentials by segment, which terms read."""
    root = run.ranges.root(site, place)
    numbers = (root.attrs.get("scalars") or {}) if root is not None and root.op == "add" else {}
    return root is not None and len(numbers) == 1 and reads_back_sum(run.ranges, root, 1 if 0 in numbers else 0)


def holds_without(run: Run, site: Site, place: int) -> bool:
    """Whether what the eps is added to has both signs, so that the eps protects nothing in any format."""
    root = run.ranges.root(site, place)
    return root is not None and root.op == "add" and run.ranges.operand(root, 0).low < 0


def is_kept_off_zero(context: GraphContext, run: Run, site: Site, place: int) -> bool:
    """Whether how a denominator was made, or the batch, keeps it off zero, though its bounds do not; or whether nothing
    is known of it."""
    root = run.ranges.root(site, place)
    if reads_back_sum(run.ranges, site, place) or is_positive_sum(run.ranges, root):
        return True
    if root is None:
        return input_of(site, place) not in (site.attrs.get("bounds") or {})
    if is_chosen(run, root) or is_stored(context, root) or is_root_with_eps(context, root):
        return True
    if is_off_zero_in_batch(context, site, place, root):
        return True
    # G203 says of an exponential that nothing bounds what else it does below.
    return root.op in ("exp", "exp2") and not math.isfinite(run.ranges.operand(root, 0).high)

"""Differences of means: ``E[x^2] - E[x]^2``, whose digits cancel, by means, windows, or sums that are divided."""

from __future__ import annotations

from amptune.core.bounds.relations.squares import is_square
from amptune.core.graph import Site
from amptune.core.graph_context import Run
from amptune.core.operands import input_of

_AVERAGES = frozenset({"mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "conv1d", "conv2d", "conv3d"})
"""Ops that give means; convolutions with the weights of a window, as in SSIM."""


def is_difference_of_means(run: Run, site: Site) -> bool:
    """Whether a subtraction is E[x^2] - E[x]^2."""
    first, second = run.ranges.root(site, 0), run.ranges.root(site, 1)
    if first is None or second is None or not is_square(run.ranges, second) or _are_pairs(site, first):
        return False
    if first.op == "div":
        return _is_difference_of_quotients(run, first, second)
    if first.op not in _AVERAGES:
        return False
    inner, mean = run.ranges.root(first, 0), run.ranges.root(second, 0)
    return (
        inner is not None and is_square(run.ranges, inner) and mean is not None and mean.op == first.op
        and (run.ranges.same(inner, 0, mean, 0) or run.ranges.picks_alike(first, 0, mean, 0))
        and (first.op == "mean" or _is_one_window(run, first, mean))
    )  # fmt: skip


def _are_pairs(site: Site, first: Site) -> bool:
    """Whether each number meets many: a mean of squares of one row less the squared mean of another."""
    return bool(site.outputs and first.outputs) and site.outputs[0].numel > first.outputs[0].numel


def _is_difference_of_quotients(run: Run, first: Site, second: Site) -> bool:
    """Whether means by hand are subtracted: sums, or cumulative ones (sparsemax, entmax), divided by one count."""
    ranges = run.ranges
    mean, squares = ranges.root(second, 0), ranges.root(first, 0)
    if mean is None or mean.op != "div" or squares is None or squares.op not in ("sum", "cumsum"):
        return False
    total, inner = ranges.root(mean, 0), ranges.root(squares, 0)
    counts = [_count(each) for each in (first, mean)]
    is_one_count = counts[0] == counts[1] if counts != [None, None] else ranges.same(first, 1, mean, 1)
    return (
        total is not None and total.op == squares.op and inner is not None and is_square(ranges, inner)
        and is_one_count and ranges.same(inner, 0, total, 0)
    )  # fmt: skip


def _count(quotient: Site) -> object:
    """What a sum is divided by, where that is a literal or a table of constants, as the first, second, ... of many."""
    position = input_of(quotient, 1)
    table = (quotient.attrs.get("bounds") or {}).get(position)
    if table is not None and position is not None:
        return table, quotient.inputs[position].shape
    return (quotient.attrs.get("scalars") or {}).get(1)


def _is_one_window(run: Run, first: Site, second: Site) -> bool:
    """Whether two averages are over the same window, with the same weights where there are any."""
    if first.params or second.params or first.is_module:
        return False
    return not first.op.startswith("conv") or run.ranges.same(first, 1, second, 1)

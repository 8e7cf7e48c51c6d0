"""Ranges of what reductions and norms give."""

from __future__ import annotations

import math

from amptune.core.arguments import axis_size, norm_order, reduced_count
from amptune.core.bounds.intervals import ANY, Range, product, raised, symmetric
from amptune.core.graph import Site


def summed(site: Site, ranges: list[Range]) -> Range:
    """As many times the terms as there are."""
    count, called = reduced_count(site), str(site.attrs.get("called", ""))
    if called == "trace" and site.inputs and site.inputs[0].shape:
        count = min(site.inputs[0].shape)
    if not ranges or not count or "trap" in called:
        return ANY  # a trapezoid takes half of what is at the ends, and has the distance between as a factor
    return Range(product(ranges[0].low, count), product(ranges[0].high, count))


def summed_so_far(site: Site, ranges: list[Range]) -> Range:
    """From one term to all of them."""
    if not ranges:
        return ANY
    low, high, count = ranges[0].low, ranges[0].high, axis_size(site)
    return Range(min(low, product(low, count)), max(high, product(high, count)))


def multiplied(site: Site, ranges: list[Range]) -> Range:
    """Of numbers in [0, a]; anything else is not bounded."""
    if not ranges or ranges[0].low < 0:
        return symmetric(1.0) if ranges and ranges[0].magnitude <= 1 else ANY
    count = reduced_count(site) if site.op == "prod" else axis_size(site)
    low, high = ranges[0].low, ranges[0].high
    return Range(min(low, raised(low, count)), max(high, raised(high, count)))


def spread(site: Site, ranges: list[Range]) -> Range:
    """A standard deviation is at most the width of the range."""
    width = ranges[0].high - ranges[0].low if ranges else math.inf
    correction = site.attrs.get("correction")
    width = math.inf if math.isnan(width) or (correction is not None and correction not in (0, 1)) else width
    return Range(0.0, width if site.op == "std" else product(width, width))


def norm(site: Site, ranges: list[Range]) -> Range:
    """At most the largest number times the root of the count."""
    count, order = reduced_count(site), norm_order(site)
    if not ranges or not count:
        return Range(0.0, math.inf)
    # A norm of positive order is at least the size of each of its numbers.
    least = 0.0 if not isinstance(order, str) and order <= 0 else ranges[0].least
    is_matrix = site.op == "linalg_matrix_norm" or "linalg" in str(site.attrs.get("called", ""))
    if order == "nuc" or (not isinstance(order, str) and order < 2) or (is_matrix and order == math.inf):
        return Range(least, math.inf)
    return Range(least, product(ranges[0].magnitude, math.sqrt(count)))


def normalized(site: Site, ranges: list[Range]) -> Range:
    """A norm of positive order is at least as large as each number. weight_norm has two tensors, and scales by one."""
    order = site.attrs.get("p", 2)
    alone = len(site.inputs) + len(site.params) == 1
    return symmetric(1.0) if alone and isinstance(order, int | float) and order > 0 else ANY


def layer_norm(site: Site, ranges: list[Range]) -> Range:
    """A norm layer without weights: of n numbers with mean 0 and deviation 1, none is over the root of n."""
    if site.params or not site.inputs:
        return ANY
    shape = site.attrs.get("normalized_shape") or site.inputs[0].shape[-1:]
    count = math.prod(shape) if isinstance(shape, list | tuple) else int(shape)
    return symmetric(math.sqrt(max(count, 1)))


def logsumexp(site: Site, ranges: list[Range]) -> Range:
    """Over the largest by the logarithm of the count, or less."""
    count = max(reduced_count(site), 1)
    return Range(ranges[0].low, ranges[0].high + math.log(count)) if ranges else ANY

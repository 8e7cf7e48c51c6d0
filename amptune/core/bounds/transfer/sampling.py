"""Bounds of signals and images that are pooled, sampled anew, transformed window by window, or differenced."""

from __future__ import annotations

import math

from amptune.core.bounds.intervals import ANY, Range, point, product, scaled, subtract, symmetric
from amptune.core.graph import Site


def sampled(site: Site, ranges: list[Range]) -> Range:
    """Means of what is near a place, and zeros outside."""
    if "affine_grid" in str(site.attrs.get("called", "")):
        return ANY
    return resized(site, [ranges[0].union(point(0.0))]) if ranges else ANY


def averaged(site: Site, ranges: list[Range]) -> Range:
    """Means of windows, which read zeros over the edge."""
    padding = site.attrs.get("padding") or 0
    if not ranges or site.attrs.get("divisor_override"):
        return ANY
    over_edge = any(padding) if isinstance(padding, list | tuple) else bool(padding)
    return ranges[0].union(point(0.0)) if over_edge and site.attrs.get("count_include_pad", True) else ranges[0]


def summed_powers(site: Site, ranges: list[Range]) -> Range:
    """Norms of windows: not negative where what they are of is not."""
    return Range(0.0, math.inf) if ranges and ranges[0].low >= 0 else ANY


def resized(site: Site, ranges: list[Range]) -> Range:
    """Means of what is near a place; cubic ones have weights below zero too, which go beyond the numbers at both ends:
    at most 1.1875 and -0.1875 in all along an axis."""
    if not ranges or site.attrs.get("mode") not in ("bicubic", 2):
        return ranges[0] if ranges else ANY
    above, below = 1.1875**2 + 0.1875**2, 2 * 1.1875 * 0.1875
    return subtract(scaled(ranges[0], above), scaled(ranges[0], below))


def steps(site: Site, ranges: list[Range]) -> Range:
    """Differences of neighbours, n times over; what is put before or behind them may be anything."""
    if len(site.inputs) != 1 or not ranges:
        return ANY
    found, times = ranges[0], site.attrs.get("n", 1)
    for _ in range(times if isinstance(times, int) else 0):
        found = subtract(found, found)
    return found


def spectrum(site: Site, ranges: list[Range]) -> Range:
    """Sums of as many numbers as a window has, each times one of it: their size is that of the largest sum."""
    size = site.attrs.get("n_fft")
    if not isinstance(size, int) or not ranges:
        return ANY
    window = ranges[1].magnitude if len(ranges) > 1 and len(site.inputs) > 1 else 1.0
    most = product(size, product(ranges[0].magnitude, window))
    return symmetric(most / math.sqrt(size) if site.attrs.get("normalized") else most)

"""Ranges of tensors that numbers are put into: chosen, filled, written over, padded."""

from __future__ import annotations

import math

from amptune.core.arguments import factor_of_second
from amptune.core.bounds.intervals import ANY, Range, point
from amptune.core.graph import Site


def chosen(site: Site, ranges: list[Range]) -> Range:
    """Either of the two."""
    return ranges[1].union(ranges[2]) if len(ranges) >= 3 else ANY


def filled_by_mask(site: Site, ranges: list[Range]) -> Range:
    """What was there, or the number that fills the mask."""
    value = site.attrs.get("value")
    filled = point(float(value)) if isinstance(value, (int, float)) else ranges[-1] if ranges else ANY
    return ranges[0].union(filled) if ranges else ANY


def written(site: Site, ranges: list[Range]) -> Range:
    """``fill_diagonal_`` and its like: what was there, or the number that is written over it."""
    value = site.attrs.get("fill_value", site.attrs.get("value"))
    known = isinstance(value, (int, float)) and len(site.inputs) == 1
    return ranges[0].union(point(float(value))) if known and ranges else ANY


def scattered(site: Site, ranges: list[Range]) -> Range:
    """What was there, or what is written over some of it."""
    if not site.inputs or site.attrs.get("reduce"):
        return ANY
    value = site.attrs.get("src", site.attrs.get("value"))
    if isinstance(value, (int, float)) and len(site.inputs) == 2:
        return ranges[0].union(point(float(value))) if ranges else ANY
    return ranges[0].union(ranges[-1]) if len(site.inputs) == len(ranges) == 3 else ANY


def full(site: Site, ranges: list[Range]) -> Range:
    """The number that fills it."""
    value = site.attrs.get("fill_value")
    return point(float(value)) if isinstance(value, (int, float)) else ANY


def padded(site: Site, ranges: list[Range]) -> Range:
    """What was there, or the number of the padding."""
    value = site.attrs.get("value") or site.attrs.get("padding_value") or 0.0
    return ranges[0].union(point(float(value))) if ranges and isinstance(value, (int, float)) else ANY


def windowed(site: Site, ranges: list[Range]) -> Range:
    """Windows, which hold zeros where they stand over the edge."""
    return ranges[0].union(point(0.0)) if ranges and site.attrs.get("padding") else ranges[0] if ranges else ANY


def pooled(site: Site, ranges: list[Range]) -> Range:
    """Largest numbers of windows, or those put back where they were, with zeros beside them."""
    if not ranges:
        return ANY
    return ranges[0].union(point(0.0)) if "unpool" in str(site.attrs.get("called", "")).lower() else ranges[0]


def added_at(site: Site, ranges: list[Range]) -> Range:
    """What is there, and any number of terms on top of it: those of ``x.index_add(dim, index, source)``."""
    if len(ranges) < 2 or factor_of_second(site) < 0:
        return ANY
    base, term = ranges[0], ranges[-1]
    return Range(base.low if term.low >= 0 else -math.inf, base.high if term.high <= 0 else math.inf)

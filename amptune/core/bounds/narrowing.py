"""What is left of a range of numbers that are cast on the way: whole numbers, yes and no, fewer digits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.bounds.intervals import ANY, UNIT, Range, point
from amptune.core.formats import Format

PLACES = "places"
"""Stands for the indices that an op gives beside numbers."""
_LIMITS = {
    "uint8": Range(0.0, 255.0), "int8": Range(-128.0, 127.0), "int16": Range(-32768.0, 32767.0),
    "int32": Range(-(2.0**31), 2.0**31 - 1),
}  # fmt: skip
_FLOATING = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
NARROW = frozenset({"bool", "int64", PLACES, *_LIMITS, *_FLOATING})
"""Dtypes that a cast on the way may change numbers by."""


def keeps_numbers(passed: Iterable[str]) -> bool:
    """Whether casts on the way leave numbers what they are, but for digits."""
    return all(dtype in _FLOATING for dtype in passed)


def narrowed(found: Range, passed: Iterable[str]) -> Range:
    """A range after casts to the named dtypes, one after the other."""
    for dtype in passed:
        found = _cast(found, dtype)
    return found


def of_integers(found: Range, dtype: str) -> Range:
    """What integers of a dtype can be that would have a range: beyond its limits they start at the other end. What
    nothing bounds is taken to stay within 32 bits."""
    limits = _LIMITS.get(dtype)
    if limits is not None and dtype == "int32":
        found = Range(*(limit if math.isinf(end) else end for end, limit in
                        ((found.low, limits.low), (found.high, limits.high))))  # fmt: skip
    return limits if limits is not None and not (limits.low <= found.low and found.high <= limits.high) else found


def _cast(found: Range, dtype: str) -> Range:
    if dtype in _FLOATING:
        return found.rounded(Format.parse(dtype)) if found.is_known else found
    if dtype == "bool":
        return UNIT if found.holds(0.0) and found != point(0.0) else point(float(found != point(0.0)))
    if dtype == PLACES:
        return found
    whole = Range(*(float(math.trunc(end)) if abs(end) < _EXACT else end for end in (found.low, found.high)))
    return of_integers(whole if whole.is_known else ANY, dtype)


_EXACT = 1e15

"""Ranges of values and their arithmetic. Ends may be infinite: an infinite end says that nothing is known there."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

from amptune.core.formats import Format


@dataclasses.dataclass(frozen=True)
class Range:
    """All values lie in [low, high]; an end that is infinite says nothing about finiteness."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def is_known(self) -> bool:
        """Whether anything at all is known."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def magnitude(self) -> float:
        """Largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @property
    def least(self) -> float:
        """Smallest absolute value."""
        return 0.0 if self.holds(0.0) else min(abs(self.low), abs(self.high))

    def holds(self, value: float) -> bool:
        """Whether ``value`` is possible."""
        return self.low <= value <= self.high

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def within(self, other: Range) -> Range:
        """What both allow; ``other`` where they contradict each other, as after rounding."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Range(low, high) if low <= high else other

    def rounded(self, number_format: Format) -> Range:
        """Both ends rounded to a format."""
        return Range(_end(number_format, self.low), _end(number_format, self.high))

    def __neg__(self) -> Range:
        return Range(-self.high, -self.low)

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


def _end(number_format: Format, value: float) -> float:
    """A rounded end; what overflows is infinite, also in formats whose overflow is NaN."""
    result = number_format.round(value)
    return math.copysign(math.inf, value) if math.isnan(result) else result


ANY = Range()
UNIT = Range(0.0, 1.0)
_EXP_LIMIT = 709.0
_LARGEST = Format.FP32.max
_FINITE = sys.float_info.max


def symmetric(magnitude: float) -> Range:
    """[-magnitude, magnitude]."""
    return Range(-magnitude, magnitude)


def point(value: float) -> Range:
    """One number."""
    return Range(value, value)


def exp(value: float) -> float:
    """exp that becomes infinite instead of raising."""
    return math.inf if value > _EXP_LIMIT else math.exp(value)


def log(value: float) -> float:
    """log that is minus infinity at zero and below."""
    return -math.inf if value <= 0 else math.log(value)


def raised(value: float, exponent: float) -> float:
    """A power that becomes infinite instead of raising."""
    if value == math.inf:
        return math.inf if exponent > 0 else 0.0
    try:
        return float(value**exponent)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def product(a: float, b: float) -> float:
    """a * b, with zero times infinity as zero: a bound that is not reached."""
    return 0.0 if a == 0 or b == 0 else a * b


def square(value: Range) -> Range:
    """The range of the square."""
    ends = sorted((product(value.low, value.low), product(value.high, value.high)))
    return Range(0.0 if value.holds(0.0) else ends[0], ends[1])


def multiply(a: Range, b: Range) -> Range:
    """The range of the product of independent values."""
    ends = [product(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return Range(min(ends), max(ends))


def scaled(value: Range, factor: float) -> Range:
    """Every value times one number."""
    return multiply(value, point(factor))


def inverse(value: Range) -> Range:
    """The range of 1 / x for finite x; unbounded on the sides from which zero can be reached.

    The zero of numbers that are not negative (squares, exponentials, absolute values) is taken to be +0; that of
    numbers that are not positive has either sign: ``x - max(x)`` has +0, ``-abs(x)`` has -0.

    Where x is not bounded, the largest number of FP32 stands in: 1 / x does not become zero.
    """
    low, high = max(value.low, -_LARGEST), min(value.high, _LARGEST)
    if low > 0 or high < 0:  # the end that is nearer to zero is finite, though floats may not have it
        return Range(min(1 / high, _FINITE), max(1 / low, -_FINITE))
    if low == 0:
        return Range(1 / high if high else 0.0, math.inf)
    return ANY


def absolute(value: Range) -> Range:
    """The range of absolute values."""
    low = 0.0 if value.holds(0.0) else min(abs(value.low), abs(value.high))
    return Range(low, value.magnitude)


def add(a: Range, b: Range) -> Range:
    """The range of the sum of independent values."""
    low, high = a.low + b.low, a.high + b.high
    return Range(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def subtract(a: Range, b: Range) -> Range:
    """The range of the difference of independent values."""
    return add(a, -b)


def pairwise(pick: Callable[[float, float], float], a: Range, b: Range) -> Range:
    """The range of an elementwise maximum or minimum."""
    return Range(pick(a.low, b.low), pick(a.high, b.high))


def power(base: Range, exponent: float | None) -> Range:
    """The range of base ** exponent; ``None`` for an exponent that is not known."""
    if exponent is None:
        return Range(0.0, math.inf) if base.low >= 0 else ANY
    if exponent == 0:
        return point(1.0)
    if exponent == 2:
        return square(base)
    if exponent == int(exponent) and int(exponent) % 2 == 0 and exponent > 0:
        size = absolute(base)
        return Range(raised(size.low, exponent), raised(size.high, exponent))
    if base.low >= 0 and exponent >= 0:
        return Range(raised(base.low, exponent), raised(base.high, exponent))
    if base.low >= 0:
        return inverse(Range(raised(base.low, -exponent), raised(base.high, -exponent)))
    if exponent == int(exponent) and exponent > 0:
        return Range(-raised(-base.low, exponent) if base.low > -math.inf else -math.inf, _odd(base.high, exponent))
    if exponent == int(exponent) and int(exponent) % 2 == 0:
        return inverse(power(base, -exponent))
    return ANY


def _odd(value: float, exponent: float) -> float:
    return math.copysign(raised(abs(value), exponent), value)

"""Interval arithmetic: a range of values, and how each op of the op table maps ranges to a range."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from amptune.core.formats import Format
from amptune.core.graph import Site


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

    def holds(self, value: float) -> bool:
        """Whether ``value`` is possible."""
        return self.low <= value <= self.high

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def rounded(self, number_format: Format) -> Range:
        """Both ends rounded to a format."""
        return Range(_end(number_format, self.low), _end(number_format, self.high))


def _end(number_format: Format, value: float) -> float:
    """A rounded end; what overflows is infinite, also in formats whose overflow is NaN."""
    result = number_format.round(value)
    return math.copysign(math.inf, value) if math.isnan(result) else result


ANY = Range()
UNIT = Range(0.0, 1.0)
_EXP_LIMIT = 709.0


RangeRule = Callable[[Site, list[Range]], Range]
"""Bounds of an op's result from the op's arguments and the bounds of its positional operands."""


def _fixed(low: float, high: float) -> RangeRule:
    return lambda site, ranges: Range(low, high)


def _monotone(function: Callable[[float], float]) -> RangeRule:
    return lambda site, ranges: Range(function(ranges[0].low), function(ranges[0].high)) if ranges else ANY


def _dipping(lowest: float) -> RangeRule:
    """Activations that lie between 0 and x for positive x and between ``lowest`` and 0 for negative x."""
    return lambda site, ranges: Range(lowest if ranges[0].low < 0 else 0.0, max(ranges[0].high, 0.0)) if ranges else ANY


def _exp(value: float) -> float:
    return math.inf if value > _EXP_LIMIT else math.exp(value)


def _log(value: float) -> float:
    return -math.inf if value <= 0 else math.log(value)


def square(value: Range) -> Range:
    """The range of the square."""
    ends = sorted((_product(value.low, value.low), _product(value.high, value.high)))
    return Range(0.0 if value.holds(0.0) else ends[0], ends[1])


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _multiply(a: Range, b: Range) -> Range:
    ends = [_product(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return Range(min(ends), max(ends))


def _inverse(value: Range) -> Range:
    if value.low > 0 or value.high < 0:
        return Range(1 / value.high, 1 / value.low)
    if value.low == 0:
        return Range(1 / value.high if value.high else 0.0, math.inf)
    return ANY


def _absolute(value: Range) -> Range:
    low = 0.0 if value.holds(0.0) else min(abs(value.low), abs(value.high))
    return Range(low, value.magnitude)


def _add(site: Site, ranges: list[Range]) -> Range:
    if len(ranges) < 2:
        return ANY
    alpha = float(site.attrs.get("alpha") or 1)
    other = _multiply(ranges[1], Range(alpha, alpha))
    low, high = ranges[0].low + other.low, ranges[0].high + other.high
    return Range(-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


def _sub(site: Site, ranges: list[Range]) -> Range:
    if len(ranges) < 2:
        return ANY
    return _add(site, [ranges[0], Range(-ranges[1].high, -ranges[1].low)])


def _power(site: Site, ranges: list[Range]) -> Range:
    exponent = exponent_of(site)
    base = ranges[0] if ranges else ANY
    if exponent is None:
        return Range(0.0, math.inf) if base.low >= 0 else ANY
    if exponent == 2:
        return square(base)
    if exponent == int(exponent) and int(exponent) % 2 == 0 and exponent > 0:
        return Range(0.0, _raised(base.magnitude, exponent))
    if base.low >= 0 and exponent > 0:
        return Range(_raised(base.low, exponent), _raised(base.high, exponent))
    if base.low >= 0:
        return _inverse(Range(_raised(base.low, -exponent), _raised(base.high, -exponent)))
    return ANY


def _raised(value: float, exponent: float) -> float:
    try:
        return float(value**exponent)
    except OverflowError:
        return math.inf


def exponent_of(site: Site) -> float | None:
    """The literal exponent of a pow site; ``None`` when it is a tensor."""
    value = site.attrs.get("exponent", (site.attrs.get("scalars") or {}).get(1))
    return float(value) if isinstance(value, (int, float)) else None


def _clamp(site: Site, ranges: list[Range]) -> Range:
    scalars = site.attrs.get("scalars") or {}
    low, high = site.attrs.get("min"), site.attrs.get("max")
    if low is None and high is None:
        low, high = scalars.get(1), scalars.get(2)
    base = ranges[0] if ranges else ANY
    floor = float(low) if isinstance(low, (int, float)) else -math.inf
    ceiling = float(high) if isinstance(high, (int, float)) else math.inf
    return Range(min(max(base.low, floor), ceiling), max(min(base.high, ceiling), floor))


def _sum(site: Site, ranges: list[Range]) -> Range:
    if not ranges or not site.outputs or not site.outputs[0].numel:
        return ANY
    count = site.inputs[0].numel // site.outputs[0].numel
    return Range(_product(ranges[0].low, count), _product(ranges[0].high, count))


def _mean(site: Site, ranges: list[Range]) -> Range:
    return ranges[0] if ranges else ANY


def _where(site: Site, ranges: list[Range]) -> Range:
    return ranges[1].union(ranges[2]) if len(ranges) >= 3 else ANY


def _masked_fill(site: Site, ranges: list[Range]) -> Range:
    value = site.attrs.get("value")
    filled = Range(float(value), float(value)) if isinstance(value, (int, float)) else ranges[-1] if ranges else ANY
    return ranges[0].union(filled) if ranges else ANY


def _dropout(site: Site, ranges: list[Range]) -> Range:
    if not ranges:
        return ANY
    keep = 1.0 - float(site.attrs.get("p") or 0.0)
    return _multiply(ranges[0], Range(0.0, 1.0 / keep if keep > 0 else 1.0)).union(ranges[0])


def _full(site: Site, ranges: list[Range]) -> Range:
    value = site.attrs.get("fill_value")
    return Range(float(value), float(value)) if isinstance(value, (int, float)) else ANY


def _rows(names: str, rule: RangeRule) -> dict[str, RangeRule]:
    return dict.fromkeys(names.split(), rule)


_NOT_NEGATIVE = _fixed(0.0, math.inf)
_NOT_POSITIVE = _fixed(-math.inf, 0.0)
RULES: dict[str, RangeRule] = {
    **_rows(
        "softmax sigmoid hardsigmoid rand one_hot bernoulli eye gumbel_softmax softmin rand_like", _fixed(0.0, 1.0)
    ),
    **_rows("eq ne lt le gt ge logical_and logical_or logical_not isnan isinf any all", _fixed(0.0, 1.0)),
    **_rows("tanh sin cos softsign sign", _fixed(-1.0, 1.0)),
    **_rows(
        "norm linalg_vector_norm linalg_matrix_norm var std cdist pdist dist softplus count_nonzero", _NOT_NEGATIVE
    ),
    **_rows("mse_loss l1_loss smooth_l1_loss huber_loss cross_entropy binary_cross_entropy_with_logits", _NOT_NEGATIVE),
    **_rows("log_softmax logsigmoid", _NOT_POSITIVE),
    **_rows("amax amin max min mean median", _mean),
    **_rows("zeros zeros_like new_zeros", _fixed(0.0, 0.0)),
    **_rows("ones ones_like new_ones", _fixed(1.0, 1.0)),
    **_rows("full full_like new_full", _full),
    "relu": _monotone(lambda x: max(x, 0.0)),
    "relu6": _monotone(lambda x: min(max(x, 0.0), 6.0)),
    "gelu": _dipping(-0.17),
    "silu": _dipping(-0.2785),
    "elu": _dipping(-1.0),
    "exp": _monotone(_exp),
    "exp2": _monotone(lambda x: _exp(x * math.log(2.0))),
    "expm1": _monotone(lambda x: _exp(x) - 1.0),
    "log": _monotone(_log),
    "log2": _monotone(lambda x: _log(x) / math.log(2.0)),
    "log10": _monotone(lambda x: _log(x) / math.log(10.0)),
    "log1p": _monotone(lambda x: _log(1.0 + x)),
    "sqrt": _monotone(lambda x: math.sqrt(max(x, 0.0))),
    "atan": _fixed(-math.pi / 2, math.pi / 2),
    "neg": lambda site, ranges: Range(-ranges[0].high, -ranges[0].low) if ranges else ANY,
    "abs": lambda site, ranges: _absolute(ranges[0]) if ranges else ANY,
    "square": lambda site, ranges: square(ranges[0]) if ranges else ANY,
    "reciprocal": lambda site, ranges: _inverse(ranges[0]) if ranges else ANY,
    "rsqrt": lambda site, ranges: _inverse(RULES["sqrt"](site, ranges)) if ranges else ANY,
    "mul": lambda site, ranges: _multiply(ranges[0], ranges[1]) if len(ranges) > 1 else ANY,
    "div": lambda site, ranges: _multiply(ranges[0], _inverse(ranges[1])) if len(ranges) > 1 else ANY,
    "maximum": lambda site, ranges: _pairwise(max, ranges),
    "minimum": lambda site, ranges: _pairwise(min, ranges),
    "add": _add,
    "sub": _sub,
    "pow": _power,
    "clamp": _clamp,
    "hardtanh": lambda site, ranges: Range(
        float(site.attrs.get("min_val", -1.0)), float(site.attrs.get("max_val", 1.0))
    ),
    "sum": _sum,
    "where": _where,
    "masked_fill": _masked_fill,
    "dropout": _dropout,
}


def _pairwise(pick: Callable[[float, float], float], ranges: list[Range]) -> Range:
    if len(ranges) < 2:
        return ANY
    return Range(pick(ranges[0].low, ranges[1].low), pick(ranges[0].high, ranges[1].high))

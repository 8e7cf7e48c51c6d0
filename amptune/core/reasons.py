"""Why an op is kept out of 16 bits at a site: what is said of its kind, as far as the bounds of its input leave it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.arguments import exponent_of, reduced_count
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.ops import op_named

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_HIGHEST = {"exp": 11.09, "expm1": 11.09, "exp2": 15.99, "softplus": 11.09, "cosh": 11.78, "sinh": 11.78,
            "i0": 13.2}  # fmt: skip
"""Inputs up to which the result is within FP16."""
_ROUNDED = "rounding its input is a relative error in bf16"
_SQUARES = frozenset(
    {"square", "norm", "linalg_vector_norm", "var", "std", "var_mean", "std_mean", "cdist", "dist", "pdist", "renorm"}
)
_ROOT_OF_MAX = Format.FP16.max**0.5
_LOWEST = {"log": 6e-8, "log2": 6e-8, "log10": 6e-8, "rsqrt": 6e-8, "sqrt": 6e-8, "reciprocal": 1.6e-5}
"""Inputs from which nothing is lost to zero and nothing is infinite."""
_INSIDE = frozenset({"acos", "asin", "atanh", "erfinv"})
_LAST_INSIDE = 1 - Format.BF16.epsilon
_LONG = frozenset({"sum", "mean", "cumsum", "logcumsumexp"})
_LONG_COUNT = 256
"""Terms from which a BF16 sum of equal ones stops growing."""
_POWERS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


def why_sensitive(ranges: Ranges, site: Site) -> str:
    """What goes wrong at a site in 16 bits, in words; empty where its op is harmless, or its input rules that out."""
    op = site.op
    if op == "pow":
        exponent = exponent_of(site)
        if exponent is None:
            return "a power with an exponent that is no number may leave fp16's range" if site.inputs else ""
        if exponent not in _POWERS:
            return _of_power(ranges, site, exponent)
        op = _POWERS[exponent]
    why, found = op_named(op).why_sensitive, ranges.operand(site, 0)
    if (
        op in _HIGHEST
        and found.high <= _HIGHEST[op]
        and (op not in ("cosh", "sinh", "i0") or found.low >= -_HIGHEST[op])
    ):
        return _ROUNDED if op == "exp" else ""
    if op in _SQUARES and found.magnitude <= _ROOT_OF_MAX:
        return ""
    if found.low >= _LOWEST.get(op, float("inf")) or (op in _INSIDE and found.magnitude <= _LAST_INSIDE):
        return ""
    return "" if op in _LONG and 0 < reduced_count(site) < _LONG_COUNT and not op.startswith(("cum", "log")) else why


def _of_power(ranges: Ranges, site: Site, exponent: float) -> str:
    if exponent == 1 or exponent == 0:
        return ""
    if 0 < exponent < 1:
        return "its gradient at zero is infinite"
    limit = Format.FP16.max ** (1 / exponent)
    if exponent < 0:
        return "" if ranges.operand(site, 0).low >= limit else f"overflows in fp16 for |x| < {limit:.2g}"
    return "" if ranges.operand(site, 0).magnitude <= limit else f"overflows in fp16 from |x| > {limit:.4g}"

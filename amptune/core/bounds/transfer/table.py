"""How each op of the op table maps the ranges of its operands to the range of its result."""

from __future__ import annotations

import math

from amptune.core.arguments import exponent_of, factor_of_second, limits_of
from amptune.core.bounds.intervals import (
    ANY,
    Range,
    absolute,
    add,
    exp,
    inverse,
    log,
    multiply,
    pairwise,
    point,
    power,
    product,
    raised,
    scaled,
    square,
    subtract,
    symmetric,
)
from amptune.core.bounds.transfer.activations import (
    celu,
    elu,
    hardtanh,
    leaky_relu,
    prelu,
    sigmoid,
    softplus,
    threshold,
    wave,
)
from amptune.core.bounds.transfer.filled import (
    added_at,
    chosen,
    filled_by_mask,
    full,
    padded,
    pooled,
    scattered,
    windowed,
    written,
)
from amptune.core.bounds.transfer.forms import (
    RangeRule,
    both,
    dipping,
    extreme,
    first,
    fixed,
    integral,
    monotone,
    rounded,
    whole,
)
from amptune.core.bounds.transfer.places import in_order, on_diagonal, places
from amptune.core.bounds.transfer.reductions import (
    layer_norm,
    logsumexp,
    multiplied,
    norm,
    normalized,
    spread,
    summed,
    summed_so_far,
)
from amptune.core.bounds.transfer.sampling import averaged, resized, sampled, spectrum, steps, summed_powers
from amptune.core.graph import Site


def _add(site: Site, ranges: list[Range]) -> Range:
    return add(ranges[0], scaled(ranges[1], factor_of_second(site))) if len(ranges) > 1 else ANY


def _sub(site: Site, ranges: list[Range]) -> Range:
    return subtract(ranges[0], scaled(ranges[1], factor_of_second(site))) if len(ranges) > 1 else ANY


def _div(site: Site, ranges: list[Range]) -> Range:
    if len(ranges) < 2:
        return ANY
    found = multiply(ranges[0], inverse(ranges[1]))
    match site.attrs.get("rounding_mode"):
        case None:
            return found
        case "floor":
            return whole(math.floor, found)
        case "trunc":
            return whole(math.trunc, found)
    return ANY


def _power(site: Site, ranges: list[Range]) -> Range:
    if (site.attrs.get("scalars") or {}).get(0) is not None and len(ranges) > 1:
        base = float(site.attrs["scalars"][0])  # 2 ** x
        return Range(exp(log(base) * ranges[1].low), exp(log(base) * ranges[1].high)) if base > 1 else ANY
    exponent = exponent_of(site)
    if exponent is None and len(ranges) > 1 and ranges[0].low > 0 and ranges[1].low > 0:
        return _raised(ranges[0], ranges[1])
    return power(ranges[0] if ranges else ANY, exponent)


def _raised(base: Range, exponent: Range) -> Range:
    """Of numbers above zero, with positive exponents that are tensors: the extremes are at the corners."""
    low = raised(base.low, exponent.high if base.low < 1 else exponent.low) if math.isfinite(exponent.high) else 0.0
    high = raised(base.high, exponent.high if base.high > 1 else exponent.low)
    return Range(low, high)


def _clamp(site: Site, ranges: list[Range]) -> Range:
    base = ranges[0] if ranges else ANY
    floor, ceiling = limits_of(site)
    if len(ranges) > 1 and len(site.inputs) > 1:
        return ANY  # clamped between tensors
    return Range(min(max(base.low, floor), ceiling), max(min(base.high, ceiling), floor))


def _mean(site: Site, ranges: list[Range]) -> Range:
    return ranges[0] if ranges else ANY


def _entropy_loss(site: Site, ranges: list[Range]) -> Range:
    """Not negative for classes and for shares; targets that nothing is known of are taken for these."""
    place = min(1, len(site.inputs) - 1)
    targets = ranges[place] if place < len(ranges) and site.inputs[place].is_floating else ANY
    highest = 1.0 if site.op == "binary_cross_entropy_with_logits" else math.inf
    strange = -math.inf < targets.low < 0 or highest < targets.high < math.inf
    return ANY if strange else Range(0.0)


def _dropout(site: Site, ranges: list[Range]) -> Range:
    if not ranges:
        return ANY
    keep = 1.0 - float(site.attrs.get("p") or 0.0)
    return multiply(ranges[0], Range(0.0, 1.0 / keep if keep > 0 else 1.0)).union(ranges[0])


_MULTIVARIATE = ("mvlgamma", "multigammaln")


def _lgamma(site: Site, ranges: list[Range]) -> Range:
    """Of what is above zero: it falls to -0.1215 at 1.4616, and rises from there. A multivariate one is another sum."""
    if not ranges or ranges[0].low <= 0 or str(site.attrs.get("called", "")).strip("_") in _MULTIVARIATE:
        return ANY
    value = ranges[0]
    ends = [math.lgamma(end) if end < 1e300 else math.inf for end in (value.low, value.high)]
    lowest = -0.1215 if value.low < 1.4617 and value.high > 1.4616 else min(ends)
    return Range(lowest, max(ends))


def _lerp(site: Site, ranges: list[Range]) -> Range:
    weight = site.attrs.get("weight", (site.attrs.get("scalars") or {}).get(2))
    is_number = isinstance(weight, (int, float)) and 0 <= weight <= 1
    if is_number and len(ranges) > 1 and ranges[0].is_known and ranges[1].is_known:
        return add(scaled(ranges[0], 1 - weight), scaled(ranges[1], weight))
    inside = is_number or (len(ranges) > 2 and _is_unit(ranges[2]))
    return ranges[0].union(ranges[1]) if len(ranges) > 1 and inside else ANY


def _is_unit(value: Range) -> bool:
    return value.low >= 0 and value.high <= 1


def _random(site: Site, ranges: list[Range]) -> Range:
    return uniform(site.outputs[0].dtype if site.outputs else "float32")


NORMAL = symmetric(10.0)
"""Normal random numbers: torch makes them of uniform ones of at most 53 binary digits, so that none is over
sqrt(2 * 54 * log 2) = 8.7."""
_UNIFORM_DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def uniform(dtype: str) -> Range:
    """Random numbers in [0, 1): torch draws as many binary digits as the format has, so 1 - x is never zero."""
    return Range(0.0, 1.0 - 2.0 ** -_UNIFORM_DIGITS.get(dtype, 24))


def _attention(site: Site, ranges: list[Range]) -> Range:
    """A weighted mean of the values, scaled up by dropout."""
    if len(ranges) < 3:
        return ANY
    keep = 1.0 - float(site.attrs.get("dropout_p") or 0.0)
    return scaled(ranges[2].union(point(0.0)), 1 / keep if keep > 0 else 1.0)


def _recurrent(site: Site, ranges: list[Range]) -> Range:
    """A state that each step mixes with a tanh: it stays within 1, or within its first value."""
    if site.attrs.get("nonlinearity") == "relu":
        return ANY
    return symmetric(1.0).union(ranges[1]) if len(ranges) > 1 else symmetric(1.0)


def _arange(site: Site, ranges: list[Range]) -> Range:
    count = site.outputs[0].numel if site.outputs else 0
    return Range(0.0, float(max(count - 1, 0))) if "start" not in site.attrs and count else ANY


def _rows(names: str, rule: RangeRule) -> dict[str, RangeRule]:
    return dict.fromkeys(names.split(), rule)


_NOT_NEGATIVE = fixed(0.0, math.inf)
_NOT_POSITIVE = fixed(-math.inf, 0.0)
RULES: dict[str, RangeRule] = {
    **_rows("softmax hardsigmoid one_hot bernoulli eye gumbel_softmax softmin", fixed(0.0, 1.0)),
    **_rows("eq ne lt le gt ge logical_and logical_or logical_not isnan isinf any all", fixed(0.0, 1.0)),
    "sigmoid": sigmoid,
    **_rows("tanh softsign sign", fixed(-1.0, 1.0)),
    "cosine_similarity": fixed(-1.0, 1.0),
    "normalize": normalized,
    **_rows("gru rnn gru_cell rnn_cell", _recurrent),
    **_rows("cdist pdist dist count_nonzero bincount", _NOT_NEGATIVE),
    **_rows("mse_loss l1_loss smooth_l1_loss huber_loss", _NOT_NEGATIVE),
    **_rows("cross_entropy binary_cross_entropy_with_logits", _entropy_loss),
    **_rows("log_softmax logsigmoid", _NOT_POSITIVE),
    **_rows("amax amin mean median quantile cummax cummin topk", _mean),
    "sort": in_order,
    **_rows("argmax argmin nonzero searchsorted", places),
    "diag": on_diagonal,
    "cross": both(lambda a, b: symmetric(2 * product(a.magnitude, b.magnitude))),
    "diff": steps,
    "window": fixed(0.0, 1.0),
    "max": extreme(max),
    "min": extreme(min),
    "floor": integral(math.floor),
    "ceil": integral(math.ceil),
    "round": rounded,
    **_rows("norm linalg_vector_norm linalg_matrix_norm", norm),
    **_rows("var std", spread),
    **_rows("zeros zeros_like new_zeros", fixed(0.0, 0.0)),
    **_rows("ones ones_like new_ones", fixed(1.0, 1.0)),
    **_rows("full full_like new_full", full),
    **_rows("triu tril pad", padded),
    **_rows("layer_norm rms_norm", layer_norm),
    **_rows("scatter_add index_add", added_at),
    **_rows("rand rand_like", _random),
    **_rows("randn randn_like", lambda site, ranges: NORMAL),
    "arange": _arange,
    "relu": monotone(lambda x: max(x, 0.0)),
    "relu6": monotone(lambda x: min(max(x, 0.0), 6.0)),
    "gelu": dipping(-0.17),
    "silu": dipping(-0.2785),
    "mish": dipping(-0.309),
    "hardswish": dipping(-0.375),
    "elu": elu,
    "celu": celu,
    "prelu": prelu,
    "threshold": threshold,
    "selu": lambda site, ranges: (
        Range(-1.7581 if ranges[0].low < 0 else 0.0, max(ranges[0].high, 0.0) * 1.0508) if ranges else ANY
    ),
    "leaky_relu": leaky_relu,
    "exp": monotone(exp),
    "exp2": monotone(lambda x: exp(x * math.log(2.0))),
    "expm1": monotone(lambda x: exp(x) - 1.0),
    "log": monotone(log),
    "log2": monotone(lambda x: log(x) / math.log(2.0)),
    "log10": monotone(lambda x: log(x) / math.log(10.0)),
    "log1p": monotone(lambda x: log(1.0 + x)),
    "sqrt": monotone(lambda x: math.sqrt(max(x, 0.0))),
    "softplus": softplus,
    "logsumexp": logsumexp,
    "lgamma": _lgamma,
    "erf": lambda site, ranges: Range(0.0, 2.0) if site.attrs.get("called") == "erfc" else Range(-1.0, 1.0),
    "sin": wave(math.sin, math.pi / 2),
    "cos": wave(math.cos, 0.0),
    "atan": fixed(-math.pi / 2, math.pi / 2),
    "atan2": fixed(-math.pi, math.pi),
    "acos": fixed(0.0, math.pi),
    "asin": fixed(-math.pi / 2, math.pi / 2),
    **_rows("cosh i0", fixed(1.0, math.inf)),
    "acosh": _NOT_NEGATIVE,
    "neg": first(lambda value: -value),
    "abs": first(absolute),
    "square": first(square),
    "reciprocal": first(inverse),
    "rsqrt": lambda site, ranges: inverse(RULES["sqrt"](site, ranges)) if ranges else ANY,
    "mul": both(multiply),
    "div": _div,
    "maximum": both(lambda a, b: pairwise(max, a, b)),
    "minimum": both(lambda a, b: pairwise(min, a, b)),
    "add": _add,
    "sub": _sub,
    "pow": _power,
    "clamp": _clamp,
    "hardtanh": hardtanh,
    "lerp": _lerp,
    "sum": summed,
    "cumsum": summed_so_far,
    "prod": multiplied,
    "cumprod": multiplied,
    "where": chosen,
    "masked_fill": filled_by_mask,
    "index_put": written,
    "scatter": scattered,
    **_rows("avg_pool1d avg_pool2d avg_pool3d", averaged),
    **_rows("max_pool1d max_pool2d max_pool3d", pooled),
    "unfold": windowed,
    "lp_pool": summed_powers,
    "grid_sample": sampled,
    "interpolate": resized,
    "stft": spectrum,
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    "flex_attention": _attention,
}

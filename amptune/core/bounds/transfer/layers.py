"""Bounds of the results of layers and matrix products, from bounds of their weights where those are assumed.

For a layer y = W x + b with |x| <= m, |y| <= m * (largest L1 norm of a row of W) + max |b|; where the norms are not
known, the number of terms times the largest weight stands in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from amptune.core.arguments import limits_of
from amptune.core.bounds.intervals import ANY, Range, add, multiply, pairwise, point, product, scaled, symmetric
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


@dataclasses.dataclass(frozen=True)
class Weight:
    """What is known of a parameter.

    Attributes:
        range: bounds of its elements.
        row_sum: largest sum of absolute values over one output of the layer; infinite where it is not known.
        spread: largest channel maximum over the median one, of the rows of a matrix; 0 where it is not known.
    """

    range: Range
    row_sum: float = math.inf
    spread: float = 0.0


LayerRule = Callable[["Ranges", Site], Range | None]
"""Bounds of a site's result, or ``None`` where the plain rule of its op knows better."""


def _weight(ranges: Ranges, site: Site, ending: str) -> Weight | None:
    for param in site.params:
        if param.name.rpartition(".")[2] == ending and (found := ranges.assumed.weights.get(param.name)):
            return found
    return None


def _linear(ranges: Ranges, site: Site) -> Range | None:
    """Linear layers and convolutions: padding adds zeros, which change no bound on the magnitude."""
    if not site.params and len(site.inputs) == 2 and site.op.startswith("conv") and site.gemms:
        # A window: at most as many terms as it has numbers, fewer where it stands over the edge.
        each = multiply(ranges.input(site, 0), ranges.input(site, 1)).union(point(0.0))
        window = (
            _taps(site, site.inputs[1].shape[2:]) if "transpose" in site.op else 1
        )  # else it is part of the product
        return scaled(each, window * max(gemm.k for gemm in site.gemms))
    if not site.params or not site.inputs:
        return None if site.op in _PRODUCTS else ANY
    if site.is_module and not _WEIGHTS.issuperset(param.name.rpartition(".")[2] for param in site.params):
        return ANY  # weight_norm and its like: what the layer multiplies with is none of its parameters
    found = [ranges.assumed.weights.get(param.name) for param in site.params]
    shapes = [param.meta.shape for param in site.params]
    main = next((weight for weight, shape in zip(found, shapes, strict=True) if weight and len(shape) > 1), None)
    size = ranges.input(site, 0).magnitude
    if main is None or any(weight is None for weight in found) or math.isinf(size):
        return ANY
    terms = site.gemms[0].k if site.gemms else math.prod(shapes[0][1:])
    if "transpose" in site.op:
        kernel = next(shape for shape in shapes if len(shape) > 1)[2:]
        row_sum = main.range.magnitude * terms * _taps(site, kernel)
    else:
        row_sum = min(main.row_sum, main.range.magnitude * terms)
    bias = max((weight.range.magnitude for weight, shape in zip(found, shapes, strict=True)
                if weight and len(shape) == 1), default=0.0)  # fmt: skip
    return symmetric(product(size, row_sum) + bias)


_WEIGHTS = frozenset({"weight", "bias"})


def _taps(site: Site, kernel: tuple[int, ...]) -> int:
    """How many numbers of the kernel of a transposed convolution meet at one place of its result, at most."""
    strides, dilations = (_per_axis(site.attrs.get(name), len(kernel)) for name in ("stride", "dilation"))
    return math.prod(
        math.ceil(size / (stride // math.gcd(stride, dilation)))
        for size, stride, dilation in zip(kernel, strides, dilations, strict=True)
    )


def _per_axis(value: object, count: int) -> list[int]:
    """An argument for each axis, be it given for each or for all; 1 where it is not given."""
    given = list(value) if isinstance(value, list | tuple) else [value]
    known = [each for each in (given * count if len(given) == 1 else given) if isinstance(each, int) and each > 0]
    return known if len(known) == count else [1] * count


_PRODUCTS = ("matmul", "bmm", "mm", "mv", "einsum", "dot", "vdot", "linalg_vecdot", "tensordot", "linear")


def _product(ranges: Ranges, site: Site) -> Range | None:
    """A product of two tensors: sums of k products."""
    layout = [place for place in site.attrs.get("operands") or () if place is not None]
    if len(layout) + len(site.params) > 2 or (len(site.inputs) + len(site.params) != 2 and not _is_square(site)):
        return ANY
    if site.op == "einsum" and "," not in str(site.attrs.get("equation", ",")):
        return _rearranged(ranges, site)
    first, second = _operands(ranges, site)
    terms = multiply(first, second)
    count = _terms(site)
    if not count:
        return Range(0.0 if terms.low >= 0 else -math.inf, 0.0 if terms.high <= 0 else math.inf)
    return scaled(terms, count)


def _rearranged(ranges: Ranges, site: Site) -> Range:
    """An einsum of one operand: its numbers in another order, or sums of them."""
    before, _, after = str(site.attrs["equation"]).replace(" ", "").partition("->")
    shape = site.inputs[0].shape if site.inputs else ()
    if not before.isalpha() or len(before) != len(shape):
        return ANY
    summed = {letter: size for letter, size in zip(before, shape, strict=True) if letter not in after}
    return scaled(ranges.input(site, 0), math.prod(summed.values()))


def _is_square(site: Site) -> bool:
    return len(site.inputs) == 1 and not site.params


def _operands(ranges: Ranges, site: Site) -> tuple[Range, Range]:
    layout = [place for place in site.attrs.get("operands") or () if place is not None]
    if len(layout) == 2 and not site.params:
        return ranges.input(site, layout[0]), ranges.input(site, layout[1])
    found = [ranges.input(site, index) for index in range(len(site.inputs))]
    found += [weight.range if (weight := ranges.assumed.weights.get(param.name)) else ANY for param in site.params]
    return (found[0], found[-1])


def _summed(site: Site) -> int | None:
    """How many products each number of an einsum of two tensors adds up; ``None`` where the equation does not say."""
    before, arrow, after = str(site.attrs.get("equation", "")).replace(" ", "").partition("->")
    sides = before.split(",")
    shapes = [tensor.shape for tensor in site.inputs] + [param.meta.shape for param in site.params]
    if site.attrs.get("operands") and not site.params:
        shapes = [site.inputs[place].shape for place in site.attrs["operands"] if place is not None]
    if len(sides) != 2 or len(shapes) != 2 or site.params:
        return None
    sizes: dict[str, int] = {}
    for letters, shape in zip(sides, shapes, strict=True):
        first, dots, last = letters.partition("...")
        named = [*zip(first, shape, strict=False), *zip(last[::-1], shape[::-1], strict=False)]
        if len(first) + len(last) > len(shape) or (not dots and len(first) != len(shape)):
            return None
        for letter, size in named:
            sizes[letter] = max(sizes.get(letter, 1), size)
    if not arrow:
        after = "".join(letter for letter in sizes if before.count(letter) == 1)
    return math.prod(size for letter, size in sizes.items() if letter not in after)


def _terms(site: Site) -> int:
    if site.op == "einsum" and (count := _summed(site)) is not None:
        return count
    if site.gemms:
        return max(gemm.k for gemm in site.gemms)
    shape = site.inputs[0].shape if site.inputs else ()
    dim = site.attrs.get("dim", -1) if site.op == "linalg_vecdot" else -1
    return shape[dim] if shape and site.op != "einsum" and isinstance(dim, int) else 0


def _sum_with(ranges: Ranges, site: Site) -> Range | None:
    """addmm and its kin: beta * input + alpha * a @ b."""
    places = list(site.attrs.get("operands") or range(len(site.inputs)))
    if site.params or len(places) != 3 or None in places:
        return ANY
    beta, alpha = (site.attrs.get(name, 1) for name in ("beta", "alpha"))
    if not isinstance(beta, int | float) or not isinstance(alpha, int | float):
        return ANY
    added, first, second = (ranges.input(site, place) for place in places)
    return add(scaled(added, beta), scaled(multiply(first, second), max(_terms(site), 1) * alpha))


def _embedding(ranges: Ranges, site: Site) -> Range | None:
    weight = ranges.assumed.weights.get(site.params[0].name) if site.params else None
    return weight.range if weight and site.op == "embedding" else ANY


def _norm(ranges: Ranges, site: Site) -> Range | None:
    """Layer, RMS, group and batch norms in training: of n numbers with deviation 1 none is over the root of n. With
    stored statistics, or a weight that was computed, nothing is known."""
    if site.attrs.get("fixed_statistics") or any(not _is_statistic(source) for source in ranges.sources(site)[1:]):
        return ANY
    if site.op in ("layer_norm", "rms_norm") and not site.params:
        return None
    count = _normalised(site)
    weight, bias = _weight(ranges, site, "weight"), _weight(ranges, site, "bias")
    known = {param.name.rpartition(".")[2] for param in site.params}
    if not count or ("weight" in known and weight is None) or ("bias" in known and bias is None):
        return ANY
    if known - {"weight", "bias"}:
        return ANY
    unit = symmetric(math.sqrt(count))
    stretched = multiply(unit, weight.range) if weight else unit
    return add(stretched, bias.range) if bias else stretched


def _is_statistic(source: str) -> bool:
    """Whether an input is a buffer that a norm keeps its running statistics in."""
    return source.endswith(("running_mean", "running_var"))


def _normalised(site: Site) -> int:
    shape = site.inputs[0].shape if site.inputs else ()
    if site.op in ("layer_norm", "rms_norm"):
        own = site.attrs.get("normalized_shape") or shape[-1:]
        return math.prod(own) if isinstance(own, list | tuple) else int(own)
    if len(shape) < 2:
        return 0
    total = math.prod(shape)
    if site.op == "group_norm":
        groups = site.attrs.get("num_groups")
        return total // (shape[0] * groups) if isinstance(groups, int) and groups else 0
    return total // shape[1] if site.op == "batch_norm" else total // (shape[0] * shape[1])


def _lstm(ranges: Ranges, site: Site) -> Range | None:
    """The cell state grows by at most 1 a step."""
    steps = max((extent for tensor in site.inputs[:1] for extent in tensor.shape[:-1]), default=1)
    states = [ranges.input(site, index).magnitude for index in range(1, len(site.inputs))]
    return symmetric(max([0.0, *states]) + (steps if site.op == "lstm" else 1))


def _attention_block(ranges: Ranges, site: Site) -> Range | None:
    """Multi-head attention: two linears around a weighted mean."""
    names = {param.name.rpartition(".")[2]: param.name for param in site.params}
    inner = ranges.assumed.weights.get(names.get("in_proj_weight", ""))
    outer = next((ranges.assumed.weights.get(param.name) for param in site.params
                  if param.name.endswith("out_proj.weight")), None)  # fmt: skip
    sizes = [ranges.input(site, index).magnitude for index in range(min(3, len(site.inputs)))]
    biases = [weight.range.magnitude for param in site.params if "bias" in param.name
              and (weight := ranges.assumed.weights.get(param.name))]  # fmt: skip
    if inner is None or outer is None or not sizes or math.isinf(max(sizes)):
        return ANY
    bias = max(biases, default=0.0)
    keep = 1.0 - float(site.attrs.get("dropout") or 0.0)
    value = (product(max(sizes), inner.row_sum) + bias) / (keep or 1.0)
    return symmetric(product(value, outer.row_sum) + bias)


def _clamp(ranges: Ranges, site: Site) -> Range | None:
    """Between limits that are tensors, by place or by name."""
    if len(site.inputs) == 1 or not (places := site.attrs.get("operands")):
        return None
    found, named, limits = ranges.operand(site, 0), site.attrs.get("by_name") or {}, limits_of(site)
    for number, name in enumerate(("min", "max")):
        place = places[number + 1] if len(places) > number + 1 else None
        place = named.get(name, place)
        limit = ranges.input(site, place) if place is not None else point(limits[number])
        if place is not None or math.isfinite(limits[number]):
            found = pairwise(max if name == "min" else min, found, limit)
    return found


LAYERS: dict[str, LayerRule] = {
    "clamp": _clamp,
    **dict.fromkeys(
        ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _linear
    ),
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "einsum", "dot", "vdot", "linalg_vecdot", "tensordot"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _sum_with),
    **dict.fromkeys(("embedding", "embedding_bag"), _embedding),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"), _norm),
    **dict.fromkeys(("lstm", "lstm_cell"), _lstm),
    "multi_head_attention": _attention_block,
}

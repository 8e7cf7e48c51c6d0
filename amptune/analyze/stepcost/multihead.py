"""The kernels of nn.MultiheadAttention and what its backward keeps, by torch/nn/functional.py.

- Projections of one tensor are one product, whose parts are then put apart by a copy; their gradients come back one by
  one, each into zeros of the whole, and are added up.
- Between batches and sequences the heads lie across rows, so what attention made is copied before the last product;
  with ``batch_first`` so is every operand, and the gradient on its way back.
- Asked for no weights, as by the layers of nn.Transformer, it calls scaled_dot_product_attention; else it multiplies,
  takes a softmax and multiplies, and the mean over heads is made whether or not anybody reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from amptune.analyze.stepcost.kernels import (
    Attention,
    Move,
    Product,
    Setting,
    Timed,
    format_of,
    move,
    of_one_call,
    output_bytes,
)
from amptune.core.attending import Attending
from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.graph import DTYPE_BYTES, Gemm, Site, TensorMeta
from amptune.core.roofline import Pass, Traffic

FP32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Elements and products of one call; ``parts`` are projections that are made as one."""

    projections: tuple[Gemm, ...]
    parts: int
    scores: Gemm
    mixed: Gemm
    last: Gemm
    operands: int
    queries: int
    keys: int

    @property
    def packed(self) -> int:
        """Elements of the projections that are put apart."""
        if self.parts == 1:
            return 0
        return self.keys * self.parts if self.parts == 2 else self.queries + 2 * self.keys


def _shape(site: Site) -> _Shape | None:
    products = of_one_call(site)
    if len(products) != 6:
        return None
    query, key, value, scores, mixed, last = products
    given = [tensor.numel for tensor in _operands(site)]
    if not given or (len(given) == 1 and query.m != key.m):
        given.append(query.m * query.k)  # a parameter, which is no input of a site, as the queries of a decoder are
    merged: tuple[Gemm, ...] = query, key, value
    parts = 1
    if len(given) == 1:
        merged, parts = (dataclasses.replace(query, n=3 * query.n),), 3
    elif len(given) == 2 and site.attrs.get("kdim") == site.attrs.get("vdim"):
        merged, parts = (query, dataclasses.replace(key, n=2 * key.n)), 2
    operands = sum(given)
    return _Shape(merged, parts, scores, mixed, last, operands, query.m * query.n, key.m * key.n)


def _operands(site: Site) -> list[TensorMeta]:
    """Query, key and value as far as they are several tensors; masks have other widths or ranks."""
    widths = {site.attrs.get(name) for name in ("embed_dim", "kdim", "vdim")}
    rank = len(site.outputs[0].shape)
    return [t for t in site.inputs if t.is_floating and len(t.shape) == rank and t.shape[-1] in widths][:3]


def is_fused(site: Site, dtype: str) -> bool:
    """Whether a call runs a fused kernel: no weights asked for, and heads that the kernel for FP32 loads whole."""
    shape = _shape(site)
    return bool(site.attrs.get("fused")) and shape is not None and (dtype in HALF or shape.scores.k % 4 == 0)


def multi_head_kernels(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """The kernels of one call, each with whether it is the backward's."""
    shape = _shape(site)
    if shape is None:
        return
    number_format = format_of(dtypes.compute, setting.recipe)
    dtype, item = dtypes.compute, DTYPE_BYTES.get(dtypes.compute, FP32_BYTES)
    for gemm in (*shape.projections, shape.last):
        for direction in Pass:
            yield Product(gemm, number_format, direction, setting.fixed), direction is not Pass.FORWARD
        yield move(Traffic.REDUCTION, gemm.m * gemm.n * item, dtype), True
    if copies_operands(site):
        yield move(Traffic.LAYOUT, 2 * shape.operands * item, dtype), False
        yield move(Traffic.UNROLLED, 2 * sum(gemm.m * gemm.n for gemm in shape.projections) * item, dtype), False
        yield move(Traffic.LAYOUT, 2 * shape.queries * item, dtype), True
    if shape.packed:
        yield move(Traffic.LAYOUT, 2 * shape.packed * item, dtype), False
        yield move(Traffic.LAYOUT, 2 * shape.packed * item, dtype), True
        filled, copied, added = shape.parts, 2, 3 * (shape.parts - 1)
        yield move(Traffic.POINTWISE, (filled + copied + added) * shape.packed * item, dtype, 3 * shape.parts - 1), True
    yield move(Traffic.LAYOUT, 2 * shape.queries * item, dtype), False
    if is_fused(site, dtypes.compute):
        yield from _fused(site, dtypes, setting, shape)
    else:
        yield from _by_hand(site, dtypes, setting, shape)


def _fused(site: Site, dtypes: SiteDtypes, setting: Setting, shape: _Shape) -> Timed:
    scores = shape.scores
    causal, masked = bool(site.attrs.get("is_causal")), bool(site.attrs.get("masked"))
    dropout = bool(site.attrs.get("dropout"))
    work = Attending(scores.batch, scores.m, scores.n, scores.k, causal, masked, dropout=dropout)
    number_format = format_of(dtypes.compute, setting.recipe)
    yield Attention(work, number_format, False), False
    yield Attention(work, number_format, True), True
    yield Move(Traffic.POINTWISE, 2 * sum(output_bytes(site, dtypes)[:1])), True  # rows of output x gradient, summed


def _by_hand(site: Site, dtypes: SiteDtypes, setting: Setting, shape: _Shape) -> Timed:
    number_format, dtype = format_of(dtypes.compute, setting.recipe), dtypes.compute
    item = DTYPE_BYTES.get(dtype, FP32_BYTES)
    for gemm in (shape.scores, shape.mixed):
        for direction in Pass:
            yield Product(gemm, number_format, direction, setting.fixed), direction is not Pass.FORWARD
    scores = _scores(shape)
    for behind in (False, True):
        yield move(Traffic.POINTWISE, 2 * shape.queries * item, dtype), behind
        if site.attrs.get("dropout"):
            yield Move(Traffic.POINTWISE, 2.25 * scores * FP32_BYTES), behind
    yield move(Traffic.LAYOUT, 2 * shape.queries * item, dtype), True
    half = dtype in HALF  # the softmax is in FP32, between casts
    yield Move(Traffic.SOFTMAX, scores * (2 * item * half + 2 * FP32_BYTES), 3 if half else 1), False
    yield Move(Traffic.SOFTMAX, scores * (2 * item * half + 3 * FP32_BYTES), 3 if half else 1), True
    yield Move(Traffic.REDUCTION, scores * FP32_BYTES), False


def _scores(shape: _Shape) -> int:
    return shape.scores.batch * shape.scores.m * shape.scores.n


def kept(site: Site, dtypes: SiteDtypes) -> Iterator[tuple[str, int]]:
    """(storage, bytes) of what the backward needs of tensors that are made inside the layer."""
    shape = _shape(site)
    if shape is None:
        return
    item = DTYPE_BYTES.get(dtypes.compute, FP32_BYTES)
    if copies_operands(site):
        yield f"operands:{site.id}", shape.operands * item
    yield f"projections:{site.id}", (shape.queries + 2 * shape.keys) * item
    yield f"mixed:{site.id}", shape.queries * item
    if is_fused(site, dtypes.compute):
        yield f"attended:{site.id}", shape.queries * item
        return
    scores = _scores(shape)
    yield f"scores:{site.id}", scores * FP32_BYTES
    if dtypes.compute in HALF:
        yield f"scores16:{site.id}", scores * item
    if site.attrs.get("dropout"):
        yield f"dropped:{site.id}", scores * (1 + (0 if dtypes.compute in HALF else FP32_BYTES))


def copies_operands(site: Site) -> bool:
    """Whether the operands are copied into the order of sequences first."""
    return bool(site.attrs.get("batch_first")) and len(site.outputs[0].shape) > 2

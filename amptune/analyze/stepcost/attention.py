"""Which kernel torch's scaled_dot_product_attention takes, and the kernels that it runs.

The choice follows aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: in 16 bits the flash kernels of cuDNN and
torch, else the memory-efficient one, else plain products and a softmax (``_scaled_dot_product_attention_math``), which
computes in FP32 also for 16-bit operands and writes the scores.
"""

from __future__ import annotations

import enum

from amptune.analyze.stepcost.kernels import (
    Attention,
    Move,
    Product,
    Setting,
    Timed,
    cast,
    format_of,
    of_one_call,
    output_bytes,
)
from amptune.analyze.stepcost.multihead import multi_head_kernels
from amptune.core.attending import Attending
from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.graph import Site, TensorMeta
from amptune.core.roofline import Pass, Traffic

FP32_BYTES = 4
_ALIGNED = {2: 8, 4: 4}
"""Bytes of an element -> multiple that the memory-efficient kernel wants of the head size."""
MASK = 3
"""Position of the mask among the inputs."""


class Backend(enum.StrEnum):
    """Implementations of attention."""

    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


def backend_of(site: Site, dtype: str) -> Backend:
    """The implementation that runs on a GPU of compute capability 8.0 or later."""
    if len(site.inputs) < 3 or any(len(tensor.shape) != 4 for tensor in site.inputs[:3]) or dtype == "float64":
        return Backend.MATH
    query, key, value = site.inputs[:3]
    half = dtype in HALF
    mask = _mask(site)
    takes_mask = mask is None or not (mask.requires_grad or site.attrs.get("mask_strided") or query.shape[-1] % 8)
    if half and takes_mask and query.shape[-1] <= 256:
        return Backend.FLASH
    grouped = query.shape[1] != key.shape[1]
    multiple = _ALIGNED[2 if half else 4]
    aligned = query.shape[-1] % multiple == 0 and value.shape[-1] % multiple == 0
    return Backend.EFFICIENT if aligned and not grouped and not site.attrs.get("mask_strided") else Backend.MATH


def writes_scores(site: Site, dtype: str) -> bool:
    """Whether a call of scaled_dot_product_attention has its scores in memory."""
    return site.op != "multi_head_attention" and len(of_one_call(site)) > 1 and backend_of(site, dtype) is Backend.MATH


def _mask(site: Site) -> TensorMeta | None:
    return site.inputs[MASK] if site.attrs.get("masked") and len(site.inputs) > MASK else None


def attention_kernels(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """The kernels of one call, each with whether it is the backward's."""
    products = of_one_call(site)
    if site.op == "multi_head_attention":
        yield from multi_head_kernels(site, dtypes, setting)
    elif writes_scores(site, dtypes.compute):
        yield from _math(site, dtypes, setting)
    elif len(products) > 1:
        scores = products[0]
        causal, masked = bool(site.attrs.get("is_causal")), bool(site.attrs.get("masked"))
        efficient = backend_of(site, dtypes.compute) is Backend.EFFICIENT
        dropout = bool(site.attrs.get("dropout_p"))
        work = Attending(scores.batch, scores.m, scores.n, scores.k, causal, masked, efficient, dropout)
        number_format = format_of(dtypes.compute, setting.recipe)
        yield Attention(work, number_format, False), False
        yield Attention(work, number_format, True), True
        yield Move(Traffic.POINTWISE, 2 * sum(output_bytes(site, dtypes))), True  # rows of output x gradient, summed


def score_bytes(site: Site) -> int:
    """Bytes of the scores of one call in FP32."""
    products = of_one_call(site)
    return products[0].batch * products[0].m * products[0].n * FP32_BYTES if products else 0


def _math(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """Casts up, scaled query and key, products in FP32 or TF32, mask, a softmax that looks for empty rows, dropout."""
    scores = score_bytes(site)
    operands = sum(tensor.numel for tensor in site.inputs[:3]) * FP32_BYTES
    if dtypes.compute in HALF:
        yield cast(operands / FP32_BYTES, dtypes.compute, "float32", 3), False
        yield cast(operands / FP32_BYTES, "float32", dtypes.compute, 3), True
    yield Move(Traffic.POINTWISE, 2 * operands * 2 / 3, 2), False
    yield Move(Traffic.POINTWISE, 2 * operands * 2 / 3, 2), True
    number_format = format_of("float32", setting.recipe)
    for gemm in of_one_call(site):
        for direction in Pass:
            yield Product(gemm, number_format, direction, setting.fixed), direction is not Pass.FORWARD
    mask = _mask(site)
    if mask is not None:
        yield Move(Traffic.UNROLLED, 2 * scores), False
        if mask.requires_grad:
            yield Move(Traffic.REDUCTION, scores), True
    yield Move(Traffic.SOFTMAX, 2 * scores), False
    yield Move(Traffic.POINTWISE, 1.25 * scores), False  # which scores are -inf
    yield Move(Traffic.REDUCTION, 0.25 * scores), False
    yield Move(Traffic.UNROLLED, 2 * scores), False
    yield Move(Traffic.UNROLLED, 2 * scores), True
    yield Move(Traffic.SOFTMAX, 3 * scores), True
    if site.attrs.get("dropout_p"):
        yield Move(Traffic.POINTWISE, 2.25 * scores), False
        yield Move(Traffic.POINTWISE, 2.25 * scores), True

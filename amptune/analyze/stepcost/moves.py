"""Bytes that ops other than matrix products move, forward and backward, and what autograd keeps of them.

Counted in units of X (bytes of all inputs as the kernel reads them) and Y (bytes of all outputs), for the kernels that
eager torch runs. An op that is absent has the entry of its family. Assumes training mode (dropout draws a mask, batch
norm takes the batch's statistics).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from amptune.core.ops import Family, op_named
from amptune.core.roofline import Traffic

Saves = Literal["inputs", "output", "both", "mask", "indices", "source", "nothing"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Units of X, units of Y and kernels, forward and backward.

    ``saves``: what autograd keeps, as torch's saved_tensors_hooks shows it; ``source`` is the last operand.
    ``instructions``: of the vector units for each element, where they take longer than the bytes do in 16 bits.
    """

    traffic: Traffic
    forward: tuple[float, float, int]
    backward: tuple[float, float, int]
    saves: Saves = "inputs"
    instructions: tuple[float, float] = (0, 0)


_P = Traffic.POINTWISE
_UNARY = Cost(_P, (1, 1, 1), (2, 1, 1))
_KEEPS_OUTPUT = Cost(_P, (1, 1, 1), (1, 2, 1), "output")
_LINEAR = Cost(_P, (1, 1, 1), (1, 1, 1), "nothing")
_COPY = Cost(Traffic.LAYOUT, (1, 1, 1), (1, 1, 1), "nothing")
_FREE_BACKWARD = Cost(_P, (1, 1, 1), (0, 0, 0), "nothing")
_NORM = Cost(Traffic.NORM, (1, 1, 1), (3, 2, 2))
_FAMILIES: dict[Family, Cost] = {
    Family.POINTWISE: _UNARY,
    Family.SENSITIVE: Cost(_P, (1, 1, 1), (4, 1, 2)),
    Family.NORM: _NORM,
    Family.SOFTMAX: Cost(Traffic.SOFTMAX, (1, 1, 1), (1, 2, 1), "output"),
    Family.REDUCTION: Cost(Traffic.REDUCTION, (1, 1, 1), (3, 1, 2)),
    Family.POOL: Cost(Traffic.POOL, (1, 1, 1), (1, 1, 1)),
    Family.LOSS: Cost(_P, (1.5, 1, 2), (2, 0, 2)),
    Family.MEMORY: _COPY,
    Family.EMBEDDING: Cost(Traffic.GATHER, (0, 2, 1), (0, 3, 12), "nothing"),
    Family.LINALG: Cost(Traffic.GATHER, (4, 4, 4), (6, 6, 6), "both"),
    Family.FFT: Cost(Traffic.LAYOUT, (2, 2, 2), (2, 2, 2), "nothing"),
    Family.OTHER: Cost(_P, (1, 1, 1), (2, 1, 1)),
}


def _rows(names: str, cost: Cost) -> dict[str, Cost]:
    return dict.fromkeys(names.split(), cost)


_OPS: dict[str, Cost] = {
    # The backward of a sum of tensors hands the gradient on; broadcast and cast operands are counted apart.
    **_rows("add sub", _FREE_BACKWARD),
    **_rows("gelu", dataclasses.replace(_UNARY, instructions=(46, 61))),
    **_rows("silu mish softplus elu", dataclasses.replace(_UNARY, instructions=(33, 46))),
    **_rows("neg", _LINEAR),
    **_rows("relu sigmoid tanh exp expm1 exp2", _KEEPS_OUTPUT),
    **_rows("relu6 hardsigmoid", dataclasses.replace(_KEEPS_OUTPUT, saves="inputs")),
    **_rows("softsign", dataclasses.replace(_KEEPS_OUTPUT, saves="both")),  # x, and the 1 + |x| that divides it
    **_rows("tan", Cost(_P, (1, 1, 1), (4, 1, 2), "output")),
    **_rows("hypot copysign", dataclasses.replace(_UNARY, saves="both")),
    **_rows("cross diff lerp remainder fmod", dataclasses.replace(_UNARY, saves="nothing")),
    **_rows("log log2 log10 log1p", _UNARY),
    **_rows("abs", Cost(_P, (1, 1, 1), (3, 2, 2))),
    **_rows("clamp", Cost(_P, (1, 1, 1), (3.5, 2, 4))),  # both limits compared, both masks joined, then chosen by
    **_rows("maximum minimum", Cost(_P, (1, 1, 1), (8, 8, 10))),  # where both are equal each has half
    **_rows("sqrt reciprocal", Cost(_P, (1, 1, 1), (1, 4, 2), "output")),
    **_rows("rsqrt", Cost(_P, (1, 1, 1), (1, 6, 3), "output")),
    **_rows("sin cos", Cost(_P, (1, 1, 1), (4, 1, 2))),
    **_rows("pow square", Cost(_P, (1, 1, 1), (6, 1, 3))),
    **_rows("where", Cost(_P, (1, 1, 1), (1, 1, 2), "mask")),
    **_rows("masked_fill", Cost(_P, (1, 1, 1), (1, 1, 1), "mask")),
    **_rows("triu tril", Cost(_P, (1, 1, 1), (1, 1, 1), "nothing")),
    **_rows("dropout alpha_dropout", Cost(_P, (1, 1.4, 1), (1, 1.4, 1), "mask", (60, 0))),
    **_rows("eq ne lt le gt ge logical_and logical_or logical_not bitwise isnan isinf sign floor ceil round "
            "floor_divide argmax argmin any all count_nonzero", Cost(_P, (1, 1, 1), (0, 0, 0), "nothing")),
    **_rows("view_as_complex", Cost(_P, (0, 0, 0), (0, 0, 0), "nothing")),  # a view, that not every format has
    **_rows("sum", Cost(_P, (1, 1, 1), (0, 0, 0), "nothing")),
    **_rows("mean", Cost(_P, (1, 1, 1), (1, 1, 1), "nothing")),
    **_rows("var std var_mean std_mean", Cost(Traffic.REDUCTION, (1, 1, 1), (5, 1, 3))),
    **_rows("norm linalg_vector_norm", Cost(Traffic.REDUCTION, (1, 1, 1), (4, 1, 3))),
    **_rows("normalize", Cost(Traffic.UNROLLED, (2, 1, 3), (13, 8, 9))),  # torch's own is a norm and a division
    **_rows("cumsum", Cost(Traffic.REDUCTION, (1, 1, 1), (3, 3, 3), "nothing")),  # turned, summed, turned back
    **_rows("max min amax amin", Cost(Traffic.REDUCTION, (1, 1, 1), (2, 1, 2))),
    **_rows("prod cumprod logcumsumexp cdist", Cost(Traffic.REDUCTION, (1, 1, 1), (3, 1, 2), "both")),
    **_rows("topk sort", Cost(Traffic.GATHER, (12, 4, 3), (1, 1, 2), "indices")),
    # Moments, then x a + b; the sums of the gradient, then the same with three tensors.
    "group_norm": Cost(Traffic.NORM, (2, 1, 2), (4, 1, 3)),
    **_rows("batch_norm instance_norm", Cost(Traffic.BATCH_NORM, (2, 1, 2), (3, 2, 2))),
    "logsumexp": Cost(Traffic.SOFTMAX, (4, 1, 4), (3, 1, 3), "both"),
    # log_softmax writes a second tensor of the logits' size; backward fills one with zeros and reads both.
    "cross_entropy": Cost(Traffic.SOFTMAX, (2, 1, 2), (4, 0, 2), "inputs"),
    "nll_loss": Cost(_P, (0.1, 1, 1), (1, 0, 1), "indices"),
    "mse_loss": Cost(_P, (1.5, 1, 2), (1.5, 0, 2)),
    "kl_div": Cost(_P, (5, 1, 4), (2, 0, 2)),
    "binary_cross_entropy_with_logits": Cost(_P, (6, 1, 6), (6, 0, 6)),
    **_rows("max_pool1d max_pool2d max_pool3d", Cost(Traffic.POOL, (1, 3, 1), (3, 9, 1), "indices")),
    **_rows("avg_pool1d avg_pool2d avg_pool3d", Cost(Traffic.POOL, (1, 1, 1), (5, 5, 1))),
    **_rows("pixel_shuffle", Cost(Traffic.POOL, (1, 1, 1), (1, 1, 1), "nothing")),
    **_rows("grid_sample", Cost(Traffic.POOL, (1, 1, 1), (11, 11, 1))),
    **_rows("interpolate upsample", Cost(Traffic.POOL, (1, 1, 1), (1, 1, 1), "nothing")),
    **_rows("cat stack", Cost(Traffic.LAYOUT, (1, 1, 1), (0, 0, 0), "nothing")),
    # The gradient of gather is added in place by atomics, that of an index is sorted first.
    **_rows("gather take_along_dim", Cost(Traffic.UNROLLED, (0, 4, 1), (1, 4, 2))),
    **_rows("masked_select scatter_reduce", dataclasses.replace(_COPY, saves="inputs")),
    **_rows("index_add index_copy", dataclasses.replace(_COPY, saves="source")),
    "fft": Cost(Traffic.LAYOUT, (2, 2, 2), (2, 2, 2)),  # a real operand; complex ones are not kept
    **_rows("index index_select", Cost(Traffic.GATHER, (0, 2, 1), (0, 3, 12), "indices")),
    **_rows("embedding_bag", Cost(Traffic.GATHER, (0, 2, 1), (0, 3, 3), "nothing")),
}  # fmt: skip


def cost_of(op: str) -> Cost | None:
    """The entry of an op; ``None`` for one that moves nothing (views, casts, constants) or is a matrix product."""
    return _OPS.get(op) or _FAMILIES.get(op_named(op).family)

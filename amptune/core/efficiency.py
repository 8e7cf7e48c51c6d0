"""Which share of a GPU's peaks and bandwidth real kernels reach: the constants of the roofline, one set a generation.

Where they come from: for a GPU that is present, amptune/analyze/calibrate.py measures them there, kernel by kernel, and
never on a model. The table below is for GPUs that are not. Hopper's are from an H200 (tests/benchmarks/reports): matrix
products by the micro-benchmark, memory traffic and FP32 attention by the kernels of the profiled steps of nanoGPT, BERT
and Llama (the models that reports call seen). The others are scaled by public library benchmarks (unsure).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from amptune.core.formats import Format


class Traffic(enum.StrEnum):
    """Kinds of kernels that are bound by memory, by the share of the bandwidth that they reach."""

    POINTWISE = "pointwise"
    CAST = "cast"
    NORM = "norm"
    BATCH_NORM = "batch-norm"
    BATCH_NORM_BF16 = "batch-norm-bf16"
    REDUCTION = "reduction"
    SOFTMAX = "softmax"
    GATHER = "gather"
    LAYOUT = "layout"
    FUSED = "fused"
    OPTIMIZER = "optimizer"


# The faster the units, the more of a short reduction is start and end. Set on H200 steps of nanoGPT, BERT and Llama.
_RAMP = {
    Format.FP32: 32, Format.TF32: 250, Format.BF16: 200, Format.FP16: 200, Format.FP8_E4M3: 200, Format.FP8_E5M2: 200,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Constants of one GPU generation.

    Attributes:
        gemm: format -> share of the dense peak that a large aligned matrix product reaches.
        conv: the same for convolutions in the layout that the tensor cores want.
        depthwise: format -> share of the FP32 peak of the vector units that depthwise convolutions reach.
        attention: format -> share of the peak that fused attention reaches (forward; the backward a little less).
        memory: kind of traffic -> share of the bandwidth.
        misaligned: bytes that the leading dimensions are a multiple of -> share of the aligned rate, in 16 bits.
        ramp: format -> elements of reduction length that a tile's start and end cost.
        kernel_us: shortest kernel, microseconds.
        launch_us: time of the processor per kernel in eager mode: forward with its Python, and backward.
    """

    gemm: Mapping[Format, float]
    conv: Mapping[Format, float]
    attention: Mapping[Format, float]
    memory: Mapping[Traffic, float]
    misaligned: Mapping[int, float]
    depthwise: Mapping[Format, float] = dataclasses.field(default_factory=lambda: _formats(0.12, 0.12, 0.12, 0.0))
    ramp: Mapping[Format, int] = dataclasses.field(default_factory=lambda: _RAMP)
    kernel_us: float = 2.5
    launch_us: tuple[float, float] = (9.0, 7.0)


_MEMORY = {
    Traffic.POINTWISE: 0.55, Traffic.CAST: 0.45, Traffic.NORM: 0.44, Traffic.BATCH_NORM: 0.70,
    Traffic.BATCH_NORM_BF16: 0.43,
    Traffic.REDUCTION: 0.38, Traffic.SOFTMAX: 0.64, Traffic.GATHER: 0.45, Traffic.LAYOUT: 0.47,
    Traffic.OPTIMIZER: 0.80, Traffic.FUSED: 0.62,
}  # fmt: skip


def _formats(fp32: float, tf32: float, half: float, fp8: float) -> dict[Format, float]:
    return {
        Format.FP32: fp32, Format.TF32: tf32, Format.FP16: half, Format.BF16: half,
        Format.FP8_E4M3: fp8, Format.FP8_E5M2: fp8,
    }  # fmt: skip


_AMPERE = Efficiency(
    gemm=_formats(0.90, 0.75, 0.78, 0.0),
    conv=_formats(0.75, 0.55, 0.55, 0.0),
    attention=_formats(0.55, 0.08, 0.55, 0.0),
    memory=_MEMORY,
    misaligned={8: 0.8, 4: 0.6, 2: 0.45},
)
_HOPPER = Efficiency(
    gemm=_formats(0.79, 0.73, 0.87, 0.75),
    conv=_formats(0.55, 0.42, 0.40, 0.40),
    attention=_formats(0.54, 0.05, 0.40, 0.40),
    memory=_MEMORY,
    misaligned={8: 0.5, 4: 0.3, 2: 0.2},
)
EFFICIENCY: dict[str, Efficiency] = {
    "volta": dataclasses.replace(
        _AMPERE,
        gemm=_formats(0.90, 0.90, 0.72, 0.0),
        attention=_formats(0.45, 0.45, 0.25, 0.0),
        misaligned={8: 0.6, 4: 0.4, 2: 0.3},
    ),
    # The power limit of the T4 halves what its clock promises.
    "turing": dataclasses.replace(
        _AMPERE,
        gemm=_formats(0.55, 0.55, 0.40, 0.0),
        attention=_formats(0.30, 0.30, 0.15, 0.0),
        misaligned={8: 0.6, 4: 0.4, 2: 0.3},
    ),
    "ampere": _AMPERE,
    # Half of the FP32 units of these share an issue port with the integers, so FP32 products reach two thirds.
    "ampere-graphics": dataclasses.replace(_AMPERE, gemm=_formats(0.66, 0.85, 0.85, 0.0)),
    "ada": dataclasses.replace(_AMPERE, gemm=_formats(0.65, 0.85, 0.85, 0.75)),
    "hopper": _HOPPER,
    "blackwell": dataclasses.replace(_HOPPER, attention=_formats(0.38, 0.05, 0.35, 0.35)),
    "blackwell-graphics": dataclasses.replace(_AMPERE, gemm=_formats(0.65, 0.85, 0.85, 0.75)),
    "cdna": dataclasses.replace(
        _HOPPER,
        gemm=_formats(0.60, 0.45, 0.50, 0.45),
        misaligned={8: 0.8, 4: 0.7, 2: 0.6},
    ),
}

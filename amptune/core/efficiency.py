"""Which share of a GPU's peaks and bandwidth real kernels reach: the constants of the roofline, one set a generation.

Where they come from: for a GPU that is present, amptune/analyze/calibration measures some there and scales the others.
The table below is for GPUs that are not. Hopper's are from an H200 (tests/benchmarks/reports): matrix products,
convolutions and most memory traffic from single kernels (kernels_h200.json, read by kernel_constants.py, and
kernels_further_h200.json); casts, the weights of norms, blocks of threads, attention, the optimizer and softmax from
the kernels of profiled steps, which reach less than the same kernels do alone; the cost of a launch from steps. The
others are scaled by public library benchmarks (unsure).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

from amptune.core.formats import Format


class Traffic(enum.StrEnum):
    """Kinds of kernels that are bound by memory, by the share of the bandwidth that they reach.

    ``pointwise`` loads several elements at a time, ``unrolled`` one by one, where dtypes or shapes differ; ``layout``
    reads or writes across rows, ``turned`` has neighbours of one tensor far apart in the other, ``joined`` puts whole
    tensors together; ``transpose`` is cuDNN's, between channels first and last; ``native`` batch norms are torch's own,
    for BF16.
    """

    POINTWISE = "pointwise"
    UNROLLED = "unrolled"
    CAST = "cast"
    CAST_UP = "cast-up"
    NORM = "norm"
    NORM_WEIGHTS = "norm-weights"
    BATCH_NORM = "batch-norm"
    BATCH_NORM_LAST = "batch-norm-last"
    BATCH_NORM_NATIVE = "batch-norm-native"
    BATCH_NORM_NATIVE_LAST = "batch-norm-native-last"
    REDUCTION = "reduction"
    SOFTMAX = "softmax"
    GATHER = "gather"
    POOL = "pool"
    LAYOUT = "layout"
    TURNED = "turned"
    JOINED = "joined"
    TRANSPOSE = "transpose"
    FUSED = "fused"
    OPTIMIZER = "optimizer"


# The faster the units, the more of a short reduction is start and end. Set on H200 steps of nanoGPT, BERT and Llama.
_RAMP = {
    Format.FP32: 32, Format.TF32: 80, Format.BF16: 200, Format.FP16: 200, Format.FP8_E4M3: 200, Format.FP8_E5M2: 200,
}  # fmt: skip


Passes = tuple[float, float, float]
"""One number for each pass: forward, input gradient, weight gradient."""


_WINOGRAD: Passes = (0.62, 0.50, 1.30)
_WINDOW: Passes = (0.55, 0.42, 0.42)
_GROUPED: Passes = (0.90, 0.45, 1.0)
_GROUPED_TF32: Passes = (0.84, 0.81, 0.13)
_LONG_HALF: Passes = (0.084, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Constants of one GPU generation.

    Attributes:
        gemm: format -> share of the dense peak that a large aligned matrix product reaches.
        gemm_passes: format -> rate of the three products of training against that of the forward; absent where equal.
        conv_3x3: format -> share for 3 x 3 convolutions of stride 1 where the library has faster algorithms for them
            (Winograd's and FFTs), by pass; above 1 since operations are counted as if it had not.
        conv: format -> the same for convolutions in the layout that the tensor cores want: forward, input gradient and
            weight gradient.
        conv_window: format -> share for other convolutions of more than one tap over an image or a sequence, where it
            is another.
        conv_grouped: format -> share for convolutions in groups, by pass, where it is another; of the rate that the
            channels of a group leave.
        conv_long: format -> share of the FP32 peak of the vector units that convolutions in groups over very many taps
            reach, by pass; 0 where they have the kernels of others.
        depthwise: format and whether the layout is channels_last -> share of the FP32 peak of the vector units that
            the same three passes of depthwise convolutions reach.
        attention: format -> share of the peak that fused attention reaches, forward and backward.
        memory: kind of traffic -> share of the bandwidth with elements of 4 bytes, and of 2: most kernels that are not
            vectorised take as long for an element of either.
        misaligned: bytes that the leading dimensions are a multiple of -> share of the aligned rate, in 16 bits.
        ramp: format -> elements of reduction length that a tile's start and end cost.
        kernel_us: start and end of a kernel, microseconds, beside what its bytes or operations take.
        block_us: time that a multiprocessor takes to start a block of threads and let it end, in kernels with one block
            a row.
        launch_us: time of the processor for an op in eager mode, its launch included, forward and backward: where the
            mean error of the steps of all 47 models of steps_*_h200.json is least, whichever of them is left out (24 to
            40 for single models that it bound). Hosts of H200s; it says nothing of another machine.
    """

    gemm: Mapping[Format, float]
    conv: Mapping[Format, Passes]
    attention: Mapping[Format, tuple[float, float]]
    memory: Mapping[Traffic, tuple[float, float]]
    misaligned: Mapping[int, float]
    gemm_passes: Mapping[Format, Passes] = dataclasses.field(default_factory=dict)
    conv_3x3: Mapping[Format, Passes] = dataclasses.field(default_factory=lambda: {Format.FP32: _WINOGRAD})
    conv_window: Mapping[Format, Passes] = dataclasses.field(default_factory=lambda: {Format.FP32: _WINDOW})
    conv_grouped: Mapping[Format, Passes] = dataclasses.field(
        default_factory=lambda: {Format.FP32: _GROUPED, Format.TF32: _GROUPED_TF32}
    )
    conv_long: Mapping[Format, Passes] = dataclasses.field(
        default_factory=lambda: {
            Format.FP32: (0.19, 0.16, 0.38), Format.TF32: (0.0, 0.16, 0.0),
            **dict.fromkeys((Format.FP16, Format.BF16, Format.FP8_E4M3, Format.FP8_E5M2), _LONG_HALF),
        }
    )  # fmt: skip
    depthwise: Mapping[tuple[Format, bool], Passes] = dataclasses.field(default_factory=lambda: _DEPTHWISE)
    ramp: Mapping[Format, int] = dataclasses.field(default_factory=lambda: _RAMP)
    kernel_us: float = 1.3
    block_us: float = 0.2
    launch_us: tuple[float, float] = (30.0, 30.0)


_MEMORY: dict[Traffic, tuple[float, float]] = {
    Traffic.POINTWISE: (0.92, 0.92), Traffic.UNROLLED: (0.55, 0.32), Traffic.CAST: (0.47, 0.47),
    Traffic.CAST_UP: (0.36, 0.36), Traffic.NORM: (0.45, 0.23), Traffic.NORM_WEIGHTS: (0.27, 0.14),
    Traffic.BATCH_NORM: (0.70, 0.70), Traffic.BATCH_NORM_LAST: (0.72, 0.58), Traffic.BATCH_NORM_NATIVE: (0.36, 0.36),
    Traffic.BATCH_NORM_NATIVE_LAST: (0.60, 0.39), Traffic.REDUCTION: (0.40, 0.23), Traffic.SOFTMAX: (0.60, 0.47),
    Traffic.GATHER: (0.20, 0.10), Traffic.POOL: (0.37, 0.18), Traffic.LAYOUT: (0.45, 0.25),
    Traffic.TURNED: (0.25, 0.14), Traffic.JOINED: (0.83, 0.83), Traffic.TRANSPOSE: (0.64, 0.43),
    Traffic.OPTIMIZER: (0.68, 0.68), Traffic.FUSED: (0.62, 0.62),
}  # fmt: skip


def _formats(fp32: float, tf32: float, half: float, fp8: float) -> dict[Format, float]:
    return {
        Format.FP32: fp32, Format.TF32: tf32, Format.FP16: half, Format.BF16: half,
        Format.FP8_E4M3: fp8, Format.FP8_E5M2: fp8,
    }  # fmt: skip


def _passes(fp32: float, tf32: float, half: float) -> dict[Format, Passes]:
    return {each: (share, share, share) for each, share in _formats(fp32, tf32, half, half).items()}


def _both_ways(fp32: float, tf32: float, half: float, fp8: float) -> dict[Format, tuple[float, float]]:
    return {each: (share, 0.85 * share) for each, share in _formats(fp32, tf32, half, fp8).items()}


_CONV_HALF: Passes = (0.75, 0.72, 0.60)
_CONV_HOPPER: dict[Format, Passes] = {
    Format.FP32: (0.62, 0.42, 0.14), Format.TF32: (0.64, 0.66, 0.42),
    **dict.fromkeys((Format.FP16, Format.BF16, Format.FP8_E4M3, Format.FP8_E5M2), _CONV_HALF),
}  # fmt: skip
_DEPTHWISE: dict[tuple[Format, bool], Passes] = {
    **{(each, False): (0.042, 0.035, 0.016) for each in Format}, (Format.FP16, False): (0.079, 0.080, 0.045),
    (Format.FP32, True): (0.100, 0.090, 0.048), (Format.TF32, True): (0.100, 0.090, 0.048),
    **{(each, True): (0.153, 0.087, 0.108) for each in (Format.BF16, Format.FP16, Format.FP8_E4M3, Format.FP8_E5M2)},
}  # fmt: skip

_AMPERE = Efficiency(
    gemm=_formats(0.90, 0.75, 0.78, 0.0),
    conv=_passes(0.75, 0.55, 0.55),
    attention=_both_ways(0.55, 0.08, 0.55, 0.0),
    memory=_MEMORY,
    misaligned={8: 0.8, 4: 0.6, 2: 0.45},
)
# The TF32 instructions of Hopper read operands along the reduction alone; the other passes have to turn them first.
_TF32_HOPPER: Passes = (1.0, 0.84, 0.54)
_ATTENTION_HOPPER = {Format.FP32: (0.50, 0.48), **dict.fromkeys((Format.FP16, Format.BF16), (0.43, 0.45))}
_HOPPER = Efficiency(
    gemm=_formats(0.79, 0.83, 0.87, 0.75),
    gemm_passes={Format.TF32: _TF32_HOPPER},
    conv=_CONV_HOPPER,
    attention={**_both_ways(0.50, 0.05, 0.43, 0.43), **_ATTENTION_HOPPER},
    memory=_MEMORY,
    misaligned={8: 0.5, 4: 0.3, 2: 0.2},
)
EFFICIENCY: dict[str, Efficiency] = {
    "volta": dataclasses.replace(
        _AMPERE,
        gemm=_formats(0.90, 0.90, 0.72, 0.0),
        attention=_both_ways(0.45, 0.45, 0.25, 0.0),
        misaligned={8: 0.6, 4: 0.4, 2: 0.3},
    ),
    # The power limit of the T4 halves what its clock promises.
    "turing": dataclasses.replace(
        _AMPERE,
        gemm=_formats(0.55, 0.55, 0.40, 0.0),
        attention=_both_ways(0.30, 0.30, 0.15, 0.0),
        misaligned={8: 0.6, 4: 0.4, 2: 0.3},
    ),
    "ampere": _AMPERE,
    # Half of the FP32 units of these share an issue port with the integers, so FP32 products reach two thirds.
    "ampere-graphics": dataclasses.replace(_AMPERE, gemm=_formats(0.66, 0.85, 0.85, 0.0)),
    "ada": dataclasses.replace(_AMPERE, gemm=_formats(0.65, 0.85, 0.85, 0.75)),
    "hopper": _HOPPER,
    "blackwell": dataclasses.replace(_HOPPER, attention=_both_ways(0.38, 0.05, 0.35, 0.35)),
    "blackwell-graphics": dataclasses.replace(_AMPERE, gemm=_formats(0.65, 0.85, 0.85, 0.75)),
    "cdna": dataclasses.replace(
        _HOPPER,
        gemm=_formats(0.60, 0.45, 0.50, 0.45),
        misaligned={8: 0.8, 4: 0.7, 2: 0.6},
    ),
}

"""How long one kernel takes on a GPU: the larger of its arithmetic and its memory traffic, each at a stated efficiency.

Assumptions:

- A kernel runs at a fixed share of the dense peak (``core.hardware``) or of the memory bandwidth. The shares are one
  set for each GPU generation and kind of kernel (``core.efficiency``), or measured on the GPU at hand, never per model.
- A matrix product is cut into output tiles; the last wave of tiles may leave multiprocessors idle, and short
  reductions do not reach the full rate. A library picks the best of a few tile sizes, splitting long reductions.
- A leading dimension that is not a multiple of 16 bytes falls back to kernels with narrow loads.
- Where a format is not native, 16-bit products run emulated at a share of the FP32 rate, and TF32 is FP32.
- Every kernel takes a few microseconds at least, and in eager mode the processor needs several to launch it.
"""

from __future__ import annotations

import dataclasses
import enum
import math

from amptune.core.efficiency import EFFICIENCY, Efficiency, Passes
from amptune.core.efficiency import Traffic as Traffic
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import REQUIRED_BYTES, Gpu, best_multiple_for, multiple_for, padded


class Pass(enum.StrEnum):
    """The three matrix products of training: forward, input gradient, weight gradient."""

    FORWARD = "forward"
    INPUT = "input gradient"
    WEIGHT = "weight gradient"


_PASSES = (Pass.FORWARD, Pass.INPUT, Pass.WEIGHT)
_EMULATED_SHARE_OF_FP32 = 0.4
"""BF16 products without BF16 units: under half of the FP32 rate on a T4."""

# Output tiles (rows, columns) and the share of the best rate that the inner loop of each reaches.
_TILES_TENSOR = ((128, 256, 1.0), (256, 128, 1.0), (128, 128, 0.94), (64, 128, 0.80), (128, 64, 0.80), (64, 64, 0.65))
_TILES_VECTOR = ((128, 128, 1.0), (128, 64, 0.85), (64, 64, 0.80))
_LANES = 128
"""Output channels of a tile: a group of a convolution fills its share of one."""
_FEW_CHANNELS = 0.35
"""Rate of convolutions for tensor cores whose input channels do not fill one load (three colours), H200."""
_PATCH, _PATCH_SHARE = 100, 0.45
"""Taps of a window over few input channels that are as many as those of a patch, and the rate of its forward against
other windows of few channels (16 x 16 and 32 x 32 over three colours, H200)."""
_FEW_OUTPUTS = 0.15
"""Rate of input gradients whose output channels fill no load (a last layer that makes three colours), H200."""
_LARGE_WINDOW, _LARGE_WINDOW_SHARE = 25, {Format.FP32: 0.06, Format.TF32: 0.13}
"""Taps above which the channels_last weight gradient of depthwise convolutions in FP32 is another, slower kernel."""
_LONG = 64
"""Taps above which the library has no kernels for tensor cores in some passes of convolutions in groups (128 taps over
768 channels in 16 groups, as speech models have them for positions; it has them for 5 and 9 taps, H200)."""
_VECTOR = 1.3
"""Time of a product with a vector against that of reading and writing (4096 x 1024 times a vector, H200)."""
_ENOUGH_WEIGHTS = 32 * 128**2
"""Weights of a convolution whose gradient in FP32 fills the GPU (256 x 2048, H200)."""
_FEW_IN_VOLUMES = 0.13
"""Rate of such gradients in volumes against images, where weights are few (3 x 3 x 3 on 32 to 128 channels, H200)."""
_STREAMED = 0.82
"""Share of the bandwidth at which a product reads and writes its tensors: long contiguous rows, as in a copy."""
_FULL_BLOCKS = {Traffic.BATCH_NORM: (1.6, 3.2), Traffic.BATCH_NORM_NATIVE: (1.2, 2.4)}
"""Large blocks of threads for each multiprocessor that together reach the full rate of memory, with elements of 4 bytes
and of 2 (batch norms of 16 to 1024 channels, H200): a block has only so many loads under way."""
_SPLIT_K = 1024
"""Shortest piece that a library cuts a reduction into to fill the multiprocessors."""
_SPLIT_WAVES = 6
"""Rounds of the multiprocessors up to which it does where the tiles do not fill them (weight gradients of 3072 x 768
from 16384 tokens, H200)."""
_SPLIT_TENSOR, _SPLIT_VECTOR = (0.8, 2), (0.95, 6)
"""Rate of a product whose reduction is cut into pieces, which are added up at the end; and rounds up to which one is
whose tiles fill the multiprocessors already."""


def efficiency_of(gpu: Gpu) -> Efficiency:
    """The constants measured on the GPU, or those of its generation."""
    return gpu.measured or EFFICIENCY[family_of(gpu)]


def family_of(gpu: Gpu) -> str:
    """The generation, and whether it is the data centre's or the graphics product."""
    if gpu.capability is None:
        return "cdna"
    major, minor = gpu.capability
    if major == 7:
        return "turing" if minor >= 5 else "volta"
    if major == 8:
        return {0: "ampere", 9: "ada"}.get(minor, "ampere-graphics")
    return {9: "hopper", 10: "blackwell"}.get(major, "blackwell-graphics" if major >= 12 else "blackwell")


def peak_of(gpu: Gpu, number_format: Format) -> float:
    """FLOP/s of the format's matrix products on this GPU, emulated where it has to be; 0 where there is no kernel."""
    if number_format in gpu.peaks:
        return gpu.peaks[number_format] * 1e12
    if gpu.as_run(number_format) is Format.FP32:
        return gpu.peaks[Format.FP32] * 1e12
    if number_format in (Format.BF16, Format.FP16):
        return gpu.peaks[Format.FP32] * 1e12 * _EMULATED_SHARE_OF_FP32
    return 0.0


def oriented(gemm: Gemm, direction: Pass) -> Gemm:
    """The matrix product of one pass: the input gradient reduces over N, the weight gradient over M."""
    if direction is Pass.INPUT:
        return Gemm(gemm.m, gemm.k, gemm.n, gemm.batch)
    if direction is Pass.WEIGHT:
        return Gemm(gemm.n, gemm.k, gemm.m, gemm.batch)
    return gemm


def alignment(number_format: Format, *lengths: int) -> int:
    """The largest power of two, at most 16, of which all rows of these lengths are a multiple in bytes."""
    return min(math.gcd(length * number_format.bytes, REQUIRED_BYTES) for length in lengths)


def gemm_seconds(
    gemm: Gemm, number_format: Format, gpu: Gpu, *, rows: tuple[int, ...] | None = None, direction: Pass = Pass.FORWARD
) -> float:
    """Seconds of one matrix product.

    Args:
        gemm: the product as it is computed (see :func:`oriented`).
        direction: which of the products of training it is, as far as the layout of its operands goes.
        number_format: of its operands; the result has the same, or BF16 for FP8.
        rows: lengths in elements of the rows of the operands and the result in memory; by default K and N, which is
            what ``x @ weight.T`` has.
    """
    number_format = gpu.as_run(number_format)
    peak = peak_of(gpu, number_format)
    if not peak or not gemm.flops:
        return 0.0
    constants = efficiency_of(gpu)
    if min(gemm.m, gemm.n, gemm.k) == 1:  # a matrix times a vector, or a vector times another
        return _VECTOR * operand_seconds(gemm, number_format, gpu) + constants.kernel_us * 1e-6
    rate = peak * constants.gemm[number_format] * shape_share(gemm, number_format, gpu)
    # Emulation does not load operands as the matrix units do.
    aligned = (
        _alignment_share(number_format, rows or (gemm.k, gemm.n), constants) if gpu.is_native(number_format) else 1
    )
    if aligned == 1 and number_format in constants.gemm_passes:  # other kernels read narrow rows in either order
        rate *= constants.gemm_passes[number_format][_PASSES.index(direction)]
    rate *= aligned
    return max(gemm.flops / rate, operand_seconds(gemm, number_format, gpu)) + constants.kernel_us * 1e-6


def operand_seconds(gemm: Gemm, number_format: Format, gpu: Gpu) -> float:
    """Seconds in which a matrix product reads its operands and writes its result, which is in BF16 for FP8."""
    item = number_format.bytes
    moved = gemm.batch * ((gemm.m + gemm.n) * gemm.k * item + gemm.m * gemm.n * max(item, 2))
    return streamed_seconds(moved, gpu)


def _alignment_share(number_format: Format, rows: tuple[int, ...], constants: Efficiency) -> float:
    aligned = alignment(number_format, *rows)
    if aligned >= REQUIRED_BYTES or number_format is Format.FP32:
        return 1.0
    # TF32 has one kernel for rows of 4 and of 8 bytes.
    return constants.misaligned[4 if number_format is Format.TF32 else max(aligned, 2)]


def shape_share(gemm: Gemm, number_format: Format, gpu: Gpu) -> float:
    """The share of the full rate that this shape allows: tile and wave quantisation, and short reductions."""
    ramp = gemm.k / (gemm.k + efficiency_of(gpu).ramp[number_format])
    return ramp * wave_share(gemm, number_format, gpu)


def _fill(gemm: Gemm, rows: int, columns: int, sms: int, split: tuple[float, int]) -> float:
    tiles = math.ceil(gemm.m / rows) * math.ceil(gemm.n / columns)
    inside = gemm.m * gemm.n / (tiles * rows * columns)
    jobs = tiles * gemm.batch
    whole = jobs / (math.ceil(jobs / sms) * sms)
    rate, full = split
    waves = _SPLIT_WAVES if jobs < sms else full
    pieces = min(max(1, gemm.k // _SPLIT_K), math.ceil(waves * sms / jobs))
    if pieces > 1:
        best = max(count * jobs / (math.ceil(count * jobs / sms) * sms) for count in range(2, pieces + 1))
        whole = max(whole, rate * best)
    return inside * whole


def wave_share(gemm: Gemm, number_format: Format, gpu: Gpu) -> float:
    """The share of the full rate that tile and wave quantisation leave to this product, with the best of the tiles."""
    tiles = _TILES_VECTOR if number_format is Format.FP32 else _TILES_TENSOR
    split = _SPLIT_VECTOR if number_format is Format.FP32 else _SPLIT_TENSOR
    return max(inner * _fill(gemm, rows, columns, gpu.sms, split) for rows, columns, inner in tiles)


def training_gemm_seconds(gemm: Gemm, number_format: Format, gpu: Gpu, *, input_grad: bool = True) -> float:
    """Seconds of the three products of a linear layer; all of them have rows of K and of N elements in memory."""
    passes = (Pass.FORWARD, Pass.INPUT, Pass.WEIGHT) if input_grad else (Pass.FORWARD, Pass.WEIGHT)
    rows = (gemm.k, gemm.n)
    return sum(gemm_seconds(oriented(gemm, each), number_format, gpu, rows=rows, direction=each) for each in passes)


def padded_gemm(gemm: Gemm, number_format: Format, gpu: Gpu) -> Gemm:
    """The product with K and N rounded up as :func:`padded_size` says."""
    return dataclasses.replace(
        gemm, k=padded_size(gemm.k, number_format, gpu), n=padded_size(gemm.n, number_format, gpu)
    )


_CHEAP_WASTE = 0.02


def padded_size(value: int, number_format: Format, gpu: Gpu) -> int:
    """The size to pad a dimension to: the GPU's best multiple where that wastes at most 2 %, else the smallest.

    What is smaller than one multiple stays: a product with one column reads its matrix once and pads to nothing better.
    """
    number_format = gpu.as_run(number_format)
    smallest = padded(value, multiple_for(number_format))
    if smallest == value or value < multiple_for(number_format):
        return value
    best = padded(value, best_multiple_for(number_format, gpu))
    return best if best <= value * (1 + _CHEAP_WASTE) else smallest


def conv_seconds(
    gemm: Gemm, number_format: Format, gpu: Gpu, direction: Pass, *, bytes_moved: float, taps: int = 1,
    winograd: bool = False, few_channels: bool = False, volume: bool = False,
) -> float:  # fmt: skip
    """Seconds of one convolution pass.

    Args:
        gemm: the implicit product of the forward.
        number_format: of the operands.
        gpu: where it runs.
        direction: the pass.
        bytes_moved: bytes of its three tensors.
        taps: positions of the kernel.
        winograd: whether it has the shape that Winograd's algorithm and FFTs are for: 3 x 3, dense, each step taken.
        few_channels: whether the input channels fill no load of 16 bytes.
        volume: whether it runs over three dimensions, for which the library has fewer algorithms in FP32.
    """
    constants, number_format = efficiency_of(gpu), gpu.as_run(number_format)
    if direction is Pass.INPUT and few_channels:
        number_format = Format.FP32  # which has kernels for them, as fast in every format
    is_window = taps > 1 and not volume
    shares = _conv_shares(constants, number_format, grouped=gemm.batch > 1, winograd=winograd, window=is_window)
    rate = peak_of(gpu, number_format) * shares[_PASSES.index(direction)]
    if not rate:
        return 0.0
    if gemm.batch > 1:
        rate *= min(1.0, gemm.n / _LANES)
        if taps > _LONG and (share := constants.conv_long[number_format][_PASSES.index(direction)]):
            rate = peak_of(gpu, Format.FP32) * share
    elif direction is Pass.WEIGHT and number_format is Format.FP32 and not winograd:
        rate = peak_of(gpu, number_format) * _vector_weight_share(gemm, constants, volume=volume)
    elif direction is Pass.INPUT:
        # It reduces over output channels and taps, or over channels alone, and adds up the taps in place.
        ways = [oriented(gemm, direction)]
        if gemm.k % taps == 0:
            ways.append(Gemm(gemm.m, gemm.k // taps, gemm.n * taps))
        rate *= max(shape_share(way, number_format, gpu) for way in ways)
        rate *= _FEW_OUTPUTS if gemm.n * number_format.bytes < REQUIRED_BYTES else 1.0
    else:
        few = few_channels and number_format is not Format.FP32
        if few_channels and direction is Pass.FORWARD and taps >= _PATCH:
            rate *= _PATCH_SHARE
        rate *= shape_share(oriented(gemm, direction), number_format, gpu) * (_FEW_CHANNELS if few else 1.0)
    return max(gemm.flops / rate, streamed_seconds(bytes_moved, gpu)) + constants.kernel_us * 1e-6


def _conv_shares(
    constants: Efficiency, number_format: Format, *, grouped: bool, winograd: bool, window: bool
) -> Passes:
    """The shares of the peak that the passes of a convolution of a kind reach."""
    usual = constants.conv[number_format]
    if grouped:
        return constants.conv_grouped.get(number_format, usual)
    if winograd:
        return constants.conv_3x3.get(number_format, usual)
    return constants.conv_window.get(number_format, usual) if window else usual


def _vector_weight_share(gemm: Gemm, constants: Efficiency, *, volume: bool) -> float:
    """Of the peak that FP32's weight gradient reaches, whatever its shape: the library's kernels share a long reduction
    out among few multiprocessors, and come to their full rate where there are enough tiles."""
    few, enough = (table[Format.FP32][_PASSES.index(Pass.WEIGHT)] for table in (constants.conv, constants.conv_window))
    few *= _FEW_IN_VOLUMES if volume else 1.0
    return few + (enough - few) * min(1.0, gemm.n * gemm.k / _ENOUGH_WEIGHTS)


def depthwise_seconds(
    flops: float, number_format: Format, gpu: Gpu, direction: Pass, *, bytes_moved: float, channels_last: bool,
    taps: int = 1,
) -> float:  # fmt: skip
    """Seconds of one pass of a convolution with one channel a group, which vector units compute."""
    constants, number_format = efficiency_of(gpu), gpu.as_run(number_format)
    share = constants.depthwise[number_format, channels_last][_PASSES.index(direction)]
    if channels_last and direction is Pass.WEIGHT and number_format.bytes == 4 and taps > _LARGE_WINDOW:
        share *= _LARGE_WINDOW_SHARE[number_format]
    rate = peak_of(gpu, Format.FP32) * share
    return max(flops / rate, streamed_seconds(bytes_moved, gpu)) + constants.kernel_us * 1e-6


def streamed_seconds(bytes_moved: float, gpu: Gpu) -> float:
    """Seconds in which a product reads and writes its tensors."""
    return bytes_moved / (gpu.bandwidth * 1e9 * _STREAMED)


def traffic_seconds(
    bytes_moved: float, kind: Traffic, gpu: Gpu, *, narrow: bool = False, instructions: float = 0.0, workers: float = 0
) -> float:
    """Seconds of kernels that move bytes and run ``instructions`` on the vector units meanwhile, without start.

    ``narrow``: its elements have two bytes. ``workers``: blocks of threads among which the bytes are divided, in
    kernels that cannot have more of them (a batch norm's channels); 0 for as many as fill the GPU.
    """
    bandwidth = gpu.bandwidth * 1e9 * efficiency_of(gpu).memory[kind][int(narrow)]
    if workers:
        bandwidth *= min(1.0, workers / (_FULL_BLOCKS[kind][narrow] * gpu.sms))
    return max(bytes_moved / bandwidth, instructions / (peak_of(gpu, Format.FP32) / 2))

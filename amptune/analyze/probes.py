"""The micro-benchmarks of products: matrix products, convolutions and attention, each by itself, on random numbers.

Zeros draw less power and run faster, so numbers are random. Operations are counted as the estimate counts them, so that
what differs is the share of the peak alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from amptune.analyze import probing
from amptune.analyze.probing import Probe, Run
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import Gpu
from amptune.core.roofline import conv_seconds, efficiency_of, gemm_seconds, peak_of

_FORMATS = (Format.FP32, Format.TF32, Format.BF16, Format.FP16, Format.FP8_E4M3)


def product_probes(gpu: Gpu) -> Iterator[Probe]:
    """Every probe of a product that this GPU and this torch can run; sets the global TF32 flags."""
    for group in (_gemms, _misaligned, _convolutions, _depthwise, _attention):
        yield from group(gpu)


def _ideal(seconds: float, share: float) -> float:
    """What the roofline says at a share of 1, from what it says at ``share``."""
    return seconds * share


_GEMM = Gemm(8192, 4096, 4096)


def gemm_ideal(gpu: Gpu, number_format: Format) -> float:
    """Seconds of the probe's matrix product at the peak, its shape taken into account; 0 without a kernel."""
    share = efficiency_of(gpu).gemm[number_format]
    return _ideal(gemm_seconds(_GEMM, number_format, gpu), share) if share and peak_of(gpu, number_format) else 0.0


def _gemms(gpu: Gpu) -> Iterator[Probe]:
    for number_format in _FORMATS:
        probing.set_tf32(number_format is Format.TF32)
        if ideal := gemm_ideal(gpu, number_format):
            yield from probing.probe(f"gemm {number_format}", ideal, lambda f=number_format: _product(_GEMM, f))  # type: ignore[misc]


def _product(gemm: Gemm, number_format: Format) -> Run:
    left = probing.random(gemm.m, gemm.k, dtype=probing.dtype_of(number_format))
    right = probing.random(gemm.n, gemm.k, dtype=probing.dtype_of(number_format))
    if number_format is not Format.FP8_E4M3:
        return lambda: F.linear(left, right)
    one = torch.ones((), device=probing.DEVICE)
    return lambda: torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _misaligned(gpu: Gpu) -> Iterator[Probe]:
    """Products with rows of N + 1, N + 2 and N + 4 elements, against one with rows of N: one of each pass."""
    half = gpu.best_16bit
    try:
        aligned = _passes_seconds(8192, 8192, half)
        for odd in (1, 2, 4):
            yield Probe(f"misaligned {2 * odd}", _passes_seconds(8192, 8192 + odd, half), aligned)
    except RuntimeError:
        return  # not enough memory


def _passes_seconds(m: int, n: int, number_format: Format) -> float:
    """Forward, input gradient and weight gradient of a head as wide as a vocabulary."""
    x, weight, gradient = (
        probing.random(*shape, dtype=probing.dtype_of(number_format)) for shape in ((m, 1024), (n, 1024), (m, n))
    )
    return sum(
        probing.time_on_gpu(run)
        for run in (lambda: x @ weight.t(), lambda: gradient @ weight, lambda: gradient.t() @ x)
    )


def _convolutions(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of a 3 x 3 and a 1 x 1 convolution in channels_last, summed."""
    batch, side = 64, 28
    for number_format in _FORMATS[:-1]:
        share = efficiency_of(gpu).conv[number_format]
        if not share or not peak_of(gpu, number_format):
            continue
        probing.set_tf32(number_format is Format.TF32)
        ideal = 0.0
        runs: list[Callable[[], Run]] = []
        for inputs, outputs, kernel in ((256, 256, 3), (256, 1024, 1)):
            gemm = Gemm(batch * side * side, outputs, inputs * kernel * kernel)
            moved = (batch * side * side * (inputs + outputs) + gemm.n * gemm.k) * number_format.bytes
            ideal += 3 * _ideal(conv_seconds(gemm, number_format, gpu, bytes_moved=moved), share)
            runs.append(lambda i=inputs, o=outputs, k=kernel, f=number_format: _convolution(batch, side, i, o, k, f))  # type: ignore[misc]

        def both(runs: list[Callable[[], Run]] = runs) -> Run:
            first, second = (prepare() for prepare in runs)
            return lambda: (first(), second())

        yield from probing.probe(f"conv {number_format}", ideal, both)


def _convolution(batch: int, side: int, inputs: int, outputs: int, kernel: int, number_format: Format) -> Run:
    x = probing.random(batch, inputs, side, side, dtype=probing.dtype_of(number_format)).to(
        memory_format=torch.channels_last
    )
    weight = probing.random(outputs, inputs, kernel, kernel, dtype=probing.dtype_of(number_format)).to(
        memory_format=torch.channels_last
    )
    gradient = probing.random(batch, outputs, side, side, dtype=probing.dtype_of(number_format)).to(
        memory_format=torch.channels_last
    )
    x.requires_grad_()
    weight.requires_grad_()

    def run() -> None:
        y = F.conv2d(x, weight, padding=kernel // 2)
        torch.autograd.grad(y, (x, weight), gradient)

    return run


def _depthwise(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of a 7 x 7 convolution with as many groups as channels, against the FP32 vector units."""
    batch, channels, side, kernel = 64, 192, 28, 7
    flops = 3 * 2 * batch * channels * side * side * kernel * kernel
    probing.set_tf32(False)
    for number_format in (Format.FP32, Format.BF16, Format.FP16):

        def prepare(number_format: Format = number_format) -> Run:
            x, gradient = (
                probing.random(batch, channels, side, side, dtype=probing.dtype_of(number_format)) for _ in range(2)
            )
            weight = probing.random(channels, 1, kernel, kernel, dtype=probing.dtype_of(number_format)).requires_grad_()
            x.requires_grad_()

            def run() -> None:
                y = F.conv2d(x, weight, padding=kernel // 2, groups=channels)
                torch.autograd.grad(y, (x, weight), gradient)

            return run

        yield from probing.probe(f"depthwise {number_format}", flops / peak_of(gpu, Format.FP32), prepare)


def _attention(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of causal attention; the roofline gives the backward 2.5 / 0.85 times the forward's time."""
    batch, heads, length, size = 8, 12, 1024, 64
    flops = 2 * 2 * batch * heads * length * length * size // 2
    for number_format in (Format.FP32, Format.BF16, Format.FP16):
        peak = peak_of(gpu, number_format)
        ideal = flops / peak * (1 + 2.5 / 0.85) if peak else 0.0
        if not ideal:
            continue
        probing.set_tf32(False)

        def prepare(number_format: Format = number_format) -> Run:
            shape = (batch, heads, length, size)
            q, k, v, gradient = (probing.random(*shape, dtype=probing.dtype_of(number_format)) for _ in range(4))
            for tensor in (q, k, v):
                tensor.requires_grad_()

            def run() -> None:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(y, (q, k, v), gradient)

            return run

        yield from probing.probe(f"attention {number_format}", ideal, prepare)

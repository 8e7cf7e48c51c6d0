"""The micro-benchmarks of products: matrix products, convolutions and attention, each by itself, on random numbers.

Zeros draw less power and run faster, so numbers are random.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from amptune.analyze.calibration import probing
from amptune.analyze.calibration.probing import Probe, Run
from amptune.core.attending import Attending
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import Gpu
from amptune.core.roofline import (
    efficiency_of,
    gemm_seconds,
    peak_of,
)
from amptune.runtime import set_backend_flags

_FORMATS = (Format.FP32, Format.TF32, Format.BF16, Format.FP16, Format.FP8_E4M3)


def product_probes(gpu: Gpu) -> Iterator[Probe]:
    """Every probe of a product that this GPU and this torch can run; sets the global TF32 flags."""
    for group in (_gemms, _misaligned, _convolutions, _depthwise, _attention):
        yield from group(gpu)


_GEMM = Gemm(8192, 4096, 4096)
_IMAGES, _SIDE = 64, 28
_CONVOLUTIONS = ((256, 256, 3), (256, 1024, 1))
"""Input channels, output channels and kernel."""
_CHANNELS, _WINDOW = 192, 7
_ATTENTION = Attending(batch=8 * 12, queries=1024, keys=1024, size=64, causal=True)
_ATTENTION_FORMATS = (Format.FP32, Format.BF16, Format.FP16)


def gemm_ideal(gpu: Gpu, number_format: Format) -> float:
    """Seconds of the probe's matrix product at the peak, its shape taken into account; 0 without a kernel."""
    share = efficiency_of(gpu).gemm[number_format]
    return share * gemm_seconds(_GEMM, number_format, gpu) if share and peak_of(gpu, number_format) else 0.0


def ideals(gpu: Gpu) -> dict[str, float]:
    """Name -> seconds at the peak, for the probes of convolutions and attention: at that of the vector units for
    depthwise ones."""
    found = {}
    for each in _FORMATS[:-1]:
        if peak := peak_of(gpu, each):
            found[f"conv {each}"] = sum(3 * _implicit(*shape).flops / peak for shape in _CONVOLUTIONS)
    flops = 3 * 2 * _IMAGES * _CHANNELS * _SIDE**2 * _WINDOW**2
    for each in _ATTENTION_FORMATS:
        if peak := peak_of(gpu, each):
            found[f"depthwise {each}"] = flops / peak_of(gpu, Format.FP32)
            found[f"attention {each}"] = 3.5 * _ATTENTION.flops / peak
    return found


def _implicit(inputs: int, outputs: int, kernel: int) -> Gemm:
    return Gemm(_IMAGES * _SIDE**2, outputs, inputs * kernel**2)


def _gemms(gpu: Gpu) -> Iterator[Probe]:
    for number_format in _FORMATS:
        set_backend_flags(tf32=number_format is Format.TF32)
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
    for number_format in _FORMATS[:-1]:
        if not efficiency_of(gpu).conv[number_format][0] or not peak_of(gpu, number_format):
            continue
        set_backend_flags(tf32=number_format is Format.TF32)

        def both(number_format: Format = number_format) -> Run:
            first, second = (_convolution(*shape, number_format) for shape in _CONVOLUTIONS)
            return lambda: (first(), second())

        yield from probing.probe(f"conv {number_format}", ideals(gpu)[f"conv {number_format}"], both)


def _convolution(inputs: int, outputs: int, kernel: int, number_format: Format) -> Run:
    batch, side = _IMAGES, _SIDE
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
    batch, channels, side, kernel = _IMAGES, _CHANNELS, _SIDE, _WINDOW
    set_backend_flags(tf32=False)
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

        yield from probing.probe(f"depthwise {number_format}", ideals(gpu)[f"depthwise {number_format}"], prepare)


def _attention(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of causal attention."""
    for number_format in _ATTENTION_FORMATS:
        if not peak_of(gpu, number_format):
            continue
        set_backend_flags(tf32=False)

        def prepare(number_format: Format = number_format) -> Run:
            shape = (8, _ATTENTION.batch // 8, _ATTENTION.queries, _ATTENTION.size)
            q, k, v, gradient = (probing.random(*shape, dtype=probing.dtype_of(number_format)) for _ in range(4))
            for tensor in (q, k, v):
                tensor.requires_grad_()

            def run() -> None:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(y, (q, k, v), gradient)

            return run

        yield from probing.probe(f"attention {number_format}", ideals(gpu)[f"attention {number_format}"], prepare)

"""What the casts of an FP8 linear take: those of torchao's float8 training, which the FP8 recipes stand for."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.analyze.stepcost.kernels import Kernel, Move, Setting, Timed, Waiting
from amptune.core.graph import Site
from amptune.core.roofline import Traffic

TENSOR_CLASS_OPS = 6
"""What torchao's tensor class, in Python, takes the processor beside the kernels of a cast, in ops: between 4 and 8 by
the steps of two models that the processor bound (a denoiser and Whisper, on hosts of H200s)."""
TURNED_BYTE_PS = 9.6
"""Picoseconds an element that torch takes to transpose a matrix of bytes, which kernels of FP8 products ask for: 9.1 to
10.9 on an H200 (torch's own casts in reports/fp8_casts_h200.json, less what their two other passes move)."""


def fp8_casts(site: Site, setting: Setting) -> Timed:
    """Scales and casts of input, weight and output gradient, as torchao's float8 training has them."""
    weight = sum(param.meta.numel for param in site.params if len(param.meta.shape) > 1)
    activations = sum(tensor.numel for tensor in site.inputs)
    gradient = sum(tensor.numel for tensor in site.outputs)
    if setting.fused:
        # Read for the largest value, read again and write 1 byte, twice for both layouts.
        yield Move(Traffic.CAST, (activations + 2 * weight) * 8, 4), False
        yield Move(Traffic.CAST, gradient * 8, 2), True
        return
    # Input and weight in the forward; in the backward both once more, and the gradient for each of its two products.
    for numel, is_backward in (
        (activations, False), (weight, False), (activations, True), (weight, True), (gradient, True), (gradient, True)
    ):  # fmt: skip
        yield from ((kernel, is_backward) for kernel in _eager_fp8_cast(numel))
    for numel in (activations, weight, gradient):
        yield Move(Traffic.CAST, 2 * numel, least=TURNED_BYTE_PS * 1e-12 * numel), True


def _eager_fp8_cast(numel: float) -> Iterator[Kernel]:
    """One cast in eager mode, an op after the other through memory: the magnitudes and their maximum, the scale by four
    ops of one number, then to FP32, times the scale, clamp and to FP8. From FP32 it moves as many bytes: the first op
    twice as many, none for the change to FP32."""
    yield Move(Traffic.POINTWISE, numel * (4 + 6 + 8 + 8 + 5), 9)
    yield Move(Traffic.REDUCTION, numel * 2)
    yield Waiting(0.0, TENSOR_CLASS_OPS)

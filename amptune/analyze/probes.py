"""The micro-benchmarks behind ``calibrate``: one kind of kernel at a time, on random numbers, on the GPU at hand.

Zeros draw less power and run faster, so numbers are random. Bytes and operations are counted as the estimate counts
them, so that what differs is the share of the peak alone.
"""

# amptune: ignore-file[AMP404] goes with set_float32_matmul_precision, and old and new settings do not mix
# amptune: ignore-file[AMP605] only GPUs with FP8 are asked
from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from amptune.core.efficiency import Traffic
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import Gpu
from amptune.core.roofline import conv_seconds, efficiency_of, gemm_seconds, peak_of

DEVICE = "cuda"
REPEATS = 5
"""Timed batches of a probe; the median counts."""
BATCH_SECONDS = 0.008
"""How long one batch of a probe runs on the GPU."""
CHAIN = 24
"""Layers of the tiny network whose launches are timed."""
KERNELS_IN_GRAPH = 200
_FORMATS = (Format.FP32, Format.TF32, Format.BF16, Format.FP16, Format.FP8_E4M3)

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One measurement.

    Attributes:
        name: kind of kernel and format, such as ``gemm bf16`` or ``memory norm``.
        seconds: median time on the GPU.
        ideal: seconds at the table's peak or bandwidth.
    """

    name: str
    seconds: float
    ideal: float

    @property
    def share(self) -> float:
        """What the kernel reaches of the peak or bandwidth."""
        return self.ideal / self.seconds


def all_probes(gpu: Gpu) -> Iterator[Probe]:
    """Every probe that this GPU and this torch can run; sets the global TF32 flags."""
    for group in (_gemms, _misaligned, _convolutions, _depthwise, _attention, _memory):
        yield from group(gpu)


def time_on_gpu(run: Run) -> float:
    """Median seconds of one call, by events around batches of calls that keep the GPU busy."""
    for _ in range(2):
        run()
    once = _batch_seconds(run, 1)
    count = max(1, min(50, round(BATCH_SECONDS / max(once, 1e-6))))
    return statistics.median(_batch_seconds(run, count) for _ in range(REPEATS))


def _batch_seconds(run: Run, count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def _probe(name: str, ideal: float, prepare: Callable[[], Run]) -> Iterator[Probe]:
    """The probe; none where this GPU or this torch cannot run it."""
    try:
        yield Probe(name, time_on_gpu(prepare()), ideal)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError):
        return


def _set_tf32(wanted: bool) -> None:
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def _dtype(number_format: Format) -> torch.dtype:
    found: torch.dtype = getattr(torch, number_format.torch_name)
    return found


def _ideal(seconds: float, share: float) -> float:
    """What the roofline says at a share of 1, from what it says at ``share``."""
    return seconds * share


def _gemms(gpu: Gpu) -> Iterator[Probe]:
    gemm = Gemm(8192, 4096, 4096)
    for number_format in _FORMATS:
        if not peak_of(gpu, number_format):
            continue
        _set_tf32(number_format is Format.TF32)
        share = efficiency_of(gpu).gemm[number_format]
        ideal = _ideal(gemm_seconds(gemm, number_format, gpu), share) if share else 0.0
        if ideal:
            yield from _probe(f"gemm {number_format}", ideal, lambda f=number_format: _product(gemm, f))  # type: ignore[misc]


def _product(gemm: Gemm, number_format: Format) -> Run:
    left = _random(gemm.m, gemm.k, dtype=_dtype(number_format))
    right = _random(gemm.n, gemm.k, dtype=_dtype(number_format))
    if number_format is not Format.FP8_E4M3:
        return lambda: F.linear(left, right)
    one = torch.ones((), device=DEVICE)
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
    x, weight, gradient = (_random(*shape, dtype=_dtype(number_format)) for shape in ((m, 1024), (n, 1024), (m, n)))
    return sum(
        time_on_gpu(run) for run in (lambda: x @ weight.t(), lambda: gradient @ weight, lambda: gradient.t() @ x)
    )


def _convolutions(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of a 3 x 3 and a 1 x 1 convolution in channels_last, summed."""
    batch, side = 64, 28
    for number_format in _FORMATS[:-1]:
        share = efficiency_of(gpu).conv[number_format]
        if not share or not peak_of(gpu, number_format):
            continue
        _set_tf32(number_format is Format.TF32)
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

        yield from _probe(f"conv {number_format}", ideal, both)


def _convolution(batch: int, side: int, inputs: int, outputs: int, kernel: int, number_format: Format) -> Run:
    x = _random(batch, inputs, side, side, dtype=_dtype(number_format)).to(memory_format=torch.channels_last)
    weight = _random(outputs, inputs, kernel, kernel, dtype=_dtype(number_format)).to(memory_format=torch.channels_last)
    gradient = _random(batch, outputs, side, side, dtype=_dtype(number_format)).to(memory_format=torch.channels_last)
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
    _set_tf32(False)
    for number_format in (Format.FP32, Format.BF16, Format.FP16):

        def prepare(number_format: Format = number_format) -> Run:
            x, gradient = (_random(batch, channels, side, side, dtype=_dtype(number_format)) for _ in range(2))
            weight = _random(channels, 1, kernel, kernel, dtype=_dtype(number_format)).requires_grad_()
            x.requires_grad_()

            def run() -> None:
                y = F.conv2d(x, weight, padding=kernel // 2, groups=channels)
                torch.autograd.grad(y, (x, weight), gradient)

            return run

        yield from _probe(f"depthwise {number_format}", flops / peak_of(gpu, Format.FP32), prepare)


def _attention(gpu: Gpu) -> Iterator[Probe]:
    """Forward and backward of causal attention; the roofline gives the backward 2.5 / 0.85 times the forward's time."""
    batch, heads, length, size = 8, 12, 1024, 64
    flops = 2 * 2 * batch * heads * length * length * size // 2
    for number_format in (Format.FP32, Format.BF16, Format.FP16):
        peak = peak_of(gpu, number_format)
        ideal = flops / peak * (1 + 2.5 / 0.85) if peak else 0.0
        if not ideal:
            continue
        _set_tf32(False)

        def prepare(number_format: Format = number_format) -> Run:
            shape = (batch, heads, length, size)
            q, k, v, gradient = (_random(*shape, dtype=_dtype(number_format)) for _ in range(4))
            for tensor in (q, k, v):
                tensor.requires_grad_()

            def run() -> None:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(y, (q, k, v), gradient)

            return run

        yield from _probe(f"attention {number_format}", ideal, prepare)


def _memory(gpu: Gpu) -> Iterator[Probe]:
    for kind, (moved, prepare) in _MOVES.items():
        yield from _probe(f"memory {kind}", moved / (gpu.bandwidth * 1e9), prepare)


ROWS, WIDTH = 16384, 1024
"""The activation that most probes of traffic move, 64 MiB in FP32: larger than a cache, small enough for any GPU."""
SIZE = ROWS * WIDTH


def _pointwise() -> Run:
    x, y = _random(ROWS, WIDTH), _random(ROWS, WIDTH)
    return lambda: x + y


def _cast() -> Run:
    x = _random(ROWS, WIDTH)
    return lambda: x.to(torch.bfloat16)


def _with_backward(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    for tensor in inputs:
        tensor.requires_grad_()
    gradient = torch.randn_like(function(*inputs))

    def run() -> None:
        torch.autograd.grad(function(*inputs), inputs, gradient)

    return run


def _norm() -> Run:
    weight, bias = torch.ones(WIDTH, device=DEVICE), torch.zeros(WIDTH, device=DEVICE)
    return _with_backward(lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b), _random(ROWS, WIDTH), weight, bias)


def _batch_norm(dtype: torch.dtype) -> Callable[[], Run]:
    def prepare() -> Run:
        x = _random(64, 256, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
        mean, var = torch.zeros(256, device=DEVICE), torch.ones(256, device=DEVICE)
        return _with_backward(
            lambda t, w, b: F.batch_norm(t, mean, var, w, b, training=True),
            x,
            torch.ones_like(mean),
            torch.zeros_like(mean),
        )

    return prepare


def _reduction() -> Run:
    x = _random(ROWS, WIDTH)
    return lambda: x.sum(0)


def _softmax() -> Run:
    return _with_backward(lambda x: torch.log_softmax(x, -1), _random(512, 32768))


def _gather() -> Run:
    ids = torch.randint(0, 4096, (ROWS,), device=DEVICE)
    return _with_backward(lambda table: F.embedding(ids, table), _random(4096, WIDTH))


def _layout() -> Run:
    x = _random(64, 256, 32, 32)
    return lambda: x.contiguous(memory_format=torch.channels_last)


def _optimizer() -> Run:
    params = [torch.nn.Parameter(_random(2048, 2048)) for _ in range(8)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = torch.optim.AdamW(params, fused=True)
    return optimizer.step


_BATCH_NORM_ELEMENTS = 64 * 256 * 32 * 32
# Bytes by the units of amptune.analyze.moves: what the estimate will count for the same ops.
_MOVES: dict[Traffic, tuple[float, Callable[[], Run]]] = {
    Traffic.POINTWISE: (3 * 4 * SIZE, _pointwise),
    Traffic.CAST: (6 * SIZE, _cast),
    Traffic.NORM: ((2 + 5) * 4 * SIZE, _norm),
    Traffic.BATCH_NORM: ((3 + 5) * 2 * _BATCH_NORM_ELEMENTS, _batch_norm(torch.float16)),
    Traffic.BATCH_NORM_BF16: ((3 + 5) * 2 * _BATCH_NORM_ELEMENTS, _batch_norm(torch.bfloat16)),
    Traffic.REDUCTION: (4 * SIZE, _reduction),
    Traffic.SOFTMAX: ((2 + 3) * 4 * 512 * 32768, _softmax),
    Traffic.GATHER: ((2 + 3) * 4 * SIZE + 4 * 4096 * WIDTH, _gather),
    Traffic.LAYOUT: (2 * 4 * 64 * 256 * 32 * 32, _layout),
    Traffic.OPTIMIZER: (7 * 4 * 8 * 2048 * 2048, _optimizer),
}


def shortest_kernel_us(gpu: Gpu) -> float:
    """Microseconds of a kernel that has next to nothing to do, in a graph where nothing waits for the processor."""
    x = torch.zeros(1024, device=DEVICE)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(KERNELS_IN_GRAPH):
                x.add_(1.0)
        return time_on_gpu(graph.replay) / KERNELS_IN_GRAPH * 1e6
    except RuntimeError:
        return efficiency_of(gpu).kernel_us


def launch_us() -> tuple[float, float]:
    """Microseconds that the processor takes for a kernel, forward and backward, on a network too small for the GPU.

    A layer is a linear with a bias, a norm, an activation and a residual sum. The estimate counts 4 kernels for its
    forward and 7 for its backward: 3, 2 and 1, and the sum of the two gradients of the residual stream.
    """
    width = 64
    layers = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.LayerNorm(width), torch.nn.GELU())
        for _ in range(CHAIN)
    ).to(DEVICE)
    x = _random(8, width)
    ahead, behind = [], []
    for _ in range(2 * REPEATS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        y = x
        for layer in layers:
            y = y + layer(y)
        middle = time.perf_counter()
        torch.cuda.synchronize()
        before = time.perf_counter()
        y.backward(torch.ones_like(y))
        torch.cuda.synchronize()
        ahead.append(middle - start)
        behind.append(time.perf_counter() - before)
    skipped = REPEATS
    return (
        statistics.median(ahead[skipped:]) / (4 * CHAIN) * 1e6,
        statistics.median(behind[skipped:]) / (7 * CHAIN) * 1e6,
    )

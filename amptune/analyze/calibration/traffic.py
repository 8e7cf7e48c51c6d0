"""The micro-benchmarks of traffic and launches: kernels that are bound by memory, and what a kernel costs at least.

Bytes are counted by the units of :mod:`amptune.analyze.stepcost.moves`, as the estimate counts them for the same ops.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from amptune.analyze.calibration import probing
from amptune.analyze.calibration.probing import Probe, Run
from amptune.core.efficiency import Traffic
from amptune.core.hardware import Gpu
from amptune.core.roofline import efficiency_of

CHAIN = 24
"""Layers of the tiny network whose launches are timed."""
KERNELS_IN_GRAPH = 200


def traffic_probes(gpu: Gpu) -> Iterator[Probe]:
    """One probe for each kind of traffic that eager torch has."""
    for kind, (moved, prepare) in _MOVES.items():
        yield from probing.probe(f"memory {kind}", moved / (gpu.bandwidth * 1e9), prepare)


ROWS, WIDTH = 16384, 1024
"""The activation that most probes of traffic move, 64 MiB in FP32: larger than a cache, small enough for any GPU."""
SIZE = ROWS * WIDTH


def _pointwise() -> Run:
    x, y = probing.random(ROWS, WIDTH), probing.random(ROWS, WIDTH)
    return lambda: x + y


def _cast() -> Run:
    x = probing.random(ROWS, WIDTH)
    return lambda: x.to(torch.bfloat16)


def _with_backward(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    for tensor in inputs:
        tensor.requires_grad_()
    gradient = torch.randn_like(function(*inputs))

    def run() -> None:
        torch.autograd.grad(function(*inputs), inputs, gradient)

    return run


def _norm() -> Run:
    weight, bias = torch.ones(WIDTH, device=probing.DEVICE), torch.zeros(WIDTH, device=probing.DEVICE)
    return _with_backward(lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b), probing.random(ROWS, WIDTH), weight, bias)


def _reduction() -> Run:
    x = probing.random(ROWS, WIDTH)
    return lambda: x.sum(0)


def _softmax() -> Run:
    return _with_backward(lambda x: torch.log_softmax(x, -1), probing.random(512, 32768))


def _gather() -> Run:
    ids = torch.randint(0, 4096, (ROWS,), device=probing.DEVICE)
    return _with_backward(lambda table: F.embedding(ids, table), probing.random(4096, WIDTH))


def _optimizer() -> Run:
    params = [torch.nn.Parameter(probing.random(2048, 2048)) for _ in range(8)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = torch.optim.AdamW(params, fused=True)
    return optimizer.step


_MOVES: dict[Traffic, tuple[float, Callable[[], Run]]] = {
    Traffic.POINTWISE: (3 * 4 * SIZE, _pointwise),
    Traffic.CAST: (6 * SIZE, _cast),
    Traffic.NORM: ((2 + 5) * 4 * SIZE, _norm),
    Traffic.REDUCTION: (4 * SIZE, _reduction),
    Traffic.SOFTMAX: ((2 + 3) * 4 * 512 * 32768, _softmax),
    Traffic.GATHER: ((2 + 3) * 4 * SIZE + 4 * 4096 * WIDTH, _gather),
    Traffic.OPTIMIZER: (7 * 4 * 8 * 2048 * 2048, _optimizer),
}


def shortest_kernel_us(gpu: Gpu) -> float:
    """Microseconds of a kernel that has next to nothing to do, in a graph where nothing waits for the processor."""
    x = torch.zeros(1024, device=probing.DEVICE)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(KERNELS_IN_GRAPH):
                x.add_(1.0)
        return probing.time_on_gpu(graph.replay) / KERNELS_IN_GRAPH * 1e6
    except RuntimeError:
        return efficiency_of(gpu).kernel_us


def layer_us() -> tuple[float, float]:
    """Microseconds that the processor takes for a layer, forward and backward, on a network too small for the GPU.

    A layer is a linear with a bias, a norm, an activation and a residual sum.
    """
    width = 64
    layers = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.LayerNorm(width), torch.nn.GELU())
        for _ in range(CHAIN)
    ).to(probing.DEVICE)
    x = probing.random(8, width)
    ahead, behind = [], []
    for _ in range(2 * probing.REPEATS):
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
    skipped = probing.REPEATS
    return (
        statistics.median(ahead[skipped:]) / CHAIN * 1e6,
        statistics.median(behind[skipped:]) / CHAIN * 1e6,
    )

"""Which share of the GPU's time a training step spends on tensor cores, from the names of its kernels."""

from __future__ import annotations

import re

import torch

from amptune.tune.running.batches import Batches
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, training

STEPS = 2
# cuBLAS names its Hopper kernels nvjet; xmma and cutlass kernels carry the instruction or "tensorop" in their names,
# and a plain float32 product is f32f32_f32f32 without tf32. Fused attention is flash, fmha or cudnn's own.
_TENSOR_CORES = re.compile(
    r"nvjet|tensorop|wgmma|[hisb]\d{4,5}|hmma|imma|s1688|tf32|flash_(?:fwd|bwd)|fmha|cudnn.*(?:sdpa|flash)"
    r"|xmma_(?:gemm|fprop|dgrad|wgrad)\w*?_(?:bf16|f16|e4m3|e5m2|tf32)"
)
_SIMT = re.compile(r"simt|sgemm|f32f32_f32f32_f32(?!.*tf32)|ffma")


def uses_tensor_cores(kernel: str) -> bool:
    """Whether a kernel of this name multiplies matrices on tensor cores."""
    name = kernel.lower()
    return _TENSOR_CORES.search(name) is not None and _SIMT.search(name) is None


def tensor_core_share(bench: Workbench, candidate: Candidate, batches: Batches) -> float | None:
    """Time of tensor core kernels over the time of all kernels in a warm step; ``None`` on a CPU."""
    if not bench.device.is_cuda:
        return None
    batch = batches.train[0]
    with training(bench, candidate) as run:
        for _ in range(3):
            run.step(batch)
        bench.device.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(STEPS):
                run.step(batch)
            bench.device.synchronize()
    kernels = [(event.key, float(event.self_device_time_total)) for event in profile.key_averages()]
    total = sum(time for _, time in kernels)
    return sum(time for name, time in kernels if uses_tensor_cores(name)) / total if total else None

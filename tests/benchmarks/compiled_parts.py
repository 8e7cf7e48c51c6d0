"""Where a step of autocast in BF16 goes under torch.compile: by blocks, or the whole model.

    PYTHONPATH=.:rules python tests/benchmarks/compiled_parts.py MODEL.py {blocks,whole,plain}

``blocks`` and ``whole`` compile as ``amptune tune --compile`` does, ``plain`` calls ``torch.compile(model)`` in a loop
of its own. For files of tests/benchmarks/models whose loss is the model's own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from amptune.capture import Target, TargetSpec, load_target
from amptune.core.formats import Format
from amptune.tune.running.batches import to_device
from amptune.tune.running.compilation import Compilation
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, training

KERNELS = 14
STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scope", choices=("blocks", "whole", "plain"))
    args = parser.parse_args()
    target, device = load_target(TargetSpec(args.model)), Device("cuda")
    torch.manual_seed(0)
    batch = to_device(target.make_batch(), device.torch)
    if args.scope == "plain":
        report(args.scope, plain_step(target, batch))
        return
    bench = Workbench.build(target, device, 0)
    bench.compilation = Compilation(scope=args.scope)
    with training(bench, Candidate("autocast-bf16", autocast=Format.BF16)) as run:
        report(args.scope, lambda: run.step(batch))


def plain_step(target: Target, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
    """A step as a user writes it."""
    model = target.make_model().cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    compiled = torch.compile(model)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def report(name: str, step: Callable[[], Any]) -> None:
    """Print milliseconds of a step, of queueing it on an idle GPU, of its kernels, and the longest of these."""
    compiling = _seconds(lambda: [step() for _ in range(4)])
    queued = min(_seconds(step, waits=False) for _ in range(4))
    total = _seconds(lambda: [step() for _ in range(STEPS)]) / STEPS
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if event.device_type == DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 3e3
    memory = torch.cuda.max_memory_allocated() / 2**20
    print(
        f"{name}: step {total * 1e3:.2f} ms, queued in {queued * 1e3:.2f}, kernels {busy:.2f}; "
        f"compiled in {compiling:.1f} s, {memory:.0f} MiB"
    )
    for event in sorted(kernels, key=lambda event: -event.self_device_time_total)[:KERNELS]:
        print(f"  {event.self_device_time_total / 3e3:8.3f} ms {event.count // 3:5d}x {event.key[:100]}")


def _seconds(run: Callable[[], Any], *, waits: bool = True) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    run()
    if waits:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

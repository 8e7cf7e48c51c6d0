"""Clocks of the device that the benchmarks run on, and what a profiler says that ran there.

``DEVICE`` is ``cuda``; tests set it to ``cpu``, where times are of the processor and memory is not known.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

DEVICE = "cuda"
KERNELS = 40
"""Kernels of a profiled step that are kept, by time."""
KEPT = 0.995
"""Share of the time of a profiled step whose ops are kept one by one; the rest is summed up."""


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def between(marks: Callable[[Callable[[], None]], None]) -> list[float]:
    """Milliseconds between the marks that ``marks`` sets by calling what it is handed; nothing waits in between."""
    if DEVICE != "cuda":
        times: list[float] = []
        marks(lambda: times.append(time.perf_counter()))
        return [(after - before) * 1e3 for before, after in itertools.pairwise(times)]
    events: list[Any] = []

    def mark() -> None:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()

    marks(mark)
    events[-1].synchronize()
    return [float(before.elapsed_time(after)) for before, after in itertools.pairwise(events)]


def repeated(run: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each of ``count`` calls."""

    def marks(mark: Callable[[], None]) -> None:
        mark()
        for _ in range(count):
            run()
            mark()

    return between(marks)


def microseconds(run: Callable[[], Any], *, capture: bool = True, budget_ms: float = 4.0, repeats: int = 3) -> float:
    """Median microseconds of one call, from a CUDA graph of many calls where it can be captured: without what the
    processor takes to launch it."""
    for _ in range(2):
        run()
    synchronize()
    (once,) = repeated(run, 1)
    count = max(1, min(30, round(budget_ms / max(once, 1e-3))))

    def calls() -> None:
        for _ in range(count):
            run()

    batch = _captured(calls) if DEVICE == "cuda" and capture else calls
    return statistics.median(repeated(batch, repeats)) / count * 1e3


def _captured(calls: Callable[[], None]) -> Callable[[], Any]:
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        graph.replay()
    except RuntimeError:
        synchronize()
        return calls
    return graph.replay


def peak_memory() -> int | None:
    """Most bytes that were allocated since the last call of :func:`forget_peak`."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def forget_peak() -> None:
    """Start a new peak."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()


def kernels_of(step: Callable[[], Any]) -> dict[str, Any]:
    """What ran on the GPU in one step: total milliseconds, number of kernels, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize()
    found = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
    found = [event for event in found if event.device_time_total]
    return {
        "gpu_ms": sum(event.device_time_total for event in found) / 1e3,
        "count": sum(event.count for event in found),
        "longest": [[event.key[:110], event.count, round(event.device_time_total, 1)] for event in found[:KERNELS]],
    }


def ops_of(step: Callable[[], Any]) -> dict[str, Any]:
    """What each op of one step launched: ``rows`` of op, shapes of its inputs, first kernel, calls, kernels and
    microseconds, the longest first; ``rest_us`` is the time of those left out, ``ops`` the number of ops called."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
        synchronize()
    events = profiler.events()
    sums: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        launched = [kernel for kernel in event.kernels if kernel.duration]
        spent = sum(kernel.duration for kernel in launched) if DEVICE == "cuda" else event.self_cpu_time_total
        if not spent:
            continue
        name = launched[0].name[:70] if launched else ""
        row = sums.setdefault((event.name, _shapes(event.input_shapes), name), [0, 0, 0.0])
        row[0] += 1
        row[1] += len(launched)
        row[2] += spent
    rows = sorted(([*key, *value] for key, value in sums.items()), key=lambda row: -row[-1])
    total, kept, spent = sum(row[-1] for row in rows), [], 0.0
    for row in rows:
        if spent > KEPT * total:
            break
        spent += row[-1]
        kept.append([*row[:-1], round(row[-1], 1)])
    return {
        "total_us": round(total, 1),
        "rest_us": round(total - spent, 1),
        "ops": sum(event.name.startswith("aten::") for event in events),
        "rows": kept,
    }


def _shapes(shapes: Sequence[Any] | None) -> str:
    return " ".join("x".join(map(str, shape)) for shape in shapes or () if isinstance(shape, list | tuple) and shape)

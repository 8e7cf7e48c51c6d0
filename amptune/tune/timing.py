"""Step time and peak memory of a candidate."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from amptune.tune.batches import Batches
from amptune.tune.recipes import Candidate
from amptune.tune.training import Run, Workbench, training

WARMUP_STEPS = 3
LAUNCH_STEPS = 3
MIN_STEPS = 10
MAX_STEPS = 50
SECONDS = 1.0
LAUNCH_BOUND = 0.9
"""Share of the step that queueing it takes, from which on the GPU waits for Python."""
T_95 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)
"""One-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Milliseconds of one training step: median and quartiles, with the raw repeats, and peak memory where known.

    ``launch_ms`` is what Python takes to queue one step on an idle GPU; None where steps wait for the GPU in between.
    """

    median: float
    low: float
    high: float
    repeats: tuple[float, ...]
    memory: int | None = None
    launch_ms: float | None = None

    @property
    def launch_bound(self) -> bool:
        """Whether the GPU waits for Python: then fewer or faster kernels change nothing."""
        return self.launch_ms is not None and self.launch_ms >= LAUNCH_BOUND * self.median

    @classmethod
    def of(cls, repeats: Sequence[float]) -> StepTime:
        """From raw repeats in milliseconds, at least one."""
        if len(repeats) == 1:
            return cls(repeats[0], repeats[0], repeats[0], tuple(repeats))
        low, median, high = statistics.quantiles(repeats, n=4, method="inclusive")
        return cls(median, low, high, tuple(repeats))

    def to_json(self) -> dict[str, Any]:
        """``{"median", "low", "high", "repeats"}`` with the number of repeats, times in milliseconds."""
        return {"median": round(self.median, 4), "low": round(self.low, 4), "high": round(self.high, 4),
                "repeats": len(self.repeats)}  # fmt: skip


def measure_step(
    bench: Workbench, candidate: Candidate, batches: Batches, limit_ms: float | None = None
) -> tuple[StepTime | None, int | None, float | None]:
    """Step time, peak memory in bytes (``None`` on a CPU), and seconds of compiling (``None`` in eager mode).

    The time is ``None`` when a step of the warm-up takes longer than ``limit_ms``: hopelessly slow candidates (16-bit
    convolutions on a CPU can be 90 times slower) are not worth the wait.
    """
    device = bench.device
    with training(bench, candidate) as run:
        warm = [_seconds(run, batches.train[i % len(batches.train)]) * 1e3 for i in range(WARMUP_STEPS)]
        # The first step sets up kernels and optimizer state, so it says nothing; the fastest of the others does.
        elapsed = min(warm[1:])
        compiling = (sum(warm) - len(warm) * elapsed) / 1e3 if bench.compilation else None
        if limit_ms is not None and elapsed > limit_ms:
            # Another program may have had the machine: a second look before the candidate is given up.
            elapsed = min(_seconds(run, batch) * 1e3 for batch in batches.train[:WARMUP_STEPS])
            if elapsed > limit_ms:
                return None, None, compiling
        count = min(MAX_STEPS, max(MIN_STEPS, int(SECONDS * 1e3 / max(elapsed, 1e-3))))
        device.reset_peak_memory()  # the compiler's own trials of kernels are not part of a step
        step = timed_steps(run, batches, count)
        if device.is_cuda and not run.waits_for_device:
            step = dataclasses.replace(step, launch_ms=queueing_ms(run, batches))
        return step, device.peak_memory(), compiling


def queueing_ms(run: Run, batches: Batches) -> float:
    """Milliseconds of queueing a step on an idle device: the least of a few steps.

    To be asked after the timed steps: in the second and third step of a candidate, which may still ask the device for
    memory, queueing took longer than whole steps later on (34 of 27 ms, ViT-B/16 on an H200).
    """
    return min(_waited(run, batch)[0] for batch in batches.train[:LAUNCH_STEPS]) * 1e3


def timed_steps(run: Run, batches: Batches, count: int) -> StepTime:
    """Time of ``count`` steps, one by one.

    On a GPU the steps are queued without waiting in between, as a training loop queues them: events mark the borders.
    """
    steps = [batches.train[i % len(batches.train)] for i in range(count)]
    if not run.bench.device.is_cuda:
        return StepTime.of([_seconds(run, batch) * 1e3 for batch in steps])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for batch, event in zip(steps, events[1:], strict=True):
        run.step(batch)
        event.record()
    events[-1].synchronize()
    return StepTime.of([float(start.elapsed_time(end)) for start, end in itertools.pairwise(events)])


def measure_interleaved(
    bench: Workbench,
    candidates: Sequence[Candidate],
    batches: Batches,
    rounds: int,
    progress: Callable[[int], None] = lambda _round: None,
) -> list[list[StepTime]]:
    """Step times of several candidates, one list of rounds each, measured in turns, so that a drift of the machine
    hits all of them alike."""
    repeats: list[list[StepTime]] = [[] for _ in candidates]
    for index in range(rounds):
        for candidate, times in zip(candidates, repeats, strict=True):
            with training(bench, candidate) as run:
                warm = timed_steps(run, batches, WARMUP_STEPS)
                count = min(MAX_STEPS, max(5, int(SECONDS * 1e3 / max(warm.repeats[-1], 1e-3) / 2)))
                bench.device.reset_peak_memory()
                step = timed_steps(run, batches, count)
                times.append(dataclasses.replace(step, memory=bench.device.peak_memory()))
        progress(index + 1)
    return repeats


def pooled(rounds: Sequence[StepTime]) -> StepTime:
    """All repeats of all rounds as one sample."""
    return StepTime.of([time for one in rounds for time in one.repeats])


def speedup_interval(slower: Sequence[StepTime], faster: Sequence[StepTime]) -> tuple[float, float]:
    """Mean ratio of medians over paired rounds and the lower end of its one-sided 95 % interval (Student's t).

    No end is below 0, where the interval of a few rounds far apart may reach: a ratio of times is positive.
    """
    ratios = [a.median / b.median for a, b in zip(slower, faster, strict=True)]
    mean = statistics.fmean(ratios)
    if len(ratios) < 2:
        return mean, mean
    quantile = T_95[min(len(ratios) - 1, len(T_95)) - 1]
    return mean, max(0.0, mean - quantile * statistics.stdev(ratios) / len(ratios) ** 0.5)


def _seconds(run: Run, batch: Any) -> float:
    return _waited(run, batch)[1]


def _waited(run: Run, batch: Any) -> tuple[float, float]:
    """Seconds of queueing one step on an idle device, and of the whole step.

    From an idle device on: behind other steps the queue is full, and queueing waits for the GPU whatever Python takes.
    """
    device = run.bench.device
    device.synchronize()
    begin = time.perf_counter()
    run.step(batch)
    queued = time.perf_counter() - begin
    device.synchronize()
    return queued, time.perf_counter() - begin

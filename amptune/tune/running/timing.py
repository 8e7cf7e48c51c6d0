"""Step time and peak memory of a candidate."""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from amptune.tune.running.batches import Batches
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.recompiling import ENDLESS, endless, num_compiled
from amptune.tune.running.training import Run, Workbench, training

WARMUP_STEPS = 3
SLOW_MS = 100.0
"""Steps that take longer are much alike, and each is a good part of what a trial takes: fewer of them will do."""
FEWEST_STEPS = 5
"""Timed steps of a slow candidate, if they are steady."""
HOPELESS = 2.0
"""A candidate that takes this many times the limit in two steps is given up: no other program slows both of them so."""
ATTEMPTS = 3
"""How often steps are timed, where torch.compile is at work within them."""
LAUNCH_STEPS = 3
MIN_STEPS = 10
MAX_STEPS = 50
SECONDS = 1.0
LAUNCH_BOUND = 0.9
"""Share of the step that queueing it takes, from which on the GPU waits for Python."""
UNSTEADY = 0.05
"""Distance of the quartiles, as a share of the median, from which on steps depend on the moment."""
PAIRS = 8
"""Blocks of the yardstick that an unsteady candidate is measured between."""
PAIRED_MS = 100.0
"""Length of such a block. Many short ones tell more than few long ones: a host may change its speed within a second."""
PAIRED_STEPS = 3
"""Fewest steps of such a block."""
PAIRED_WARMUP = 1
NOT_PAIRED_MS = 60.0
"""Steps that take longer are not paired: a trial would take seconds more, and the GPU is seldom waiting in them."""
BEATEN = 1.15
"""A candidate that takes this many times the yardstick's step in all pairs so far needs no more of them."""
AGREED = 1.02
"""The largest ratio is less than this many times the smallest where a host is calm."""
YOUNG = 1
"""Oldest generation of objects that is collected before timed steps: what putting a candidate in force left behind. The
worker has frozen what is older, and looking through all of it takes as long as many steps."""
BLOCK_MS = 150.0
"""Length of a block when candidates are measured in turns."""
BLOCK_WARMUP = 2


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Milliseconds of one training step: median and quartiles, with the raw repeats, and peak memory where known.

    ``launch_ms`` is what Python takes to queue one step on an idle GPU; None where steps wait for the GPU in between.
    ``ratios`` are those to the step of a yardstick that was timed immediately before or after; empty where none was.
    ``beside_ms`` is that step of the yardstick, the median of its blocks.
    ``recompiled`` says that torch.compile was still at work in these steps, so that they are too slow.
    """

    median: float
    low: float
    high: float
    repeats: tuple[float, ...]
    memory: int | None = None
    launch_ms: float | None = None
    ratios: tuple[float, ...] = ()
    beside_ms: float | None = None
    recompiled: bool = False

    @property
    def launch_bound(self) -> bool:
        """Whether the GPU waits for Python: then fewer or faster kernels change nothing."""
        return self.launch_ms is not None and self.launch_ms >= LAUNCH_BOUND * self.median

    @property
    def unsteady(self) -> bool:
        """Whether the time depends on how fast the host is at the moment, so that only neighbours compare."""
        return self.launch_bound or self.high - self.low > UNSTEADY * self.median

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


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """What an unsteady candidate is timed in turns with, and the milliseconds of its step when it was measured."""

    candidate: Candidate
    step_ms: float

    def milliseconds_of(self, step: StepTime) -> float:
        """What a step would have taken at that moment; as measured where it was not paired."""
        return statistics.median(step.ratios) * self.step_ms if step.ratios else step.median


def measure_step(
    bench: Workbench,
    candidate: Candidate,
    batches: Batches,
    limit_ms: float | None = None,
    yardstick: Yardstick | None = None,
) -> tuple[StepTime | None, int | None, float | None]:
    """Step time, peak memory in bytes (``None`` on a CPU), and seconds of compiling (``None`` in eager mode).

    The time is ``None`` when a step of the warm-up takes longer than ``limit_ms``: hopelessly slow candidates (16-bit
    convolutions on a CPU can be 90 times slower) are not worth the wait. An unsteady candidate is measured in few steps
    where there is a ``yardstick``, which :func:`compared` measures it beside.
    """
    limit = math.inf if limit_ms is None else limit_ms
    with training(bench, candidate) as run:
        elapsed, compiling = _warmed_up(run, batches, limit)
        step = _alone(run, batches, elapsed, yardstick) if elapsed <= limit else None
        memory = bench.peak_memory(batches)
    if step is None:
        if yardstick is None or elapsed > limit * _slower_now(bench, yardstick, batches):
            return None, None, compiling
        return measure_step(bench, candidate, batches, None, yardstick)
    return step, memory, compiling


def compared(
    bench: Workbench, candidate: Candidate, batches: Batches, step: StepTime, yardstick: Yardstick | None
) -> StepTime:
    """The step of an unsteady candidate, in turns with the yardstick's; a steady one as it is."""
    if yardstick is None or not _is_paired(step, yardstick):
        return step
    return _beside(bench, candidate, yardstick.candidate, batches, step)


def roughly_ms(bench: Workbench, batches: Batches, step: StepTime, yardstick: Yardstick | None) -> float:
    """Milliseconds of a step; of an unsteady one what it would take if the host were as fast as when the yardstick was
    measured, by a few steps of that."""
    if yardstick is None or not _is_paired(step, yardstick):
        return step.median
    return step.median / _slower_now(bench, yardstick, batches)


def _warmed_up(run: Run, batches: Batches, limit: float) -> tuple[float, float | None]:
    """Milliseconds of a step once it is warm, and the seconds of compiling."""
    warm = _warm_steps(run, batches, limit)
    # The first step sets up kernels and optimizer state, so it says nothing; the fastest of the others does.
    elapsed = min(warm[1:])
    compiling = (sum(warm) - len(warm) * elapsed) / 1e3 if run.bench.compilation else None
    for batch in batches.train[:WARMUP_STEPS]:
        # Another program may have had the machine: a second look before the candidate is given up.
        if not limit < elapsed <= HOPELESS * limit:
            break
        elapsed = min(elapsed, _seconds(run, batch) * 1e3)
    return elapsed, compiling


def _warm_steps(run: Run, batches: Batches, limit: float) -> list[float]:
    """Milliseconds of the first steps, and of more until one compiles nothing.

    Raises:
        TuneError: each of them compiles something.
    """
    warm: list[float] = []
    is_compiling = True
    while is_compiling or not _is_warm(warm, limit):
        batch, before = batches.train[len(warm) % len(batches.train)], num_compiled()
        if len(warm) == ENDLESS:
            raise endless(functools.partial(run.step, batch))
        warm.append(_seconds(run, batch) * 1e3)
        is_compiling = num_compiled() > before
    return warm


def _is_warm(warm: Sequence[float], limit: float) -> bool:
    """After three steps; of a slow candidate after two, unless that one step alone would have it given up."""
    is_told = len(warm) == WARMUP_STEPS - 1 and SLOW_MS < warm[-1] <= limit
    return is_told or len(warm) >= WARMUP_STEPS


def _alone(run: Run, batches: Batches, elapsed: float, yardstick: Yardstick | None) -> StepTime:
    """Steps of a candidate that takes about ``elapsed`` milliseconds; few of them where pairs will follow."""
    device = run.bench.device
    count = min(MAX_STEPS, max(MIN_STEPS, int(SECONDS * 1e3 / max(elapsed, 1e-3))))
    is_slow = elapsed > SLOW_MS
    first = FEWEST_STEPS if is_slow else MIN_STEPS
    device.reset_peak_memory()  # the compiler's own trials of kernels are not part of a step
    gc.collect(YOUNG)
    step = _compiled_steps(run, batches, first)
    if device.is_cuda and not run.waits_for_device:
        step = dataclasses.replace(step, launch_ms=queueing_ms(run, batches, 1 if is_slow else LAUNCH_STEPS))
    if count == first or (is_slow and not step.unsteady) or _is_paired(step, yardstick):
        return step
    return joined([step, _compiled_steps(run, batches, count - first)])


def _compiled_steps(run: Run, batches: Batches, count: int) -> StepTime:
    """Timed steps; again, a few times, where a branch that no step had taken was compiled within them."""
    for _ in range(ATTEMPTS):
        before = num_compiled()
        step = timed_steps(run, batches, count)
        if num_compiled() == before:
            return step
    return dataclasses.replace(step, recompiled=True)


def _is_paired(step: StepTime, yardstick: Yardstick | None) -> bool:
    return yardstick is not None and step.unsteady and step.median <= NOT_PAIRED_MS


def _slower_now(bench: Workbench, yardstick: Yardstick, batches: Batches) -> float:
    """How many times slower the host is than when the yardstick was measured; at least 1."""
    return max(1.0, _block(bench, yardstick.candidate, batches, PAIRED_STEPS).median / yardstick.step_ms)


def _beside(
    bench: Workbench, candidate: Candidate, yardstick: Candidate, batches: Batches, first: StepTime
) -> StepTime:
    """The candidate's step time with its ratios to the yardstick's: blocks of both in turns, each of the yardstick's
    between two of the candidate's, of which ``first`` is one."""
    count = min(MAX_STEPS, max(PAIRED_STEPS, int(PAIRED_MS / max(first.median, 1e-3))))
    blocks, besides, ratios = [first], list[float](), list[float]()
    while len(blocks) <= PAIRS and not _is_told(ratios):
        besides.append(_block(bench, yardstick, batches, count).median)
        blocks.append(_block(bench, candidate, batches, count))
        ratios += [block.median / besides[-1] for block in blocks[-2:]]
    return dataclasses.replace(joined(blocks), ratios=tuple(ratios), beside_ms=statistics.median(besides))


def _is_told(ratios: Sequence[float]) -> bool:
    """Whether more ratios would say the same: both pairs so far agree, or the candidate is far slower."""
    return bool(ratios) and (min(ratios) > BEATEN or (len(ratios) >= 4 and max(ratios) < AGREED * min(ratios)))


def _block(bench: Workbench, candidate: Candidate, batches: Batches, count: int) -> StepTime:
    with training(bench, candidate) as run:
        timed_steps(run, batches, PAIRED_WARMUP)
        gc.collect(YOUNG)
        return _compiled_steps(run, batches, count)


def queueing_ms(run: Run, batches: Batches, count: int = LAUNCH_STEPS) -> float:
    """Milliseconds of queueing a step on an idle device: the least of ``count`` steps.

    To be asked after the timed steps: in the second and third step of a candidate, which may still ask the device for
    memory, queueing took longer than whole steps later on (34 of 27 ms, ViT-B/16 on an H200).
    """
    return min(_waited(run, batch)[0] for batch in batches.train[:count]) * 1e3


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
    hits all of them alike. Every other round goes backwards, so that none always has the same neighbours.

    Raises:
        TuneError: in compile mode, each step of a candidate compiles something.
    """
    repeats: list[list[StepTime]] = [[] for _ in candidates]
    is_compiled = bench.compilation is not None
    for index in range(rounds):
        order = list(zip(candidates, repeats, strict=True))
        for candidate, times in reversed(order) if index % 2 else order:
            with training(bench, candidate) as run:
                if index == 0 and is_compiled:
                    _warm_steps(run, batches, math.inf)
                warm = timed_steps(run, batches, BLOCK_WARMUP)
                count = min(MAX_STEPS, max(5, int(BLOCK_MS / max(warm.repeats[-1], 1e-3))))
                bench.device.reset_peak_memory()
                gc.collect(YOUNG)
                step = _compiled_steps(run, batches, count)
                times.append(dataclasses.replace(step, memory=bench.peak_memory(batches)))
        progress(index + 1)
    return repeats


def pooled(rounds: Sequence[StepTime]) -> StepTime:
    """All repeats of all rounds as one sample, with the most memory that one took."""
    found = StepTime.of([time for one in rounds for time in one.repeats])
    memory = max((one.memory for one in rounds if one.memory is not None), default=None)
    return dataclasses.replace(found, memory=memory, recompiled=any(one.recompiled for one in rounds))


def joined(blocks: Sequence[StepTime]) -> StepTime:
    """All repeats of all blocks, with what else the first one knows."""
    return dataclasses.replace(pooled(blocks), memory=blocks[0].memory, launch_ms=blocks[0].launch_ms)


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

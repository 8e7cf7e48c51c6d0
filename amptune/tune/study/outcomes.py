"""What a trial gave: from what the worker measured to the outcome that is kept, and the line that tells it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable

from amptune.core.sizes import size_text
from amptune.tune.running.timing import Yardstick
from amptune.tune.study.trial import Outcome
from amptune.tune.workers.job import Measured

GIVE_UP_FACTOR = 3.0
"""A candidate whose first steps take this many times the best step so far is not worth measuring."""


def outcome_of(base: Outcome, measured: Measured) -> Outcome:
    """The outcome of a candidate that ran."""
    if measured.mismatches:
        shown = "; ".join(measured.mismatches[:3])
        return dataclasses.replace(base, reason=f"formats in the run differ from the plan: {shown}")
    base = dataclasses.replace(base, compile_seconds=measured.compile_seconds, seconds=measured.seconds)
    quality = measured.quality
    if quality is None:
        return dataclasses.replace(base, state="slow", reason=f"a step takes over {GIVE_UP_FACTOR:g}x the best so far")
    finite = math.isfinite(quality.loss_gap)
    judged = dataclasses.replace(
        base,
        state="valid" if quality.valid else "invalid",
        reason=quality.reason,
        worst_cosine=quality.gate.worst_cosine if quality.gate else None,
        gradient_noise=dataclasses.asdict(noise) if quality.gate and (noise := quality.gate.noise) else None,
        failing=quality.gate.failing if quality.gate else (),
    )
    if measured.step is None:
        return dataclasses.replace(judged, reason=f"{quality.reason}; by its gradients in eager mode: not compiled")
    return dataclasses.replace(
        judged,
        step_ms=measured.step.to_json(),
        memory_bytes=measured.memory,
        loss_gap=quality.loss_gap if finite else None,
        loss_gap_upper=quality.upper if finite else None,
        loss_gap_allowed=quality.threshold,
        skipped_steps=quality.skipped,
        loss_scale=quality.loss_scale,
        evaluation=quality.evaluation,
        launch_bound=measured.step.launch_bound,
        launch_ms=measured.step.launch_ms,
        unsteady=measured.step.unsteady,
        recompiled=measured.step.recompiled,
    )


def paired(outcome: Outcome, measured: Measured, number: int, yardstick: Yardstick) -> Outcome:
    """The outcome with how its step compares with the yardstick's of trial ``number``, where it was timed beside it."""
    if measured.step is None or not measured.step.ratios:
        return outcome
    ratios = measured.step.ratios
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    beside = {"trial": number, "ratio": round(middle, 4), "low": round(low, 4), "high": round(high, 4),
              "count": len(ratios), "beside_ms": round(measured.step.beside_ms or yardstick.step_ms, 4)}  # fmt: skip
    return dataclasses.replace(outcome, paired=beside, paired_ms=yardstick.milliseconds_of(measured.step))


def newly_allowed(outcome: Outcome, before: Iterable[Outcome], known: float) -> str | None:
    """What to say where a trial has shown that the loss moves by itself further than was ``known``; else None."""
    allowed = outcome.loss_gap_allowed or 0.0
    if allowed <= max(known, *(o.loss_gap_allowed or 0.0 for o in before), 0.0):
        return None
    return (
        f"FP32 itself ends up to {allowed:.2%} from its loss where each step's weights are off at random by what BF16 "
        "rounds: so large a loss gap is allowed, and the gradients must be right as ever"
    )


def limited(outcome: Outcome, max_memory: int | None) -> Outcome:
    """The outcome with how far it is from the memory limit; over it, it is not valid."""
    if max_memory is None or outcome.memory_bytes is None:
        return outcome
    taken, excess = outcome.memory_bytes, outcome.memory_bytes - max_memory
    outcome = dataclasses.replace(outcome, memory_excess=excess)
    if excess <= 0 or not outcome.valid:
        return outcome
    reason = f"takes {size_text(taken)}, --max-memory allows {size_text(max_memory)}"
    return dataclasses.replace(outcome, state="too_large", reason=reason)


def describe(number: int, outcome: Outcome) -> str:
    """One line about a trial."""
    name = outcome.recipe or f"{outcome.kind} plan"
    if outcome.step_ms is None:
        return f"trial {number}: {name}: {outcome.state}: {outcome.reason}"
    is_told = outcome.loss_gap is None or "loss gap" in outcome.reason
    gap = "" if is_told else f", loss gap {outcome.loss_gap:+.3%}"
    tail = "" if outcome.valid else f", not valid: {outcome.reason}"
    beside = ""
    if outcome.paired:
        beside = f", {outcome.paired['ratio']:.3f} of trial {outcome.paired['trial']}'s beside it"
    compiling = ", compiling still within them" if outcome.recompiled else ""
    return f"trial {number}: {name}: {outcome.measured_ms:.2f} ms a step{compiling}{beside}{gap}{tail}"

"""result.json: everything that was measured, in the fields that other tools read."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

import optuna
import torch

from amptune import __version__
from amptune.tune.finalists.finals import Verdict
from amptune.tune.finalists.judging import MAX_PAIRED_ROUNDS
from amptune.tune.finalists.way import Way
from amptune.tune.learning.stockorder import unmeasured_note
from amptune.tune.outputs.pareto import pareto_numbers, prediction_json
from amptune.tune.running.timing import StepTime
from amptune.tune.search import Search
from amptune.tune.study.trial import Outcome, TrialRecord

RESULT_VERSION = 1
TOOL = f"amptune {__version__}"


def result_json(search: Search, verdict: Verdict, seconds: float, plan_file: str) -> dict[str, Any]:
    """The content of result.json, schema version 1.

    Times are milliseconds with quartiles, memory is bytes (null on a CPU), ``loss_gap`` is signed and relative.
    """
    options, prepared = search.options, search.prepared
    # A compiled step launches other kernels than its trial in eager mode.
    is_as_tried = verdict.way is Way.EAGER or not search.parts.in_eager
    is_stock_eager = options.compile_with is not None and verdict.stock_way is Way.EAGER
    return {
        "version": RESULT_VERSION,
        "tool": TOOL,
        "verdict": verdict.kind,
        "device": prepared.device,
        "mode": options.mode,
        "seed": options.seed,
        "versions": {
            "amptune": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
        },
        "noise": prepared.noise,
        "tolerance": options.tolerance,
        "steps": options.steps,
        "quality_data": prepared.quality_data,
        "notes": [*prepared.notes, *filter(None, [unmeasured_note(search)]), *verdict.left_out],
        "stock": [_entry(record) for record in search.records() if record.outcome.recipe],
        "best": _entry(verdict.record, verdict.step) | {"plan": plan_file},
        "speedup_over_best_stock": round(verdict.speedup, 4),
        "speedup_low": round(verdict.speedup_low, 4),
        "attribution": {
            "full": round(verdict.speedup, 4),
            "without_loss_and_layout": _rounded(verdict.formats_only),
            "stock_in_parts": _rounded(verdict.stock_in_parts),
        },
        "missed": _missed(search, verdict),
        "compiled": _compiled(search, verdict),
        "repeated": verdict.repeated,
        "repeats": {"stock": _entry(verdict.stock, verdict.stock_step), "stock_in_eager": is_stock_eager},
        "trials_in_eager": search.parts.in_eager,
        "objective": options.objective,
        "max_memory": options.max_memory,
        "stopped": search.stopped,
        "not_measured": search.unmeasured(),
        "launch_bound": is_as_tried and verdict.record.outcome.launch_bound,
        "launch_ms": verdict.record.outcome.launch_ms if is_as_tried else None,
        "prediction": prediction_json(search.records()),
        "pareto": pareto_numbers(search.records()),
        "trials": [_trial(record) for record in search.records()],
        "seconds": round(seconds, 1),
        "seconds_in": {what: round(spent, 1) for what, spent in search.progress.spent.items()},
    }


def _missed(search: Search, verdict: Verdict) -> dict[str, Any] | None:
    """The best plan in the repeats, where it did not win."""
    if verdict.missed is None:
        return None
    winner, gain = verdict.missed.winner, verdict.missed.gain
    return {
        "trial": winner.record.number,
        "step_ms": winner.step.to_json(),
        "memory_bytes": winner.memory,
        "speedup": round(gain.ratio, 4),
        "speedup_low": round(gain.low, 4),
        "rounds": len(winner.times),
        "more_rounds_by": _more_rounds_by(search, len(winner.times)),
    }


def _more_rounds_by(search: Search, rounds: int) -> str | None:
    """The option whose larger value leaves time for more rounds than these; None where none does."""
    if rounds >= MAX_PAIRED_ROUNDS:
        return None
    if search.options.timeout is not None:
        return "--timeout"
    return "--budget" if search.stopped == "budget" else None


def _compiled(search: Search, verdict: Verdict) -> str | None:
    """How the winner is compiled: ``parts`` as the plan says, ``whole`` as the user does it, ``eager`` for not at all;
    None where compile mode was not asked for."""
    return None if search.options.compile_with is None else str(verdict.way)


def _entry(record: TrialRecord, step: StepTime | None = None) -> dict[str, Any]:
    outcome = record.outcome
    memory = outcome.memory_bytes if step is None or step.memory is None else step.memory
    return {
        "recipe": outcome.recipe or "plan",
        "step_ms": step.to_json() if step else outcome.step_ms,
        "memory_bytes": memory,
        "loss_gap": outcome.loss_gap,
        "valid": outcome.valid,
        "reason": outcome.reason,
        "trial": record.number,
    } | _evaluation(outcome)


def _evaluation(outcome: Outcome) -> dict[str, Any]:
    return {} if outcome.evaluation is None else {"evaluation": outcome.evaluation}


def _trial(record: TrialRecord) -> dict[str, Any]:
    fields = dataclasses.asdict(record.outcome)
    return {"number": record.number, **fields, "point": record.point}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

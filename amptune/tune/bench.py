"""``amptune bench`` as one function: every stock recipe and a plan, side by side in one process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amptune import __version__
from amptune.apply.fits import check_fits, names_in
from amptune.capture import capture, load_target
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import INDUCTOR, Plan, SitePlan
from amptune.core.planfile import read_plan
from amptune.errors import TuneError
from amptune.tune.choices.ownautocast import own_autocast_notes
from amptune.tune.finalists.speedup import Speedup
from amptune.tune.run import SETUP_TIMEOUT, job_of, refuse_patched, started_worker
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime, pooled
from amptune.tune.running.training import seed_everything
from amptune.tune.search import GIVE_UP_MS
from amptune.tune.study.progress import Progress
from amptune.tune.workers.job import Measured, Prepared
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError, WorkerProcess, must

BENCH_VERSION = 1
ALIGNED = 64
HOPELESS = 10.0
"""A row whose step takes this many times the best one's so far is given up: its rounds would take longest of all."""
FAR_OFF = 2.0
"""A recipe that takes this many times the best one is not measured with a compiled loss or aligned dimensions too."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: stock recipe, ``plan``, or a stock recipe with what users add by hand.
        kind: ``stock``, ``extra`` or ``plan``.
        rounds: step times of the interleaved rounds; empty where it did not run.
        memory_bytes: peak memory of a step; None on a CPU.
        loss_gap: to the FP32 reference after K steps, signed.
        valid: whether it trains as well.
        reason: why not, or why it did not run.
        tensor_core_share: share of GPU time in tensor core kernels; None on a CPU.
    """

    name: str
    kind: str
    rounds: tuple[StepTime, ...]
    memory_bytes: int | None
    loss_gap: float | None
    valid: bool
    reason: str
    tensor_core_share: float | None = None

    @property
    def step(self) -> StepTime | None:
        """All repeats of all rounds."""
        return pooled(self.rounds) if self.rounds else None


def bench(options: TuneOptions, plan_path: Path | None, rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure all rows; the content of the JSON, schema version 1.

    Raises:
        AmptuneError: the target, the plan or the FP32 reference does not work.
    """
    plan = read_plan(plan_path) if plan_path else None  # one that cannot be read is said before anything is loaded
    target = load_target(options.target)
    refuse_patched(target)
    progress.stage("capturing the model")
    with started_worker(progress) as worker:
        seed_everything(options.seed)  # as the worker does, for a make_model that draws its structure
        captured = capture(target)
        progress.notes((*target.notes, *captured.notes, *own_autocast_notes(captured.graph)))
        if plan is not None and plan_path is not None:
            check_fits(plan, captured.graph, names_in(target.make_model()), plan_path)
        worker.job = job_of(options, target, captured)
        progress.stage("training the FP32 reference")
        prepared: Prepared = must(lambda: worker.request("prepare", timeout=SETUP_TIMEOUT), "the FP32 reference failed")
        progress.notes(prepared.notes)
        recipes: list[Candidate] = must(
            lambda: worker.request("recipes", timeout=SETUP_TIMEOUT), "the device cannot be asked for its formats"
        )
        candidates = {candidate.name: ("stock", candidate) for candidate in recipes}
        can_compile: bool = must(lambda: worker.request("can_compile_loss", timeout=SETUP_TIMEOUT), "the loss failed")
        backend = options.compile_with or INDUCTOR
        variants = extras(recipes, captured.graph, compile_loss=can_compile, backend=backend)
        candidates |= {candidate.name: ("extra", candidate) for candidate in variants}
        parts = Parts()
        if options.compile_with:
            parts = must(lambda: worker.request("parts", timeout=SETUP_TIMEOUT), "the model cannot be described")
            in_parts = [parts.of_recipe(r) for r in recipes if parts and r.autocast and not r.float8]
            candidates |= {candidate.name: ("extra", candidate) for candidate in in_parts}
        if plan is not None:
            candidates |= rows_of(plan, options)
        if parts.in_eager:
            progress.line(
                f"note: each row would compile {parts.num_layers} layers: how it trains is judged in eager mode, and "
                "its steps are timed compiled"
            )
        trials = "compiling and measuring" if options.compile_with and not parts.in_eager else "measuring"
        rows = measured_rows(worker, candidates, rounds, trials, options, progress)
    return report(rows, prepared, options, rounds)


def rows_of(plan: Plan, options: TuneOptions) -> dict[str, tuple[str, Candidate]]:
    """The plan as the model is run; beside compiled models also in eager mode, if it was measured there."""
    candidate = plan_candidate(plan)
    rows = {"plan": ("plan", candidate)}
    if options.compile_with and plan.measured_on.get("mode") == "eager":
        rows["plan+eager"] = ("plan", dataclasses.replace(candidate, eager=True, name="plan+eager"))
    return rows


def extras(
    recipes: Sequence[Candidate], graph: PrecisionGraph, *, compile_loss: bool, backend: str = INDUCTOR
) -> list[Candidate]:
    """The autocast recipes with what users add by hand: a compiled loss, or channels_last and aligned dimensions.

    They show what the choice per layer adds apart from the loss and the layout. The alignment is compute-time padding,
    which comes close to a user's changing the dimension itself.
    """
    found: list[Candidate] = []
    misaligned = [s.id for s in graph if s.is_module and s.op == "linear" and s.attrs.get("out_features", 0) % 8]
    has_images = any(s.op == "conv2d" for s in graph)
    for recipe in recipes:
        if recipe.autocast is None:
            continue
        loose = dataclasses.replace(recipe, name=f"{recipe.name}+compiled-loss", loss_compile=True)
        if compile_loss:
            found.append(loose)
        if misaligned or has_images:
            sites = {site: SitePlan(recipe.autocast, pad=ALIGNED) for site in misaligned}
            layout = Plan(
                sites=sites, channels_last=has_images, loss_format=None, scaler=recipe.scaler, backend=backend
            )
            found.append(dataclasses.replace(recipe, name=f"{recipe.name}+aligned", plan=layout))
            if compile_loss:
                found.append(dataclasses.replace(loose, name=f"{recipe.name}+compiled-loss+aligned", plan=layout))
    return found


def measured_rows(
    worker: WorkerProcess,
    candidates: Mapping[str, tuple[str, Candidate]],
    rounds: int,
    trials: str,
    options: TuneOptions,
    progress: Progress,
) -> list[Row]:
    """First each row by itself, for quality and memory; then all that run, in turns, for the time."""
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    for name, (kind, candidate) in candidates.items():
        if kind == "extra" and (why := far_off(name, measured)):
            failed[name] = why
            continue
        progress.stage(f"{trials} {name}", len(measured), len(candidates), has_line=True)
        try:
            limit_ms = None if kind == "plan" else _limit_ms(measured.values())
            measured[name] = worker.request("trial", candidate, limit_ms, timeout=options.trial_timeout)
        except TrialError as failure:
            failed[name] = failure.reason
        progress.line(f"{name}: {failed.get(name) or _said(measured[name])}")
    ordered = {name: candidates[name][1] for name, found in measured.items() if found.step is not None}
    if not ordered:
        raise TuneError("no recipe could be measured", hint="; ".join(f"{k}: {v}" for k, v in failed.items()))
    progress.stage("compiling all rows" if options.compile_with else "measuring all rows in turns")
    times = in_turns(worker, ordered, rounds, failed, progress)
    shares: list[float | None] = must(
        lambda: worker.request("tensor_core_shares", list(ordered.values()), timeout=SETUP_TIMEOUT),
        "the profile failed",
    )
    by_name = dict(zip(ordered, zip(times, shares, strict=True), strict=True))
    return [
        _row(name, kind, measured.get(name), failed.get(name, ""), *by_name.get(name, ([], None)))
        for name, (kind, _) in candidates.items()
    ]


def _limit_ms(measured: Iterable[Measured]) -> float | None:
    """What a step may take; None before the first row."""
    best = min((found.step.median for found in measured if found.step is not None), default=None)
    return None if best is None else max(HOPELESS * best, best + GIVE_UP_MS)


def in_turns(
    worker: WorkerProcess, ordered: dict[str, Candidate], rounds: int, failed: dict[str, str], progress: Progress
) -> list[list[StepTime]]:
    """The interleaved rounds, which compile what no trial has where trials run in eager mode.

    Where they fail, without the rows that fail by themselves: these go from ``ordered`` to ``failed``.
    """

    def request(names: Iterable[str], count: int) -> list[list[StepTime]]:
        among = [ordered[name] for name in names]
        found: list[list[StepTime]] = worker.request("repeat", among, count, timeout=SETUP_TIMEOUT)
        return found

    try:
        return request(ordered, rounds)
    except TrialError as failure:
        progress.line(f"the interleaved rounds failed ({failure.reason}): each row by itself, to find out which")
    for name in list(ordered):
        try:
            request([name], 1)
        except TrialError as failure:
            failed[name] = failure.reason
            progress.line(f"{name}: {failure.reason}")
    for name in failed.keys() & ordered.keys():
        del ordered[name]
    if not ordered:
        raise TuneError("no row could be measured in turns", hint="; ".join(f"{k}: {v}" for k, v in failed.items()))
    again: list[list[StepTime]] = must(lambda: request(ordered, rounds), "the interleaved rounds failed")
    return again


def far_off(extra: str, measured: Mapping[str, Measured]) -> str:
    """Why a variant of a recipe is left out; empty where it is worth its time."""
    recipe = extra.partition("+")[0]
    if (found := measured.get(recipe)) and found.step is None:
        return f"not measured, as {recipe}: {_said(found)}"
    steps = {name: found.step.median for name, found in measured.items() if found.step is not None}
    if recipe not in steps:
        return f"{recipe} did not run"
    times = steps[recipe] / min(steps.values())
    return f"not measured: {recipe} takes {times:.1f} times the best recipe's step" if times > FAR_OFF else ""


def _said(found: Measured) -> str:
    if found.mismatches:
        return f"formats in the run differ from the plan: {'; '.join(found.mismatches[:3])}"
    if found.quality is None:
        return f"a step takes over {HOPELESS:g}x the best so far"
    if found.step is None:
        return f"not valid: {found.quality.reason}; by its gradients in eager mode: not compiled"
    return f"{found.step.median:.2f} ms a step{'' if found.quality.valid else ', not valid: ' + found.quality.reason}"


def _row(
    name: str, kind: str, found: Measured | None, failure: str, rounds: Sequence[StepTime], share: float | None
) -> Row:
    quality = found.quality if found else None
    reason = failure or (quality.reason if quality else _said(found) if found else "")
    memory = max((r.memory for r in rounds if r.memory is not None), default=None)
    gap = quality.loss_gap if quality and math.isfinite(quality.loss_gap) else None
    return Row(name, kind, tuple(rounds), memory, gap, bool(quality and quality.valid and not failure), reason, share)


def report(rows: Sequence[Row], prepared: Prepared, options: TuneOptions, rounds: int) -> dict[str, Any]:
    """Rows as JSON, with the best stock recipe and each row's speedup over it (paired rounds)."""
    stock = [row for row in rows if row.kind == "stock" and row.valid and row.step]
    best = min(stock, key=lambda row: row.step.median if row.step else 0.0, default=None)
    return {
        "version": BENCH_VERSION,
        "tool": f"amptune {__version__}",
        "target": options.target.text,
        "device": prepared.device,
        "mode": options.mode,
        "seed": options.seed,
        "rounds": rounds,
        "steps": options.steps,
        "noise": prepared.noise,
        "quality_data": prepared.quality_data,
        "best_stock": best.name if best else None,
        "rows": [_row_json(row, best) for row in rows],
    }


def _row_json(row: Row, best: Row | None) -> dict[str, Any]:
    speedup = low = None
    if best and row.rounds:
        found = Speedup.of(best.rounds, row.rounds)
        speedup, low = found.ratio, found.low
    return {
        "recipe": row.name,
        "kind": row.kind,
        "step_ms": row.step.to_json() if row.step else None,
        "round_medians_ms": [round(one.median, 4) for one in row.rounds],
        "memory_bytes": row.memory_bytes,
        "loss_gap": row.loss_gap,
        "valid": row.valid,
        "reason": row.reason,
        "tensor_core_share": row.tensor_core_share,
        "speedup_over_best_stock": None if speedup is None else round(speedup, 4),
        "speedup_low": None if low is None else round(low, 4),
    }

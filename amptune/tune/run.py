"""``amptune tune`` as one function: from a target to an output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amptune.apply.fits import input_shapes
from amptune.capture import Capture, Target, capture, load_target
from amptune.capture.capturing import takes_gradients
from amptune.core.files import write_atomic
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.plan import INDUCTOR, Plan
from amptune.core.scaler import GradientRecord, choose_scaler
from amptune.core.sensitivity import Sensitivity
from amptune.core.tables import CostTable
from amptune.errors import InputError, TuneError, UsageError
from amptune.patch.instrument import instrument_source, pinnable_sites
from amptune.patch.rewrite import unpatch_source
from amptune.patch.spec import PatchSpec
from amptune.patch.text import read_source
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import with_reasons
from amptune.tune.choices.buildspace import is_pin_candidate
from amptune.tune.choices.destinations import is_destination
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.ownautocast import is_in_fp32, own_autocast_notes
from amptune.tune.choices.space import Space
from amptune.tune.choices.structure import parameter_names
from amptune.tune.finalists.finals import Verdict, decide
from amptune.tune.finalists.finaltime import seconds_to_compile
from amptune.tune.finalists.way import Way
from amptune.tune.learning.splits import split_where_it_pays
from amptune.tune.outputs.emit import Emission, emit, plan_text
from amptune.tune.outputs.result import result_json
from amptune.tune.outputs.stockplan import parameters_note, plan_of_stock
from amptune.tune.quality.roundedloss import rounded_loss_note
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.training import seed_everything
from amptune.tune.search import Search
from amptune.tune.study.progress import Progress
from amptune.tune.study.study import StudyFile, check_study, holds_study, locked_folder, open_study
from amptune.tune.workers.job import Job, Prepared
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError, WorkerProcess, must

SETUP_TIMEOUT = 3600.0
NOTHING_TO_RESUME = "nothing to resume in {}: a new study begins"
_CHANGED = {
    "model": "the model has other operations or shapes than it had then",
    "search_space": "the choices are others than then, by another amptune or torch, or other layers",
}
"""What has changed, where a study has a hash for it."""


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What a tune leaves: the content of result.json, the final plan, the files written, what to take care of."""

    data: dict[str, Any]
    plan: Plan
    verdict: Verdict
    files: dict[str, Path]
    told: tuple[str, ...] = ()


def tune(options: TuneOptions, progress: Progress) -> TuneResult:
    """Search, decide, and write the output folder.

    Raises:
        AmptuneError: see the error tree; what was in the folder before is left as it was unless the search started.
    """
    started = time.monotonic()
    check_study(options.out, options.existing)
    if options.existing == "resume" and not holds_study(options.out):
        progress.line(NOTHING_TO_RESUME.format(options.out))  # at once: the user may have meant another folder
    seed_everything(options.seed)  # here as in the worker, for what a file draws when it is loaded
    target = load_target(options.target)
    refuse_patched(target)
    progress.stage("capturing the model")
    with contextlib.ExitStack() as held:
        worker = held.enter_context(started_worker(progress))
        with progress.timed("capture"):
            seed_everything(options.seed)  # as the worker does, for a make_model that draws its structure
            captured = capture(target)
        progress.notes((*target.notes, *captured.notes, *own_autocast_notes(captured.graph)))
        held.enter_context(locked_folder(options.out, options.existing))
        worker.job = job_of(options, target, captured)
        progress.stage("training the FP32 reference")
        with progress.timed("reference"):
            prepared: Prepared = _ask(worker, "prepare", what="the FP32 reference failed")
        search = _start(options, target, captured, worker, prepared, progress)
        _announce(search)
        with progress.timed("trials"):
            search.run()
        with progress.timed("repeats"):
            verdict = decide(search)
        plan, record = _final_plan(search, verdict)
        data = result_json(search, verdict, time.monotonic() - started, "plan.json")
        spec: PatchSpec = _ask(worker, "patch_spec", captured.graph, what="the model cannot be described")
        rounded: Format | None = _ask(worker, "rounded_loss", plan_candidate(plan), what="the loss failed")
        told = tuple(_told(rounded, plan, target, spec))
        data["notes"] += (*own_autocast_notes(captured.graph), *told)
        data["rounded_loss"] = rounded and rounded.label
        emission = Emission(options.out, target, captured, spec, plan, record, search.table, verdict, data)
        files = emit(emission, lambda path, candidate: _check_emitted(worker, path, candidate))
    return TuneResult(data, plan, verdict, files, told)


def refuse_patched(target: Target) -> None:
    """Raise InputError for a file that a plan is in force in: recipes would be measured on top of it."""
    if target.path is None:
        return
    text, _ = read_source(target.path)
    if unpatch_source(text, str(target.path)) != text:
        stem = target.path.stem.removesuffix("_amptuned")
        if stem != target.path.stem:
            hint = f"name the original, {stem}.py"
        else:
            hint = f"git apply -R {stem}.patch takes the plan out again, where that made it"
        raise InputError(f"{target.path} has a plan of amptune in it, which all recipes would run with", hint=hint)


@contextlib.contextmanager
def started_worker(progress: Progress) -> Iterator[WorkerProcess]:
    """A worker process that gets ready while the model is captured; ``job`` is to be set before the first request."""
    with WorkerProcess(None, progress.stage, progress.still_at_work) as worker:
        worker.start()
        yield worker


def job_of(options: TuneOptions, target: Target, captured: Capture) -> Job:
    """The job of a target's worker, which pins functional ops at their place in the user's source."""
    codes = {site.id: site.code for site in captured.graph if site.code and not site.is_module}
    source, pins = _trial_source(target, captured)
    parameters = parameter_names(captured.model) if captured.model is not None else None
    return Job(options, source, codes, pins, _threads(), takes_gradients(captured.graph), parameters)


def _threads() -> int:
    """Threads of torch on the CPU: as many as OMP_NUM_THREADS says, else one for each core that is free to use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one for each level of nesting
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _may_be_pinned(site: Site) -> bool:
    return is_pin_candidate(site) or is_destination(site)


def _trial_source(target: Target, captured: Capture) -> tuple[str | None, tuple[str, ...]]:
    """The user's file with a lookup at each functional op that a plan may pin, and the sites of these ops.

    None for a model from a package, which has no file to pin in.
    """
    if target.path is None:
        return None, ()
    text, _ = read_source(target.path)
    sites = pinnable_sites(text, target.path, filter(_may_be_pinned, captured.graph))
    return instrument_source(text, {site.code for site in sites}), tuple(site.id for site in sites)


def _start(
    options: TuneOptions,
    target: Target,
    captured: Capture,
    worker: WorkerProcess,
    prepared: Prepared,
    progress: Progress,
) -> Search:
    """Open the study and bring together what the search needs; a resumed study keeps its cost table."""
    graph = captured.graph
    progress.stage("finding what can be chosen")
    with progress.timed("space"):
        space: Space = _ask(worker, "space", graph, what="the search space cannot be built")
    recipes: list[Candidate] = _ask(worker, "recipes", what="the device cannot be asked for its formats")
    parts: Parts = _ask(worker, "parts", what="the model cannot be described") if options.compile_with else Parts()
    identity = {
        "model": graph.fingerprint(),
        "search_space": space.fingerprint(),
        "device": prepared.device.get("gpu"),
        "seed": options.seed,
        "steps": options.steps,
        "objective": options.objective,
        "mode": f"{options.mode}, trials in eager mode" if parts.in_eager else options.mode,
        "params": options.params,
    }
    study = open_study(options.out, options.existing, options.seed)
    header = study.header
    plan_header = _plan_header(target, captured, prepared, options)
    if study.resumed and header:
        _check_same(header["identity"], identity)
        _announce_resumed(study, progress)
        table = CostTable.from_json(header["costs"])
        sensitivity = Sensitivity.from_json(header["sensitivity"])
        fragile: dict[str, tuple[str, ...]] = header.get("fragile", {})
    else:
        if study.resumed:  # it was killed before anything was measured
            progress.line(NOTHING_TO_RESUME.format(options.out))
        table, sensitivity, fragile = _measured_ahead(options, worker, space, graph, progress)
        measured = {"costs": table.to_json(), "sensitivity": sensitivity.to_json(), "fragile": fragile}
        study.start({"identity": identity, **measured})
    costs, split = split_where_it_pays(CostModel(space, table, edges_of(graph, space), sensitivity), fragile)
    for text in split:
        progress.line(f"note: {text}")
    return Search(
        options=options, study=study, worker=worker, prepared=prepared, recipes={c.name: c for c in recipes},
        space=costs.space, table=table, edges=costs.edges, plan_header=plan_header,
        progress=progress, sensitivity=sensitivity, parts=parts, is_plain=is_in_fp32(graph),
        on_best=lambda plan: write_atomic(options.out / "plan.json", plan_text(plan)),
    )  # fmt: skip


def _measured_ahead(
    options: TuneOptions, worker: WorkerProcess, space: Space, graph: PrecisionGraph, progress: Progress
) -> tuple[CostTable, Sensitivity, dict[str, tuple[str, ...]]]:
    """What is measured before the first trial: costs, rounding errors, and the parameters that autocast misleads."""
    with progress.timed("costs"):
        table: CostTable = _ask(worker, "costs", space, graph, what="the cost table cannot be measured")
    with progress.timed("sensitivity"):
        sensitivity: Sensitivity = _ask(worker, "sensitivity", space, what="the rounding errors cannot be measured")
    with progress.timed("gradients"):
        try:
            fragile: dict[str, tuple[str, ...]] = worker.request("fragile", timeout=options.trial_timeout)
        except TrialError as failure:  # as a trial of that recipe will fail, and nothing else
            progress.line(f"note: gradients under autocast were not compared: {failure.reason}")
            fragile = {}
    return table, sensitivity, fragile


def _announce_resumed(study: StudyFile, progress: Progress) -> None:
    """Put trials that have no result in line again, and say so."""
    requeued, lost = study.requeue_interrupted(), study.requeue_lost()
    progress.line(f"continuing after {len(study.records())} trials; in flight, and measured again: {requeued}")
    if lost:
        progress.line(f"tried again, since the worker was lost: {', '.join(lost)}")


def _plan_header(target: Target, captured: Capture, prepared: Prepared, options: TuneOptions) -> dict[str, Any]:
    device = prepared.device
    measured_on = {key: device.get(key) for key in ("gpu", "capability", "torch", "driver")}
    measured_on |= {"mode": options.mode, "inputs": input_shapes(target.make_batch())}
    return {
        "target": target.spec.text,
        "source_sha256": target.source_sha256,
        "fingerprint": captured.graph.fingerprint(),
        "measured_on": measured_on,
        "backend": options.compile_with or INDUCTOR,
    }


def _check_same(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UsageError, naming what changed, unless a study may be continued."""
    for key, value in now.items():
        if then.get(key) != value:
            told = _CHANGED.get(key, f"{key.replace('_', ' ')} then {then.get(key)}, now {value}")
            raise UsageError(
                f"the study cannot be continued: {told}",
                hint="start anew with --overwrite, or choose another --out",
            )


def _announce(search: Search) -> None:
    space, prepared = search.space, search.prepared
    choices = ", ".join(choice.label for choice in space.offered()) or "none"
    search.progress.notes(prepared.notes)
    groups = f"{len(space.groups)} group{'' if len(space.groups) == 1 else 's'}"
    search.progress.line(
        f"{prepared.device.get('gpu')}: choices beside fp32: {choices}; {groups} of sites; "
        f"reference loss {prepared.initial_loss:.4f} -> {prepared.reference_loss:.4f} in {search.options.steps} steps, "
        f"noise {prepared.noise:.3%}, quality on {prepared.quality_data}"
    )
    if search.parts.in_eager:
        search.progress.line(
            f"note: each trial would compile {search.parts.num_layers} layers, for {seconds_to_compile(search):.0f} s "
            "or so: trials run in eager mode, and the finalists are measured both compiled and in eager mode"
        )
    spent = ", ".join(f"{what} {seconds:.1f}" for what, seconds in search.progress.spent.items())
    limit = search.options.timeout
    rest = "" if limit is None else f"; trials and final repeats have {limit:g} from here on"
    search.progress.line(f"seconds before the first trial: {spent}{rest}")


def _final_plan(search: Search, verdict: Verdict) -> tuple[Plan, GradientRecord]:
    """The winner as a plan, with reasons and the tuned scaler."""
    recipe = verdict.record.outcome.recipe
    if recipe is None:
        plan = search.plan_of(verdict.record)
        plan = with_reasons(plan, search.costs, verdict.record.point, search.evidence)
    else:
        fp8_sites = {site for group in search.space.groups for site in group.fp8}
        plan = plan_of_stock(search.recipes[recipe], search.plan_header, fp8_sites)
    if verdict.way is Way.PARTS:
        plan = search.parts.of(plan)
    if verdict.way is Way.EAGER:
        plan = dataclasses.replace(plan, measured_on={**plan.measured_on, "mode": "eager"})
    if not plan.uses_fp16:
        return plan, GradientRecord()
    search.progress.stage("recording gradients for the loss scale")
    record: GradientRecord = _ask(search.worker, "record_gradients", plan, what="the gradients cannot be recorded")
    largest = min(search.largest_scale, verdict.record.outcome.loss_scale or math.inf)
    return dataclasses.replace(plan, scaler=choose_scaler(record, largest=largest)), record


def _told(rounded: Format | None, plan: Plan, target: Target, spec: PatchSpec) -> Iterator[str]:
    """What the user has to know who trains with the plan."""
    makes_optimizer = target.path is not None and spec.optimizer is not None
    notes = (
        rounded_loss_note(rounded, plan, has_loss_fn=target.loss_fn is not None),
        parameters_note(plan, makes_optimizer=makes_optimizer),
    )
    return filter(None, notes)


def _check_emitted(worker: WorkerProcess, path: Path, candidate: Candidate) -> None:
    """Raise TuneError unless the emitted model does what was measured."""
    differences: list[str] = _ask(worker, "check_emitted", path, candidate, what="the patched model does not run")
    if differences:
        raise TuneError(
            f"the patched model differs from the measured plan: {'; '.join(differences[:3])}",
            hint="plan.json is written; please report this model",
        )


def _ask(worker: WorkerProcess, request: str, *arguments: object, what: str) -> Any:
    return must(lambda: worker.request(request, *arguments, timeout=SETUP_TIMEOUT), what)

"""A worker for a model file, and a plan taken all the way: measured, shipped as a patched file, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from amptune.apply.patching import apply_plan_file
from amptune.capture import Target, TargetSpec, capture, load_target
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import Plan
from amptune.tune.choices.space import Space
from amptune.tune.outputs.emit import plan_text
from amptune.tune.run import job_of
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker


def worker_of_file(path: Path) -> tuple[Worker, PrecisionGraph, Space]:
    """A worker for three steps on the CPU, in this process."""
    target = load_target(TargetSpec(str(path)))
    captured = capture(target)
    options = TuneOptions(target.spec, out=path.parent / "out", device="cpu", steps=3)
    worker = Worker(job_of(options, target, captured), lambda *_: None)
    return worker, captured.graph, worker.space(captured.graph)


def assert_valid(worker: Worker, plan: Plan) -> None:
    """The plan is in force in its trial, and trains."""
    measured = worker.trial(plan_candidate(plan), None)
    assert measured.mismatches == ()
    assert measured.quality is not None
    assert measured.quality.valid


def shipped(path: Path, plan: Plan) -> tuple[Target, nn.Module, Any]:
    """The patched file's target, model and batch; compiled, the model gives the same numbers."""
    plan_file = path.with_name("plan.json")
    plan_file.write_text(plan_text(plan))
    folder = path.parent / "applied"
    apply_plan_file(plan_file, TargetSpec(str(path)), folder)
    target = load_target(TargetSpec(str(folder / f"{path.stem}_amptuned.py")))
    model, batch = target.make_model(), target.make_batch()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(target.call(compiled, batch), target.call(model, batch))
    return target, model, batch

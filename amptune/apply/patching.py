"""``amptune apply`` as one function: a plan that exists becomes the patched model, without a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from amptune.apply.fits import check_fits, input_shapes, names_in
from amptune.apply.handoff import patch_spec
from amptune.apply.trial import check_runs
from amptune.capture import Target, capture, load_target
from amptune.capture.execute import source_hash
from amptune.capture.target import TargetSpec
from amptune.core.files import make_folder, write_all_atomic
from amptune.core.plan import Plan
from amptune.core.planfile import read_plan
from amptune.patch.output import patched_files
from amptune.patch.rewrite import plain_source
from amptune.patch.spec import PatchSpec
from amptune.patch.wrapper import wrapper_files


def apply_plan_file(
    plan_path: Path, spec: TargetSpec, out: Path, say: Callable[[str], None] = lambda text: None
) -> dict[str, Path]:
    """Write the patched model of ``plan_path`` for the target into ``out``; returns file name -> path.

    ``say`` is told what the user should know.

    Raises:
        InputError: a file cannot be read or written.
        PlanError: the plan is malformed, newer than this version, or for another model.
        ApplyError: the model does not run with the plan.
    """
    plan = read_plan(plan_path)
    target, sha256 = _unpatched(load_target(spec))
    graph = capture(target).graph
    model = target.make_model()
    inputs = input_shapes(target.make_batch())
    for note in check_fits(plan, graph, names_in(model), plan_path, sha256=sha256, inputs=inputs):
        say(note)
    files = _files(target, plan, patch_spec(target, model, graph))
    check_runs(target, plan, graph)
    make_folder(out)
    write_all_atomic({out / name: content for name, content in files.items()})
    return {name: out / name for name in files}


def _unpatched(target: Target) -> tuple[Target, str]:
    """The target without the plan that its file may have in it already, and the hash of that text."""
    if target.path is None:
        return target, target.source_sha256
    plain = plain_source(target.path)
    return load_target(target.spec, source=plain), source_hash(plain)


def _files(target: Target, plan: Plan, spec: PatchSpec) -> dict[str, bytes]:
    if target.path is None:
        return wrapper_files(target.spec.text, plan, spec)
    return patched_files(target.path, plan, spec)

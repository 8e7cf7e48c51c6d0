"""``amptune apply`` as one function: a plan that exists becomes the patched model, without a search."""

from __future__ import annotations

from pathlib import Path

from amptune.apply.handoff import patch_spec
from amptune.capture import Target, capture, load_target
from amptune.capture.target import TargetSpec
from amptune.core.files import write_all_atomic
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import Plan
from amptune.core.planfile import read_plan
from amptune.errors import InputError, PlanError
from amptune.patch.output import patched_files
from amptune.patch.spec import PatchSpec
from amptune.patch.wrapper import wrapper_files


def apply_plan_file(plan_path: Path, spec: TargetSpec, out: Path) -> dict[str, Path]:
    """Write the patched model of ``plan_path`` for the target into ``out``; returns file name -> path.

    Raises:
        InputError: a file cannot be read or written.
        PlanError: the plan is malformed, newer than this version, or for another model.
    """
    plan = read_plan(plan_path)
    target = load_target(spec)
    graph = capture(target).graph
    model = target.make_model()
    check_fits(plan, graph, {name for name, _ in model.named_modules()}, plan_path)
    files = _files(target, plan, patch_spec(target, model, graph))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror or error}", hint="choose another --out"
        ) from None
    write_all_atomic({out / name: content for name, content in files.items()})
    return {name: out / name for name in files}


def check_fits(plan: Plan, graph: PrecisionGraph, modules: set[str], where: Path) -> None:
    """Raise PlanError, naming sites that are gone, unless the plan's sites are all in this model."""
    gone = [name for name in plan.sites if name not in graph and name not in modules]
    if gone:
        shown = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        raise PlanError(
            f"{where} is for another model: {len(gone)} of its {len(plan.sites)} sites are not in this one: {shown}",
            hint="give the model that it was made for, or run amptune tune again",
        )
    if plan.fingerprint and plan.fingerprint != graph.fingerprint():
        raise PlanError(
            f"{where} is for another model: the names are the same, but operations or shapes differ",
            hint="give the same --arg and --input as for tune, or run amptune tune again",
        )


def _files(target: Target, plan: Plan, spec: PatchSpec) -> dict[str, bytes]:
    if target.path is None:
        return wrapper_files(target.spec.text, plan, spec)
    return patched_files(target.path, plan, spec)

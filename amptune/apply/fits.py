"""Whether a plan is for the model at hand, and what has changed since it was made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from amptune.apply.held import held_values
from amptune.capture.target import batch_tensors
from amptune.core.graph import PrecisionGraph
from amptune.core.nearest import nearest
from amptune.core.plan import Plan
from amptune.errors import PlanError

_SHOWN = 5


def input_shapes(batch: Any) -> list[str]:
    """The tensors of a batch, as ``16x1024:int64``: a plan's times hold for these shapes."""
    return [
        f"{'x'.join(map(str, tensor.shape)) or 'scalar'}:{str(tensor.dtype).removeprefix('torch.')}"
        for tensor in batch_tensors(batch)
    ]


def names_in(model: nn.Module) -> set[str]:
    """Every name that a plan may have a site by, beside functional ops: modules, and tensors that they hold."""
    return {name for name, _ in model.named_modules()} | held_values(model).keys()


def check_fits(
    plan: Plan,
    graph: PrecisionGraph,
    names: Collection[str],
    where: Path,
    *,
    sha256: str = "",
    inputs: Sequence[str] = (),
) -> list[str]:
    """Check that a plan can be used on a model; what the user should know besides comes back.

    Args:
        plan: from a file.
        graph: of the model as it is now.
        names: of its modules and their tensors, see ``names_in``.
        where: the plan's file.
        sha256: hash of the model's file as it is now; empty for a package.
        inputs: shapes of the batch as it is now, see ``input_shapes``; empty where they cannot differ.

    Raises:
        PlanError: sites are gone (each with the nearest name that is there), or operations or shapes differ though
            the batch is the one that was measured.
    """
    changed = bool(plan.source_sha256 and sha256 and plan.source_sha256 != sha256)
    gone = [name for name in plan.sites if name not in graph and name not in names]
    if gone:
        raise _gone(plan, gone, graph, names, where, changed)
    notes = []
    if changed:
        kept = f"; all {len(plan.sites)} sites of the plan are in it" if plan.sites else ""
        notes.append(f"the model's file changed since {where} was made{kept}")
    if plan.fingerprint and plan.fingerprint != graph.fingerprint():
        measured = plan.measured_on.get("inputs")
        if not measured or not inputs or measured == list(inputs):
            raise _differs(plan, where, changed)
        notes.append(
            f"{where} was measured with inputs {_listed(measured)}, here they are {_listed(inputs)}: "
            "the formats hold, the times may not; run amptune tune with this batch to know"
        )
    return notes


def _gone(
    plan: Plan, gone: list[str], graph: PrecisionGraph, names: Collection[str], where: Path, changed: bool
) -> PlanError:
    known = {site.id for site in graph} | set(names)
    free = known - set(plan.sites)
    shown = [_moved(name, free) for name in gone[:_SHOWN]]
    more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
    if changed or len(gone) < len(plan.sites):
        what = f"{where} no longer fits" + (": the model's file changed since it was made, and" if changed else ":")
        hint = "rename these sites in the plan, or run amptune tune again"
    else:
        what, hint = f"{where} is for another model:", "give the model that it was made for, or run amptune tune again"
    message = f"{what} {len(gone)} of its {len(plan.sites)} sites are not in this one: {', '.join(shown)}{more}"
    return PlanError(message, hint=hint)


def _moved(name: str, free: Collection[str]) -> str:
    """A site that is gone, with the most similar name that the plan does not use: of an op among ops of its kind."""
    _, is_function, op = name.partition("#")
    kind = op.rpartition(".")[0]
    alike = [other for other in free if ("#" in other) == bool(is_function)]
    if is_function:
        alike = [other for other in alike if other.partition("#")[2].rpartition(".")[0] == kind] or alike
    same_end = [other for other in alike if other.rpartition(".")[2] == name.rpartition(".")[2]]
    found = nearest(name, same_end) or nearest(name, alike)
    return f"{name} (now {found}?)" if found else name


def _differs(plan: Plan, where: Path, changed: bool) -> PlanError:
    if changed:
        return PlanError(
            f"{where} is for another model: its file changed since, and operations or shapes differ",
            hint="run amptune tune again",
        )
    same = "the names are the same, but " if plan.sites else ""  # without a site, no name was compared
    return PlanError(
        f"{where} is for another model: {same}operations or shapes differ",
        hint="give the model that it was made for, the same --arg and --input as for tune, or run amptune tune again",
    )


def _listed(shapes: Any) -> str:
    return ", ".join(map(str, shapes))

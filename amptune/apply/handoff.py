"""From a live model to what patching needs to know of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from amptune.apply.held import held_values
from amptune.capture import Target, TargetSpec
from amptune.core.graph import PrecisionGraph
from amptune.patch.output import patched_name
from amptune.patch.spec import PatchSpec
from amptune.runtime import keep_loss


def patch_spec(target: Target, model: nn.Module, graph: PrecisionGraph) -> PatchSpec:
    """Where a plan goes in the user's file, or in a file of its own for a model from a package."""
    cls, module = type(model), target.module
    own = target.path is not None and cls.__module__ == module.__name__
    return PatchSpec.from_sites(
        str(target.path or target.spec.text),
        graph,
        module_paths=((name, id(part)) for name, part in model.named_modules(remove_duplicate=False)),
        tensors=held_values(model),
        top_class=cls.__qualname__ if own else None,
        make_model="make_model" if hasattr(module, "make_model") else None,
        loss="loss_fn" if hasattr(module, "loss_fn") else None,
        optimizer="make_optimizer" if hasattr(module, "make_optimizer") else None,
        keeps_loss=bool(keep_loss(model)),
    )


def patched_spec(target: Target, path: Path) -> TargetSpec:
    """How the patched file at ``path`` is loaded, which was made of ``target``.

    A package's callable is wrapped in a file with make_model(); a class of the user's file keeps its name. A file that
    has the name amptune gave it runs as it will where it belongs, beside the user's, whatever folder it still lies in.
    """
    if target.path is None:
        return dataclasses.replace(target.spec, text=str(path))
    name = target.spec.text.partition(":")[2]
    beside = str(target.path) if path.name == patched_name(target.path) else None
    return dataclasses.replace(target.spec, text=f"{path}:{name}" if name else str(path), beside=beside)

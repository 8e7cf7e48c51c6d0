"""What the scripts of this folder share. Each loads an exported file in its library, for the plans that it is given."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from amptune import runtime
from amptune.apply.realised import check_realised
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.core.planfile import read_plan


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder with a plan, the patched model and the exported file."""

    name: str
    folder: Path
    plan: Plan

    def module(self, file: str) -> ModuleType:
        """The exported Python file, imported; what was imported for another case is forgotten."""
        for name in [name for name in sys.modules if name in (file, "net", "net_amptuned")]:
            del sys.modules[name]
        sys.path[:] = [str(self.folder), *(path for path in sys.path if path != str(self.folder))]
        importlib.invalidate_caches()
        return importlib.import_module(file)


def cases() -> Iterator[Case]:
    """The folders on the command line, one for each plan; says of each that it passed."""
    # The copy beside the patched file is the same code; this way realised formats can be looked at.
    sys.modules["amptune_runtime"] = runtime
    for argument in sys.argv[1:]:
        folder = Path(argument)
        yield Case(folder.name, folder, read_plan(folder / "plan.json"))
        print("passed", folder.name, flush=True)


def source_of(package: str) -> Path:
    """Folder of a package whose code is read and not imported, as environment.py put it there."""
    return Path(sys.prefix) / "sources" / package


def check(model: nn.Module, step: Callable[[], object], plan: Plan) -> None:
    """Raise AssertionError unless the step computes every layer in its planned format.

    Nor may a trainer's autocast reach the layers: what the plan does not name would follow it.
    """
    # A plan that is stock autocast, which the trainer enters itself: around its steps, not around the forward that is
    # checked in eval mode.
    own_autocast = "" in plan.sites
    ran: list[bool] = []

    def note_autocast(*_: object) -> None:
        ran.append(torch.is_autocast_enabled("cpu"))

    hooks = [module.register_forward_pre_hook(note_autocast) for module in model.modules() if module is not model]
    differences = [item for item in check_realised(model, step, plan) if item.phase != "eval" or not own_autocast]
    for hook in hooks:
        hook.remove()
    assert ran
    assert any(ran) == own_autocast, "a trainer's autocast region reaches the model"
    assert not differences, [str(item) for item in differences]


def without_fp8(plan: Plan) -> Plan:
    """The plan's sites that are not FP8."""
    return dataclasses.replace(plan, sites={k: v for k, v in plan.sites.items() if not v.format.is_fp8})


def modules_only(plan: Plan) -> Plan:
    """The plan without ops that are pinned in the source."""
    return dataclasses.replace(plan, sites={k: v for k, v in plan.sites.items() if "#" not in k})


def is_low(plan: Plan) -> bool:
    """Whether anything is in 16 bits at all."""
    return any(site.format in (Format.BF16, Format.FP16) for site in plan.sites.values())

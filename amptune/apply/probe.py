"""Which modules must share a format, found by running the model: what a captured graph cannot say.

User code casts by what it sees (``cos.to(x.dtype)``), so the dtype that arrives at an op depends on formats elsewhere.
Every group of modules in a 16-bit format but one, in turn, shows which operands that one group decides.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from amptune import runtime
from amptune.apply.arrivals import Arrivals, Place, run_lowered
from amptune.apply.deciding import (
    Deciding,
    alike_regions,
    arriving_at_regions,
    deciding,
    in_chosen,
    let_in,
    tied_within,
)
from amptune.apply.recorder import ModulePaths, Record, recording
from amptune.apply.support import how_to_apply
from amptune.apply.ties import merged
from amptune.capture.usercode import headline, place_of
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.paths import is_within, upwards


def plannable_modules(model: nn.Module, run: Callable[[], object]) -> dict[str, Literal["swap", "autocast"]]:
    """Modules with weights that one forward calls, and how a format is put in force on each; the finest ones.

    Every one of them needs a format when any has 16 bits: a Linear that the plan leaves out raises on a 16-bit input.
    A module that is read but never called (Mamba's ``conv1d``) takes none, nor does one whose parts take their own.

    Args:
        model: the model, in train mode, so that no fast path hides calls.
        run: one forward; no gradients are needed.
    """
    record = Record()
    with ModulePaths(model, record).watching():
        run()
    found = {
        path: how
        for path, module in model.named_modules()
        if path in record.called and (how := how_to_apply(module)) and next(module.parameters(), None) is not None
    }
    return {path: how for path, how in found.items() if not any(other.startswith(f"{path}.") for other in found)}


def uncalled_modules(
    model: nn.Module, run: Callable[[], object], planned: Collection[str]
) -> dict[str, Literal["swap", "autocast"]]:
    """Modules with weights that one forward neither calls nor reads, and how a format is put in force on each.

    Another batch may call them (an expert that a router chose for none of this one, a branch that depends on data), or
    eval mode: beside layers in 16 bits they need a format too.

    Args:
        model: the model, in train mode.
        run: one forward.
        planned: paths of the modules that take a format by what this forward shows.
    """
    around = {path for name in planned for path in upwards(name)}
    found: dict[str, Literal["swap", "autocast"]] = {
        path: how
        for path, module in model.named_modules()
        if path not in around
        and not is_within(path, planned)
        and next(module.parameters(), None) is not None
        and (how := how_to_apply(module))
    }
    if not found:
        return {}
    with recording(model, set()) as record:
        run()
    read = {path for path in found if any(id(p) in record.read for p in model.get_submodule(path).parameters())}
    found = {path: how for path, how in found.items() if path not in record.called | read}
    return {path: how for path, how in found.items() if not any(other.startswith(f"{path}.") for other in found)}


@dataclasses.dataclass(frozen=True)
class Fixing:
    """A call that keeps groups in FP32.

    Attributes:
        path: of the module whose forward makes it.
        op: its name in the op table.
        line: the user's line that makes it, as ``model.py:12``; empty where none does.
        groups: what arrives there is decided by these.
        has_kernel: it takes 16 bits, but one dtype only, and meets a tensor which no group decides.
        error: what was raised, where that was no torch function but code that is not looked into (TorchScript, an
            extension, a question of the user's for the dtype).
    """

    path: str
    op: str
    line: str
    groups: frozenset[str]
    has_kernel: bool
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Ties:
    """What must agree.

    Attributes:
        groups: disjoint sets of groups that must have one format each.
        fixing: the calls that keep groups in FP32.
        idle: groups whose format reaches nothing but casts, as in ``self.p.to(x.dtype)``.
        joined: module path -> groups that decide what meets where a function of the module takes one dtype only, in an
            autocast region, which casts both.
        kept: (module path, op) of products that autocast lowers, and that are in FP32 with all groups low.
        arriving: name of each group that is a module's region -> groups that decide what its functions meet.
    """

    groups: list[set[str]]
    fixing: tuple[Fixing, ...]
    idle: frozenset[str] = frozenset()
    joined: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    kept: tuple[tuple[str, str], ...] = ()
    arriving: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> dict[tuple[str, str], frozenset[str]]:
        """(module path, op) -> groups that meet a tensor there which no group decides."""
        met: dict[tuple[str, str], frozenset[str]] = {}
        for call in self.fixing:
            if call.has_kernel:
                met[call.path, call.op] = met.get((call.path, call.op), frozenset()) | call.groups
        return met


def tied_by_run(
    model: nn.Module,
    run: Callable[[], object],
    groups: Mapping[str, Collection[str]],
    *,
    low: Format = Format.BF16,
    how: Mapping[str, str] | None = None,
    regions: Mapping[str, Collection[str]] | None = None,
    chosen: Mapping[str, Collection[str]] | None = None,
) -> Ties:
    """Disjoint sets of groups that must have one format each, or an op between them raises.

    A set that holds ``INPUT`` meets a tensor that no group decides (a parameter read by a function, the batch) in an
    op that takes one dtype, or feeds an op that has no 16-bit kernel (fft, linalg): its groups must stay in FP32. Runs
    the model once, and once more for each group; undoes what it applies. Random state and running statistics are the
    caller's to restore.

    Args:
        model: the model, with no plan in force.
        run: one forward, which should include the loss; no gradients are needed.
        groups: name -> module paths that decide together; what is in no group stays as the user wrote it.
        low: the 16-bit format to probe with.
        how: module path -> "autocast" where a module runs in an autocast region though it could be swapped.
        regions: path of a module whose own functions run in an autocast region, in ``low`` -> the groups that it is
            known to be there for.
        chosen: name of a further group -> paths of modules whose own functions run in such a region, if they are low.
    """
    regions, chosen = regions or {}, chosen or {}
    probe = _Probe(model, run, {**groups, **chosen}, low, how or {}, regions, chosen)
    lowered, refusing = probe.lower_what_can()
    left = [name for name in probe.groups if name not in refusing]
    found = deciding(lowered, [*left, *probe.alike], lambda name: probe.lowered_but({name, *refusing}), low)
    found.idle, found.inseparable = found.idle - probe.alike.keys(), found.inseparable - probe.alike.keys()
    own = in_chosen(lowered.joined, regions, chosen)
    # Where a region casts what another one gives, nothing has to agree.
    meets_region = {place for place, names in found.sources.items() if probe.alike.keys() & set[str]().union(*names)}
    passing = meets_region & (lowered.joined - own.keys())
    joined = let_in(found, lowered.joined - own.keys(), regions, probe.alike)
    ties = _ties(found, passing | own.keys(), lowered.joined)
    without_kernel = {
        place: {INPUT}.union(*operands) for place, operands in found.sources.items() if place in lowered.fp32_only
    }
    meeting = {place: names for place, names in ties.items() if INPUT in names}
    fixing = (*refusing.values(), *_fixing(lowered, meeting, True), *_fixing(lowered, without_kernel, False))
    within = tied_within(own, found, runtime.FORMATS[low.label])
    apart = [{INPUT, name} for name in refusing]
    tied = merged([*ties.values(), *within, *without_kernel.values(), *apart, *_together(found.inseparable, left)])
    kept = tuple(dict.fromkeys((path, op) for path, op, _ in lowered.kept))
    return Ties(tied, fixing, frozenset(found.idle), joined, kept, arriving_at_regions(own, found))


@dataclasses.dataclass(frozen=True)
class _Probe:
    """What is asked, as ``tied_by_run`` has it; ``groups`` are those of ``chosen`` too."""

    model: nn.Module
    run: Callable[[], object]
    groups: Mapping[str, Collection[str]]
    low: Format
    how: Mapping[str, str]
    regions: Mapping[str, Collection[str]]
    chosen: Mapping[str, Collection[str]]

    @functools.cached_property
    def alike(self) -> dict[str, list[str]]:
        """A name -> regions that are there for the same groups."""
        return alike_regions(self.regions)

    def lowered_but(self, high: Collection[str]) -> Arrivals:
        """One forward with all groups low but these, which may be names of regions that are left out."""
        off = {path for name in self.alike.keys() & set(high) for path in self.alike[name]}
        high = {*high}.union(*(self.regions[path] for path in off))  # or they would be there
        regions = self.regions.keys() - off
        return run_lowered(self.model, self.run, self.groups, self.low, self.how, regions, self.chosen, high=high)

    def lower_what_can(self) -> tuple[Arrivals, dict[str, Fixing]]:
        """One forward with all groups low but those that cannot be, and these with what was raised."""
        try:
            return self.lowered_but(()), {}
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the user's code takes no 16 bits somewhere
            refusing = refused(self.groups, self.lowered_but)
            return self.lowered_but(refusing), refusing


def _ties(found: Deciding, left_out: Collection[Place], joined: Collection[Place]) -> dict[Place, set[str]]:
    """Calls whose operands different groups decide; what an autocast region joins there need not be FP32."""
    ties = {
        place: set[str]().union(*operands)
        for place, operands in found.sources.items()
        if any(operands[0] != other for other in operands) and place not in left_out
    }
    for place in ties.keys() & joined:
        ties[place].discard(INPUT)
    return ties


def _together(inseparable: set[str], left: Collection[str]) -> list[set[str]]:
    """What the user's code wants in one dtype; with what, nobody knows where it is one group."""
    if len(inseparable) == 1:
        return [set(left)]
    return [inseparable] if inseparable else []


def _fixing(lowered: Arrivals, found: Mapping[Place, set[str]], has_kernel: bool) -> list[Fixing]:
    return [
        Fixing(path, op, lowered.lines[path, op, number], frozenset(names - {INPUT}), has_kernel)
        for (path, op, number), names in found.items()
    ]


def refused(groups: Iterable[str], run: Callable[[Collection[str]], object]) -> dict[str, Fixing]:
    """The groups that cannot have 16 bits, each with what was raised: taken one after the other beside those that can.

    Args:
        groups: names.
        run: one forward with these in FP32 and all others low, which raises where that cannot be.
    """
    names = list(groups)
    refusing: dict[str, Fixing] = {}
    for index, name in enumerate(names):
        try:
            run({*refusing, *names[index + 1 :]})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {headline(error)}".removesuffix(": ")
            line = Path(place_of(error)).name
            refusing[name] = Fixing("", "", line, frozenset({name}), has_kernel=False, error=told)
    return refusing

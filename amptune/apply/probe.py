"""Which modules must share a format, found by running the model: what a captured graph cannot say.

User code casts by what it sees (``cos.to(x.dtype)``), so the dtype that arrives at an op depends on formats elsewhere.
Every group of modules in a 16-bit format but one, in turn, shows which operands that one group decides.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from amptune import runtime
from amptune.apply.recorder import ModulePaths, Record
from amptune.apply.support import how_to_apply
from amptune.apply.ties import merged
from amptune.capture.names import is_in_place, op_name, spelling_of
from amptune.capture.usercode import headline, place_of
from amptune.capture.where import current_place
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.ops import Family, joined_by_autocast, lowered_by_autocast, op_named
from amptune.core.paths import is_within, upwards

Place = tuple[str, str, int]
"""One call of a torch function: path of the running module, op, and how many calls of it came before there."""


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


@dataclasses.dataclass
class _Run:
    """What arrived at the functions that modules without a format of their own called.

    Attributes:
        operands: dtypes of the floating operands of each call.
        computed: calls that compute floating tensors: no casts, no views, no questions such as ``x.shape``.
        one_dtype: calls of ops that raise on mixed dtypes.
        joined: calls of such ops whose operands an autocast region casts to one dtype.
        fp32_only: calls that raised in 16 bits and not in FP32.
        kept: calls of products that autocast lowers, which give FP32.
        lines: the user's line that makes a call of these two kinds, as ``model.py:12``; empty where none does.
    """

    operands: dict[Place, list[torch.dtype]] = dataclasses.field(default_factory=dict)
    computed: set[Place] = dataclasses.field(default_factory=set)
    one_dtype: set[Place] = dataclasses.field(default_factory=set)
    joined: set[Place] = dataclasses.field(default_factory=set)
    fp32_only: set[Place] = dataclasses.field(default_factory=set)
    kept: dict[Place, None] = dataclasses.field(default_factory=dict)
    lines: dict[Place, str] = dataclasses.field(default_factory=dict)


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
    groups = {**groups, **chosen}
    alike = _alike(regions)

    def lowered_but(high: Collection[str]) -> _Run:
        off = {path for name in alike.keys() & set(high) for path in alike[name]}
        high = {*high}.union(*(regions[path] for path in off))  # or they would be there
        return _run(model, run, groups, low, how or {}, regions.keys() - off, chosen, high=high)

    refusing: dict[str, Fixing] = {}
    try:
        lowered = lowered_but(())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the user's code takes no 16 bits somewhere
        refusing = refused(groups, lowered_but)
        lowered = lowered_but(refusing)
    left = [name for name in groups if name not in refusing]
    found = _deciding(lowered, [*left, *alike], lambda name: lowered_but({name, *refusing}), low)
    found.idle, found.inseparable = found.idle - alike.keys(), found.inseparable - alike.keys()
    own = _in_chosen(lowered.joined, regions, chosen)
    # Where a region casts what another one gives, nothing has to agree.
    meets_region = {place for place, names in found.sources.items() if alike.keys() & set[str]().union(*names)}
    passing = meets_region & (lowered.joined - own.keys())
    joined = _let_in(found, lowered.joined - own.keys(), regions, alike)
    ties = {
        place: set[str]().union(*operands)
        for place, operands in found.sources.items()
        if any(operands[0] != other for other in operands) and place not in passing
    }
    ties = {place: names for place, names in ties.items() if place not in own}
    _let_out(ties, lowered.joined)
    meeting = {place: names for place, names in ties.items() if INPUT in names}
    without_kernel = {
        place: {INPUT}.union(*operands) for place, operands in found.sources.items() if place in lowered.fp32_only
    }
    fixing = (*refusing.values(), *_fixing(lowered, meeting, True), *_fixing(lowered, without_kernel, False))
    apart = [{INPUT, name} for name in refusing]
    together = found.inseparable
    if len(together) == 1:  # nobody knows from what
        together = set(left)
    within = _tied_within(own, found, runtime.FORMATS[low.label])
    tied = merged([*ties.values(), *within, *without_kernel.values(), *apart, *([together] if together else [])])
    kept = tuple(dict.fromkeys((path, op) for path, op, _ in lowered.kept))
    return Ties(tied, fixing, frozenset(found.idle), joined, kept, _arriving(own, found))


@dataclasses.dataclass
class _Deciding:
    """What shows when each group in turn is in FP32.

    Attributes:
        sources: for the calls that keep groups together or in FP32, the groups that decide each operand's dtype.
        idle: groups that decide nothing that computes.
        inseparable: groups that the user's code wants in one dtype with others.
        raised: for each group, the dtypes of those operands where it is in FP32.
    """

    sources: dict[Place, list[set[str]]]
    idle: set[str] = dataclasses.field(default_factory=set)
    inseparable: set[str] = dataclasses.field(default_factory=set)
    raised: dict[str, dict[Place, list[torch.dtype]]] = dataclasses.field(default_factory=dict)


def _deciding(lowered: _Run, names: Collection[str], raise_one: Callable[[str], _Run], low: Format) -> _Deciding:
    low_dtype = runtime.FORMATS[low.label]
    # What no group lowers is FP32 in every run, and so says nothing of the groups.
    found = _Deciding({
        place: [set() if dtype == low_dtype else {INPUT} for dtype in dtypes]
        for place, dtypes in lowered.operands.items()
        if place in lowered.one_dtype | lowered.fp32_only | lowered.joined
    })  # fmt: skip
    for name in names:
        try:
            raised = raise_one(name)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the user's code asks that this and another have one dtype
            found.inseparable.add(name)
            continue
        if not _differ(lowered, raised):
            found.idle.add(name)
        found.raised[name] = {place: raised.operands[place] for place in found.sources if place in raised.operands}
        for place, operands in found.sources.items():
            for deciding, dtype in zip(operands, raised.operands.get(place, ()), strict=False):
                if dtype != low_dtype and INPUT not in deciding:
                    deciding.add(name)
    return found


def _in_chosen(
    joined: Iterable[Place], regions: Collection[str], chosen: Mapping[str, Collection[str]]
) -> dict[Place, str]:
    """The calls that a region of a ``chosen`` group joins, each with that group."""
    owner = dict.fromkeys(regions, "") | {path: name for name, paths in chosen.items() for path in paths}
    found = {}
    for place in joined:
        name = next((owner[path] for path in upwards(place[0]) if path in owner), "")
        if name:
            found[place] = name
    return found


def _tied_within(own: Mapping[Place, str], found: _Deciding, low: torch.dtype) -> list[set[str]]:
    """What has to agree where the region of a call is left out: what comes in from outside of it is cast up there, and
    what its own layers give is not."""
    ties = []
    for place, name in own.items():
        operands = list(zip(found.sources[place], found.raised.get(name, {}).get(place, ()), strict=False))
        inner = set[str]().union(*(sources for sources, dtype in operands if dtype == low)) - {INPUT}
        is_mixed = any(dtype != low for _, dtype in operands)
        ties.append(inner | {name} if inner and is_mixed else inner)
    return ties


def _arriving(own: Mapping[Place, str], found: _Deciding) -> dict[str, frozenset[str]]:
    arriving: dict[str, frozenset[str]] = {}
    for place, name in own.items():
        sources = frozenset[str]().union(*found.sources[place]) - {INPUT, name}
        arriving[name] = arriving.get(name, frozenset()) | sources
    return arriving


def _alike(regions: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """A name -> regions that are there for the same groups, as those of repeated blocks, which are one to look at."""
    alike: dict[frozenset[str], list[str]] = {}
    for path, feeds in regions.items():
        alike.setdefault(frozenset(feeds), []).append(path)
    return {f"@{paths[0]}": paths for paths in alike.values()}


def _let_in(
    found: _Deciding, joined: Iterable[Place], regions: Mapping[str, Collection[str]], alike: Mapping[str, list[str]]
) -> dict[str, frozenset[str]]:
    """Module path -> groups for which an autocast region has to be there: they decide what meets in its functions.

    What another region decides is decided by the groups that this is there for, which are put in its place in
    ``found`` too.
    """
    names: dict[str, frozenset[str]] = {}
    for place in joined:
        operands = found.sources[place]
        if any(operands[0] != other for other in operands):
            names[place[0]] = names.get(place[0], frozenset()).union(*operands) - {INPUT}
    fed = {name: set(regions[paths[0]]) for name, paths in alike.items()}
    for name, paths in alike.items():
        fed[name].update(*(groups for path, groups in names.items() if is_within(path, paths)))
    for _ in fed:  # what goes through as many regions as there are
        fed = {name: groups.union(*(fed[other] for other in groups & fed.keys())) for name, groups in fed.items()}

    def spelt(groups: Iterable[str]) -> set[str]:
        return {group for name in groups for group in fed.get(name, {name})} - fed.keys()

    for place, operands in found.sources.items():
        found.sources[place] = [spelt(operand) for operand in operands]
    return {path: frozenset(spelt(groups)) for path, groups in names.items()}


def _let_out(ties: dict[Place, set[str]], joined: Collection[Place]) -> None:
    """Take the mark of FP32 off the ties that an autocast region joins."""
    for place in ties.keys() & joined:
        ties[place].discard(INPUT)


def _fixing(lowered: _Run, found: Mapping[Place, set[str]], has_kernel: bool) -> list[Fixing]:
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


def _differ(one: _Run, other: _Run) -> bool:
    """Whether something else arrives at what computes."""
    return any(one.operands.get(place) != other.operands.get(place) for place in one.computed | other.computed)


def _run(
    model: nn.Module,
    run: Callable[[], object],
    groups: Mapping[str, Collection[str]],
    low: Format,
    how: Mapping[str, str],
    regions: Collection[str],
    chosen: Mapping[str, Collection[str]],
    high: Collection[str],
) -> _Run:
    """One forward with all groups low but those of ``high``."""
    own_regions = {path for paths in chosen.values() for path in paths}
    how = {**how, **dict.fromkeys(own_regions, "autocast")}
    table: dict[str, dict[str, Any]] = {path: {"format": low.label, "how": "autocast"} for path in regions}
    for name, paths in groups.items():
        for path in paths:
            table[path] = {"format": Format.FP32.label if name in high else low.label, "how": how.get(path)}
    applied = runtime.apply_plan(model, table)
    running = ModulePaths(model)
    mode = _Tolerant(running, set(table).difference(regions, own_regions))
    try:
        with running.watching(), mode:
            run()
    finally:
        applied.undo()
    return mode.seen


class _Tolerant(TorchFunctionMode):
    """Notes the dtypes that arrive at functions, and lets the run go on where they would raise."""

    def __init__(self, paths: ModulePaths, planned: set[str]) -> None:
        super().__init__()
        self.seen = _Run()
        self._paths = paths
        self._planned = planned
        self._count: collections.Counter[tuple[str, str]] = collections.Counter()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = runtime.as_met(args, kwargs or {})
        # A planned module casts for itself.
        if any(path in self._planned for path in self._paths.running):
            return func(*args, **kwargs)
        tensors = [tensor for tensor in runtime.tensors_in((args, kwargs)) if tensor.is_floating_point()]
        if not tensors:
            return func(*args, **kwargs)
        dtypes = [tensor.dtype for tensor in tensors]
        op = op_name(func, args)
        place = self._place(op)
        self.seen.operands[place] = dtypes
        if op_named(op).same_dtype and _is_joined(op, tensors):
            self.seen.joined.add(place)
        elif op_named(op).same_dtype:
            self.seen.one_dtype.add(place)
            self.seen.lines[place] = _line()
            args, kwargs = _with_one_dtype(func, args, kwargs, dtypes)
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, NotImplementedError):
            if torch.float32 in dtypes and len(set(dtypes)) == 1:
                raise
            result = func(*runtime.cast_all(args, torch.float32), **runtime.cast_all(kwargs, torch.float32))
            self.seen.fp32_only.add(place)
            self.seen.lines[place] = _line()
        if op_named(op).family not in (Family.CAST, Family.VIEW) and _gives_floating(result):
            self.seen.computed.add(place)
        if self._paths.running and lowered_by_autocast(op, tensors[0].device.type) and _is_fp32(tensors, result):
            self.seen.kept[place] = None
        return result

    def _place(self, op: str) -> Place:
        path = self._paths.running[-1] if self._paths.running else ""
        self._count[path, op] += 1
        return path, op, self._count[path, op]


def _is_joined(op: str, tensors: list[torch.Tensor]) -> bool:
    """Whether an autocast region is on that casts the operands to one dtype."""
    device = tensors[0].device.type
    return (
        torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
        and joined_by_autocast(op, device)
        and all(tensor.dtype != torch.float64 for tensor in tensors)  # which autocast leaves alone
    )


def _is_fp32(tensors: list[torch.Tensor], result: Any) -> bool:
    """Whether a product of FP32 tensors gives FP32."""
    given = [tensor for tensor in runtime.tensors_in(result) if tensor.is_floating_point()]
    return bool(given) and len(tensors) > 1 and all(tensor.dtype == torch.float32 for tensor in (*tensors, *given))


def _gives_floating(result: Any) -> bool:
    return any(tensor.is_floating_point() for tensor in runtime.tensors_in(result))


def _line() -> str:
    """The user's line that makes the running call, with the name of its file alone: a plan is read elsewhere too."""
    reader = current_place(2).reader
    return f"{Path(reader.filename).name}:{reader.line}" if reader else ""


def _with_one_dtype(func: Callable[..., Any], args: Any, kwargs: Any, dtypes: list[torch.dtype]) -> Any:
    if len(set(dtypes)) < 2:
        return args, kwargs
    # What is written to keeps its dtype.
    dtype = args[0].dtype if is_in_place(spelling_of(func)) else torch.float32
    return runtime.cast_all((args, kwargs), dtype)

"""The search space: groups of sites that decide together, the choices of a whole plan, and the way to a Plan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from amptune.apply import (
    Ties,
    held_tensors,
    held_values,
    how_to_apply,
    meet_in_one_op,
    multiplies,
    plannable_modules,
    strided_where_safe,
    tied_by_run,
)
from amptune.core.choice import BF16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph, Site
from amptune.core.ops import Family, op_named
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.core.tables import CostTable
from amptune.tune.destinations import Destination, find_destinations, is_destination, pinned
from amptune.tune.recipes import Candidate
from amptune.tune.training import Workbench, loss_of, seed_everything, training

PINNED_FAMILIES = frozenset({Family.SENSITIVE, Family.REDUCTION, Family.SOFTMAX, Family.NORM})
"""Functional ops of these families may be pinned in FP32 at their source line; the others follow their inputs."""
HIGH, FOLLOW = "fp32", "follow"
FP8_MULTIPLE = 16
"""Every dimension of an FP8 matrix product must be a multiple of this: cuBLASLt's rule, which torch checks."""
LOSS = "loss_fn"
COMPILED_LOSS = "fp32-compiled"
_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


How = Literal["swap", "follow", "source", "autocast", "own"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Sites with one decision: same role in repeated blocks, or tied because their outputs meet in one op.

    Attributes:
        name: the role, with block numbers as ``*``; for a pin the op's place in the source.
        sites: ids of the sites.
        kind: ``module`` chooses one of ``choices``, ``pin`` chooses FP32 or to follow, ``fixed`` has no choice: its
            outputs meet a tensor that no plan casts, in an op that takes one dtype only. ``destination`` is such an op
            that can be pinned in FP32, which it is where any of the sites in ``feeds`` is in 16 bits.
        how: how each site is put in force, in the order of ``sites``.
        choices: what a module group may be, FP32 first.
        fp8: sites that FP8 fits, by their kind and dimensions; the others run in BF16 where the group is FP8.
        multiplies: whether its sites are matrix products or hold some, which autocast lowers too.
        feeds: of a destination, the sites that decide what arrives.
    """

    name: str
    sites: tuple[str, ...]
    kind: Literal["module", "pin", "fixed", "destination"]
    how: tuple[How, ...]
    choices: tuple[Choice, ...] = ()
    fp8: frozenset[str] = frozenset()
    multiplies: bool = False
    feeds: frozenset[str] = frozenset()

    @property
    def has_format(self) -> bool:
        """Whether each site has a format by the choice of this group: not what is pinned at its line."""
        return self.kind in ("module", "fixed")

    def values(self) -> tuple[str, ...]:
        """The values of this group's choice in a point, FP32 first; empty where there is nothing to choose."""
        if self.kind == "pin":
            return (HIGH, FOLLOW)
        return tuple(choice.label for choice in self.choices) if self.kind == "module" else ()

    def site_choice(self, site: str, chosen: Choice) -> Choice:
        """What one site runs in where the group is ``chosen``."""
        return BF16 if chosen.format.is_fp8 and site not in self.fp8 else chosen

    def site_choices(self, site: str) -> tuple[Choice, ...]:
        """What one site can come to run in."""
        return tuple(dict.fromkeys(self.site_choice(site, choice) for choice in self.choices))


@dataclasses.dataclass(frozen=True)
class Space:
    """All choices of a plan.

    A point is a dict: name of a module group -> label of a ``Choice``, name of a pin -> ``fp32`` or ``follow``;
    ``:tf32`` and ``:channels_last`` where the device and the model have them, and ``:loss`` where the loss is the
    user's function: ``fp32``, ``follow`` (the format that the output has) or ``fp32-compiled`` (torch.compile of the
    loss alone: the cast up then costs no memory).

    Attributes:
        groups: what decides together.
        tf32: whether ``:tf32`` is a choice.
        channels_last: whether ``:channels_last`` is one.
        losses: values of ``:loss``; empty where it is no choice.
        meets: sets of module groups whose outputs meet in an op that promotes: FP16 and BF16 in one of them would give
            FP32 without a word, so that is no legal point.
        no_fp8: Linear site -> why FP8 does not fit it, where the device has FP8.
        strided: sites whose padded output need not be copied, as a run has shown.
    """

    groups: tuple[Group, ...]
    tf32: bool
    channels_last: bool
    losses: tuple[str, ...] = ()
    meets: tuple[frozenset[str], ...] = ()
    no_fp8: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    strided: frozenset[str] = frozenset()

    def module_groups(self) -> list[Group]:
        """Groups that choose a format."""
        return [group for group in self.groups if group.kind == "module"]

    def held(self) -> frozenset[str]:
        """Sites that are no modules: parameters and buffers that read as casts of themselves."""
        pairs = (pair for group in self.groups for pair in zip(group.sites, group.how, strict=True))
        return frozenset(site for site, how in pairs if how == "own")

    def offered(self) -> tuple[Choice, ...]:
        """Every choice beside FP32 that some group has, in order."""
        return tuple(sorted({choice for group in self.module_groups() for choice in group.choices} - {FP32}))

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Name of each choice and its values, in a fixed order."""
        choices = {group.name: values for group in self.groups if (values := group.values())}
        if self.losses:
            choices[":loss"] = self.losses
        if self.tf32:
            choices[":tf32"] = ("on", "off")
        if self.channels_last:
            choices[":channels_last"] = ("off", "on")
        return choices

    def point(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """A full point from the choices that differ from FP32 everywhere."""
        return {name: chosen.get(name, values[0]) for name, values in self.choices().items()}

    def uniform(self, choice: Choice) -> dict[str, str]:
        """The point with ``choice`` wherever it is legal, BF16 where FP8 does not fit, and FP32 elsewhere."""
        chosen: dict[str, str] = {}
        for group in self.module_groups():
            legal = [c for c in (choice, Choice(choice.output_format)) if c in group.choices]
            chosen[group.name] = (legal or [FP32])[0].label
        return self.point(chosen)

    def site_choices(self, point: Mapping[str, str]) -> dict[str, Choice]:
        """What each site of the module groups runs in at ``point``, and FP32 for what is fixed."""
        chosen: dict[str, Choice] = {}
        for group in self.groups:
            if group.has_format:
                choice = Choice.parse(point.get(group.name, HIGH)) if group.kind == "module" else FP32
                chosen |= {site: group.site_choice(site, choice) for site in group.sites}
        return chosen

    def under_autocast(self, number_format: Format) -> dict[str, str]:
        """The point most like autocast in a 16-bit format: products are lowered, and sensitive ops stay in FP32."""
        low = Choice(number_format)
        groups = [group for group in self.module_groups() if group.multiplies and low in group.choices]
        return self.point({group.name: low.label for group in groups})

    def is_legal(self, point: Mapping[str, str]) -> bool:
        """Whether FP16 and BF16 meet nowhere."""
        return not any(len(self._halves(point, names)) > 1 for names in self.meets)

    def made_legal(self, point: Mapping[str, str]) -> dict[str, str]:
        """The point, with what is FP16 turned into BF16 wherever the two meet (or into FP32 where BF16 is none)."""
        legal = dict(point)
        values = self.choices()
        # Turning one group can make it meet another; each round turns at least one, so this ends.
        while clashing := [names for names in self.meets if len(self._halves(legal, names)) > 1]:
            for name in clashing[0]:
                if Choice.parse(legal[name]).output_format is Format.FP16:
                    legal[name] = BF16.label if BF16.label in values[name] else HIGH
        return legal

    def _halves(self, point: Mapping[str, str], names: Iterable[str]) -> set[Format]:
        return {Choice.parse(point[name]).output_format for name in names} - {Format.FP32}

    def fingerprint(self) -> str:
        """Changes when the space does: a study of another space is not continued."""
        groups = [(g.name, g.sites, g.how, sorted(g.fp8)) for g in self.groups]
        text = json.dumps([self.choices(), groups, sorted(self.strided)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def decode(self, point: Mapping[str, str], table: CostTable, header: Mapping[str, Any]) -> Plan:
        """The plan of a point. ``header`` gives the fields that name the model and the device."""
        chosen = self.site_choices(point)
        sites: dict[str, SitePlan] = {}
        for group in self.groups:
            for site, how in zip(group.sites, group.how, strict=True):
                if group.has_format:
                    choice, cost = chosen[site], table.site(site, chosen[site])
                    strided = bool(cost.pad) and site in self.strided
                    sites[site] = SitePlan(
                        choice.format, choice.scaling, cost.pad, how, pad_in=cost.pad_in, strided=strided
                    )
                elif group.kind == "destination" and all(chosen[feed] == FP32 for feed in group.feeds):
                    continue
                elif point.get(group.name, HIGH) == HIGH:
                    sites[site] = SitePlan(Format.FP32, how=how)
        plan = Plan(
            sites=sites,
            tf32=point.get(":tf32") == "on",
            channels_last=point.get(":channels_last") == "on",
            loss_format=None if point.get(":loss") == "follow" else Format.FP32,
            loss_compile=point.get(":loss") == COMPILED_LOSS,
            **header,
        )
        return dataclasses.replace(plan, scaler=ScalerConfig(enabled=plan.uses_fp16))


def build_space(
    bench: Workbench,
    graph: PrecisionGraph,
    batch: Any,
    *,
    pins: Collection[str] = (),
    losses: tuple[str, ...] = (),
) -> Space:
    """The space of a model on a device.

    Args:
        bench: the live model, which is run to see what can be planned and what must agree.
        graph: its sites.
        batch: what to run it on.
        pins: functional sites that can be pinned in the user's source.
        losses: choices of the loss; empty when it is not a function of the user's.
    """
    choices = tuple(Choice(number_format) for number_format in bench.device.formats())
    if BF16 in choices:
        choices += bench.device.fp8_choices()
    can_pin = [graph[site] for site in pins]
    groups = _module_groups(bench, graph, batch, choices, filter(is_destination, can_pin)) if choices else []
    if any(group.kind == "module" for group in groups):
        groups += _leaf_pins(bench.model, graph) + _source_pins(filter(is_pin_candidate, can_pin))
    else:  # all is FP32: to pin an op in it, or to cast the loss up to it, changes nothing
        losses = tuple(loss for loss in losses if loss != FOLLOW)
    has_convolutions = any(op_named(site.op).family is Family.CONV and "2d" in site.op for site in graph)
    meets = _meeting(graph, [group for group in groups if group.kind == "module"])
    reasons = _no_fp8(bench.model, graph, groups) if any(choice.format.is_fp8 for choice in choices) else {}
    strided = _strided(bench, batch, groups)
    return Space(tuple(groups), bench.device.has_tf32(), has_convolutions, losses, meets, reasons, strided)


def _strided(bench: Workbench, batch: Any, groups: Iterable[Group]) -> frozenset[str]:
    """Sites whose padded output may stay uncopied, by running the FP32 model and its loss."""
    fp32 = Candidate("fp32")
    swapped = [
        site
        for group in groups
        if group.kind == "module"
        for site, how in zip(group.sites, group.how, strict=True)
        if how == "swap"
    ]
    with training(bench, fp32):

        def run() -> torch.Tensor:
            seed_everything(0)
            return loss_of(bench, fp32, batch)

        found = strided_where_safe(bench.model, run, swapped)
    bench.restore()
    return found


def _no_fp8(model: nn.Module, graph: PrecisionGraph, groups: Iterable[Group]) -> dict[str, str]:
    """Which dimensions keep a Linear from FP8."""
    sites = (site for group in groups if group.kind == "module" for site in group.sites if site not in group.fp8)
    linears = (site for site in sites if site in graph and type(model.get_submodule(site)) is nn.Linear)
    return {site: why for site in linears if (why := why_no_fp8(graph[site]))}


def why_no_fp8(site: Site) -> str:
    """The dimensions of a product that are no multiples of 16: K=100 is no multiple of 16; empty where all are."""
    sizes = {f"{name.upper()}={getattr(gemm, name)}": getattr(gemm, name) for gemm in site.gemms for name in "mnk"}
    wrong = [text for text, size in sizes.items() if size % FP8_MULTIPLE]
    return f"{', '.join(wrong)} is no multiple of {FP8_MULTIPLE}" if wrong else ""


def _meeting(graph: PrecisionGraph, groups: Sequence[Group]) -> tuple[frozenset[str], ...]:
    """The largest sets of groups whose outputs meet in an op that promotes."""
    group_of = {site: group.name for group in groups for site in group.sites}
    sets = {frozenset(group_of[site] for site in sites if site in group_of) for sites in meet_in_one_op(graph)}
    return tuple(sorted((s for s in sets if len(s) > 1 and not any(s < other for other in sets)), key=sorted))


def role_of(path: str) -> str:
    """The path with every block number replaced by ``*``: what repeated blocks have in common."""
    return _INDEX.sub("*", path)


def _module_groups(
    bench: Workbench, graph: PrecisionGraph, batch: Any, choices: tuple[Choice, ...], destinations: Iterable[Site]
) -> list[Group]:
    """Modules with weights, and tensors that a module holds beside its layers: same role and class decide together,
    and so does what meets in an op of one dtype. After them, which of ``destinations`` have to be pinned for that."""
    fp32 = Candidate("fp32")
    with training(bench, fp32):

        def run() -> None:
            with bench.no_gradients():
                loss_of(bench, fp32, batch)

        how: dict[str, How] = dict(plannable_modules(bench.model, run))
        own: How = "own"
        how |= dict.fromkeys(held_tensors(bench.model, graph, how, run), own)
        roles = _by_role(bench.model, how)

        def tied() -> Ties:
            return tied_by_run(bench.model, run, roles, low=choices[0].format, how=how)

        found = tied()
        opened = find_destinations(destinations, found.met)
        if opened:
            with pinned(opened):
                found = tied()
    bench.restore()
    ties = found.groups
    tie_of = {name: index for index, tie in enumerate(ties) for name in tie - {INPUT}}
    joined: dict[str, list[str]] = {}
    for name in roles:
        joined.setdefault(f"tie {tie_of[name]}" if name in tie_of else name, []).append(name)
    fixed = [any(INPUT in tie and names[0] in tie for tie in ties) for names in joined.values()]
    fp8 = frozenset(path for path in how if path in graph and fp8_fits(bench.model.get_submodule(path), graph[path]))
    modules = [path for path, by in how.items() if by != "own"]
    multiply = frozenset(path for path in modules if multiplies(bench.model.get_submodule(path)))
    groups = [
        _joined(names, roles, how, () if is_fixed else choices, fp8, multiply)
        for names, is_fixed in zip(joined.values(), fixed, strict=True)
    ]
    return groups + _destination_groups(opened, roles, [site for g in groups if g.kind == "fixed" for site in g.sites])


def _destination_groups(
    opened: Iterable[Destination], roles: Mapping[str, list[str]], fixed: Collection[str]
) -> list[Group]:
    """The destinations that something in 16 bits can reach."""
    found = []
    for one in opened:
        feeds = frozenset(site for name in one.feeds for site in roles[name]).difference(fixed)
        if feeds:
            source: How = "source"
            found.append(Group(one.place, one.sites, "destination", (source,) * len(one.sites), feeds=feeds))
    return found


def fp8_fits(module: nn.Module, site: Site) -> bool:
    """Whether FP8 can run this site: a Linear, all three dimensions of its products multiples of 16."""
    return type(module) is nn.Linear and bool(site.gemms) and not why_no_fp8(site)


def _by_role(model: nn.Module, paths: Iterable[str]) -> dict[str, list[str]]:
    """Name of a group -> paths with the same role, class and shapes of parameters: what costs and fails alike."""
    roles: dict[tuple[str, str, tuple[torch.Size, ...]], list[str]] = {}
    held = held_values(model)
    shapes: tuple[torch.Size, ...]
    for path in paths:
        if path in held:
            kind, shapes = "Tensor", (held[path].shape,)
        else:
            module = model.get_submodule(path)
            kind, shapes = type(module).__name__, tuple(parameter.shape for parameter in module.parameters())
        roles.setdefault((role_of(path), kind, shapes), []).append(path)
    count = Counter(role for role, _, _ in roles)
    return {role if count[role] == 1 else _told_apart(role, found): found for (role, _, _), found in roles.items()}


def _told_apart(role: str, paths: list[str]) -> str:
    """A name for one of several groups of a role: its path, or the role with its first member."""
    return paths[0] if len(paths) == 1 else f"{role} as {paths[0]}"


def _joined(
    names: list[str],
    roles: Mapping[str, list[str]],
    how: Mapping[str, How],
    choices: tuple[Choice, ...],
    fp8: frozenset[str],
    multiply: frozenset[str],
) -> Group:
    """One group of these roles; without ``choices`` it is fixed in FP32."""
    sites = tuple(path for name in names for path in roles[name])
    label = "+".join(names) if len(names) <= 4 else f"{names[0]}+{len(names) - 1} more"
    fitting = fp8.intersection(site for site in sites if how[site] == "swap")
    legal = tuple(choice for choice in choices if fitting or not choice.format.is_fp8)
    methods = tuple(how[site] for site in sites)
    if not choices:
        return Group(label, sites, "fixed", methods)
    return Group(label, sites, "module", methods, (FP32, *legal), fitting, not multiply.isdisjoint(sites))


def _leaf_pins(model: nn.Module, graph: PrecisionGraph) -> list[Group]:
    """Leaf modules without weights that are sensitive (Softmax, Softplus ...): FP32, or the format of their input."""
    by_role: dict[str, list[str]] = {}
    for site in graph:
        is_leaf = site.is_module and not site.params and site.module != LOSS
        if is_leaf and _is_sensitive(site) and how_to_apply(model.get_submodule(site.module)) == "swap":
            by_role.setdefault(role_of(site.id), []).append(site.id)
    swap: How = "swap"
    return [Group(role, tuple(sites), "pin", (swap,) * len(sites)) for role, sites in by_role.items()]


def is_pin_candidate(site: Site) -> bool:
    """Whether a functional site may need FP32 by itself. The loss is left out: its format is a choice of its own."""
    return not site.is_module and site.module != LOSS and _is_sensitive(site)


def _is_sensitive(site: Site) -> bool:
    op = op_named(site.op)
    return bool(op.why_sensitive) and op.family in PINNED_FAMILIES


def _source_pins(sites: Iterable[Site]) -> list[Group]:
    """One group for all calls of an op in one function: the formats that ran can be told apart by op, not by call."""
    by_place: dict[str, list[str]] = {}
    for site in sites:
        by_place.setdefault(site.code.rpartition(".")[0], []).append(site.id)
    source: How = "source"
    return [Group(place, tuple(ids), "pin", (source,) * len(ids)) for place, ids in by_place.items()]

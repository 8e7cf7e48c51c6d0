"""Builds the search space: what of a live model can be planned, what must decide together, and what has no choice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from amptune.apply import (
    has_own_kernel,
    how_to_apply,
    meet_in_one_op,
    multiplies,
    strided_where_safe,
)
from amptune.capture.fakes import map_tensors
from amptune.core.choice import BF16, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT, LOSS, PrecisionGraph, Site
from amptune.core.hardware import FP8_MULTIPLE
from amptune.core.ops import Family, op_named
from amptune.core.plan import HELD, Plan
from amptune.runtime import cast_all
from amptune.tune.choices.destinations import Destination, is_destination
from amptune.tune.choices.fixed import why_fixed
from amptune.tune.choices.foundspace import Found, Uncalled, found_by_running, role_of
from amptune.tune.choices.idlepins import with_arriving
from amptune.tune.choices.regions import Region
from amptune.tune.choices.space import FOLLOW, Group, How, Space
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.training import Workbench, loss_of, seed_everything, training

PINNED_FAMILIES = frozenset({Family.SENSITIVE, Family.REDUCTION, Family.SOFTMAX, Family.NORM})
"""Functional ops of these families may be pinned in FP32 at their source line; the others follow their inputs."""


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
    if any(parameter.is_complex() and parameter.requires_grad for parameter in bench.model.parameters()):
        choices = tuple(choice for choice in choices if choice != FP16)  # torch.amp.GradScaler takes none of these
    if BF16 in choices:
        choices += bench.device.fp8_choices()
    can_pin = [graph[site] for site in pins]
    if choices and FOLLOW in losses and not _loss_may_follow(bench, batch, choices[0].format):
        losses = tuple(loss for loss in losses if loss != FOLLOW)
    # A loss that is always computed in FP32 keeps nothing before it there.
    as_run = plan_candidate(Plan({})) if losses and FOLLOW not in losses else Candidate("fp32")
    groups, fixed, uncalled = (
        _module_groups(bench, graph, batch, choices, filter(is_destination, can_pin), as_run)
        if choices
        else ([], {}, {})
    )
    if any(group.kind == "module" for group in groups):
        pins_found = _leaf_pins(bench.model, graph) + _source_pins(filter(is_pin_candidate, can_pin))
        groups += _with_losses(graph, pins_found, groups)
    else:  # all is FP32: to pin an op in it, or to cast the loss up to it, changes nothing
        losses = tuple(loss for loss in losses if loss != FOLLOW)
    has_convolutions = any(op_named(site.op).family is Family.CONV and "2d" in site.op for site in graph)
    meets = _meeting(graph, [group for group in groups if group.kind == "module"])
    no_fp8 = _no_fp8(bench.model, graph, groups) if any(choice.format.is_fp8 for choice in choices) else {}
    strided = _strided(bench, batch, groups)
    tf32 = bench.device.has_tf32()
    rewritten = _rewritten(bench.model, groups)
    space = Space(
        tuple(groups), tf32, has_convolutions, losses, meets, no_fp8, fixed, strided,
        uncalled=uncalled, rewritten=rewritten,
    )  # fmt: skip
    return with_arriving(graph, space)


def _rewritten(model: nn.Module, groups: Iterable[Group]) -> frozenset[str]:
    """Sites that a plan computes with another kernel than the user's code has, whatever their format."""
    swapped = (
        site for group in groups for site, how in zip(group.sites, group.how, strict=True)
        if group.has_format and how == "swap" and "#" not in site
    )  # fmt: skip
    return frozenset(site for site in swapped if has_own_kernel(model.get_submodule(site)))


def _loss_may_follow(bench: Workbench, batch: Any, low: Format) -> bool:
    """Whether the loss on outputs in a format is a choice beside the loss on the same outputs cast up to FP32.

    It is none where the loss or its gradient cannot be computed: one with weights of its own in FP32 may raise, and
    some kernels of a backward take one dtype where the forward promotes: ``mse_loss`` and ``huber_loss`` of an output
    in BF16 and a target in FP32. Nor where both are the same to the last bit, as with ``output.float()`` or a
    difference to a target in FP32: two plans that differ in that alone are one.
    """
    with training(bench, Candidate("fp32")):
        with bench.no_gradients():
            output = cast_all(bench.target.call(bench.model, batch), getattr(torch, low.torch_name))
        try:
            ways = [_loss_and_gradients(bench, batch, output, loss_format) for loss_format in (None, Format.FP32)]
        except Exception:  # the loss is the user's code
            is_choice = False
        else:
            is_choice = not _are_same(*ways)
    bench.restore()
    return is_choice


def _loss_and_gradients(
    bench: Workbench, batch: Any, output: Any, loss_format: Format | None
) -> list[torch.Tensor | None]:
    """The loss of outputs, cast to a format before that, and its gradients by them."""
    inputs: list[torch.Tensor] = []
    given = map_tensors(output, functools.partial(_as_input, inputs))
    loss = bench.target_with_loss(loss_format, None).loss(given, batch)
    return [loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True)]


def _are_same(some: Sequence[torch.Tensor | None], others: Sequence[torch.Tensor | None]) -> bool:
    """Whether tensors agree in dtype and in every bit."""
    return all(
        a is b or (a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(some, others, strict=True)
    )


def _as_input(inputs: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its history, which has a gradient if it is one of numbers."""
    alone = tensor.detach()
    if alone.is_floating_point() or alone.is_complex():
        inputs.append(alone.requires_grad_())
    return alone


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
    modules = (site for site in sites if site in graph and graph[site].is_module)
    linears = (site for site in modules if type(model.get_submodule(site)) is nn.Linear)
    return {site: why for site in linears if (why := why_no_fp8(graph[site]))}


def why_no_fp8(site: Site) -> str:
    """The dimensions of a product that are no multiples of 16: K=100 is no multiple of 16; empty where all are."""
    sizes = {f"{name.upper()}={getattr(gemm, name)}": getattr(gemm, name) for gemm in site.gemms for name in "mnk"}
    wrong = [text for text, size in sizes.items() if size % FP8_MULTIPLE]
    return f"{', '.join(wrong)} is no multiple of {FP8_MULTIPLE}" if wrong else ""


def _meeting(graph: PrecisionGraph, groups: Sequence[Group]) -> tuple[frozenset[str], ...]:
    """The largest sets of groups whose outputs meet in an op that promotes."""
    group_of = {site: group.name for group in groups for site in group.sites}
    sets = {
        frozenset(group_of[site] for site in sites if site in group_of) for sites in meet_in_one_op(graph, group_of)
    }
    return tuple(sorted((s for s in sets if len(s) > 1 and not any(s < other for other in sets)), key=sorted))


def _module_groups(
    bench: Workbench, graph: PrecisionGraph, batch: Any, choices: tuple[Choice, ...], destinations: Iterable[Site],
    as_run: Candidate,
) -> tuple[list[Group], dict[str, str], dict[str, Uncalled]]:  # fmt: skip
    """Modules with weights, and tensors that a module holds beside its layers: same role and class decide together,
    and so does what meets in an op of one dtype. After them, which of ``destinations`` have to be pinned for that.

    And why those stay in FP32 that have to, and what the forward does not call.
    """
    found = found_by_running(bench, graph, batch, choices[0].format, destinations, as_run)
    how, roles, ties = found.how, found.roles, found.ties
    tie_of = {name: index for index, tie in enumerate(ties.groups) for name in tie - {INPUT}}
    joined: dict[str, list[str]] = {}
    for name in roles:
        joined.setdefault(f"tie {tie_of[name]}" if name in tie_of else name, []).append(name)
    fixed = [any(INPUT in tie and names[0] in tie for tie in ties.groups) for names in joined.values()]
    modules = {path: bench.model.get_submodule(path) for path, by in how.items() if by not in HELD and "#" not in path}
    fp8 = frozenset(path for path, module in modules.items() if path in graph and fp8_fits(module, graph[path]))
    multiply = frozenset(path for path in how if "#" in path or (path in modules and multiplies(modules[path])))
    groups = [
        _joined(names, roles, how, () if is_fixed else choices, fp8, multiply)
        for names, is_fixed in zip(joined.values(), fixed, strict=True)
    ]
    groups = [_with_arriving(group, names, found) for group, names in zip(groups, joined.values(), strict=True)]
    left = [site for group in groups if group.kind == "fixed" for site in group.sites]
    groups += _destination_groups(found.opened, roles, left)
    groups += _region_groups(found.regions, roles, left)
    return groups, why_fixed(ties, roles), found.uncalled


def _with_arriving(group: Group, names: Iterable[str], found: Found) -> Group:
    """The group with what arrives at the products of its modules' own: in FP32 beside it, they need FP32 there."""
    arriving = frozenset[str]().union(*(found.ties.arriving.get(name, frozenset()) for name in names))
    feeds = {site for name in arriving for site in found.roles[name]}.difference(group.sites)
    return dataclasses.replace(group, feeds=frozenset(feeds)) if feeds else group


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


def _region_groups(regions: Iterable[Region], roles: Mapping[str, list[str]], fixed: Collection[str]) -> list[Group]:
    """The regions that something in 16 bits can reach."""
    found = []
    for region in regions:
        feeds = frozenset(site for name in region.feeds for site in roles[name]).difference(fixed)
        if feeds:
            how: How = "autocast"
            name = f"{region.path}#autocast"
            methods = (how,) * len(region.sites)
            found.append(Group(name, region.sites, "region", methods, feeds=feeds, raised=region.raised))
    return found


def fp8_fits(module: nn.Module, site: Site) -> bool:
    """Whether FP8 can run this site: a Linear, all three dimensions of its products multiples of 16."""
    return type(module) is nn.Linear and bool(site.gemms) and not why_no_fp8(site)


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


def _with_losses(graph: PrecisionGraph, pins: Iterable[Group], groups: Iterable[Group]) -> list[Group]:
    """The pins, those of losses without a choice: in 16 bits a loss has three digits, whatever is saved."""
    feeds = frozenset(site for group in groups if group.kind == "module" for site in group.sites)
    return [
        dataclasses.replace(pin, kind="loss", feeds=feeds) if _is_loss(graph[pin.sites[0]]) else pin for pin in pins
    ]


def is_pin_candidate(site: Site) -> bool:
    """Whether a functional site may need FP32 by itself. ``loss_fn`` is left out: its format is a choice of its own."""
    in_double = any(tensor.dtype == "float64" for tensor in site.inputs)  # no pin lowers it
    return not site.is_module and site.module != LOSS and _is_sensitive(site) and not in_double


def _is_sensitive(site: Site) -> bool:
    op = op_named(site.op)
    return _is_loss(site) or (bool(op.why_sensitive) and op.family in PINNED_FAMILIES)


def _is_loss(site: Site) -> bool:
    return op_named(site.op).family is Family.LOSS


def _source_pins(sites: Iterable[Site]) -> list[Group]:
    """One group for all calls of an op in one function: the formats that ran can be told apart by op, not by call."""
    by_place: dict[str, list[str]] = {}
    for site in sites:
        by_place.setdefault(site.code.rpartition(".")[0], []).append(site.id)
    source: How = "source"
    return [Group(place, tuple(ids), "pin", (source,) * len(ids)) for place, ids in by_place.items()]

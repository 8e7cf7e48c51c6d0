"""What runs of a live model show: what can be planned, what must agree, and where autocast regions are needed."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from amptune.apply import Ties, held_tensors, held_values, plannable_modules, tied_by_run, uncalled_modules
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.plan import HELD
from amptune.tune.choices.destinations import Destination, find_destinations, pinned
from amptune.tune.choices.regions import Region, find_products, find_regions, with_feeds
from amptune.tune.choices.space import How
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, loss_of, training

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def role_of(path: str) -> str:
    """The path with every block number replaced by ``*``: what repeated blocks have in common."""
    return _INDEX.sub("*", path)


Uncalled = tuple[How, str | None]


class Found(NamedTuple):
    """What runs of a model show.

    Attributes:
        how: path of what takes a format -> how that is put in force; of products that a forward computes itself, and
            whose region is a choice, the sites.
        roles: name of a group -> its paths.
        ties: what must agree, and what of it in FP32.
        opened: where layers write into tensors that the model makes in FP32, once these places are pinned.
        regions: modules with an autocast region of their own.
        uncalled: how what this forward does not call takes a format, and the path of one of the same role, class and
            shapes that it calls, whose format it shares; None where there is none.
    """

    how: dict[str, How]
    roles: dict[str, list[str]]
    ties: Ties
    opened: list[Destination]
    regions: list[Region]
    uncalled: dict[str, Uncalled] = {}


_ROUNDS = 4
"""Behind an op that is let out of FP32 another may come to light; chains of more are not looked for."""


def found_by_running(
    bench: Workbench, graph: PrecisionGraph, batch: Any, low: Format, destinations: Iterable[Site], as_run: Candidate
) -> Found:
    """What can be planned, and what must agree where each group in turn is in FP32 and the others are ``low``.

    ``as_run`` says how the loss is computed meanwhile.
    """
    fp32 = Candidate("fp32")
    with training(bench, fp32):

        def run() -> None:
            with bench.no_gradients():
                loss_of(bench, as_run, batch)

        how: dict[str, How] = dict(plannable_modules(bench.model, run))
        how |= held_tensors(bench.model, graph, how, run)
        roles = _by_role(bench.model, how)
        ties = tied_by_run(bench.model, run, roles, low=low, how=how)
        how, roles = _without_followers(how, roles, ties)
        opened = find_destinations(destinations, ties.met)
        with pinned(opened):
            if opened:
                ties = tied_by_run(bench.model, run, roles, low=low, how=how)
            looking = _Looking(bench.model, graph, run, low, bench.device.torch.type, how, roles, ties)
            looking.find()
        uncalled = _with_twins(bench.model, uncalled_modules(bench.model, run, how), roles)
    bench.restore()
    regions = with_feeds(looking.regions.values(), looking.ties.joined)
    return Found(looking.all_how(), looking.all_roles(), looking.ties, opened, regions, uncalled)


def _without_followers(
    how: dict[str, How], roles: dict[str, list[str]], ties: Ties
) -> tuple[dict[str, How], dict[str, list[str]]]:
    """Both without tensors that the user's code casts to what they meet."""
    following = {path for name in ties.idle if name in roles for path in roles[name] if how[path] in HELD}
    how = {path: by for path, by in how.items() if path not in following}
    return how, {name: paths for name, paths in roles.items() if following.isdisjoint(paths)}


@dataclasses.dataclass
class _Looking:
    """Looks for regions, one round after the other: what runs in 16 bits in one brings the next to light.

    Attributes:
        regions: that are there wherever something in 16 bits arrives.
        products: module path -> products that keep FP32 without a region, which is a choice.
    """

    model: nn.Module
    graph: PrecisionGraph
    run: Callable[[], None]
    low: Format
    device_type: str
    how: dict[str, How]
    roles: dict[str, list[str]]
    ties: Ties
    regions: dict[str, Region] = dataclasses.field(default_factory=dict)
    products: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def find(self) -> None:
        """Look until nothing new turns up."""
        for _ in range(_ROUNDS):
            further = find_regions(self.graph, self.ties.fixing, self.how, self.device_type)
            if not further.keys() <= self.regions.keys():
                self.regions = {**further, **self.regions}
            elif not self._finds_products():
                break
            self._tie()
        self._drop_what_stays()

    def _finds_products(self) -> bool:
        found = find_products(self.graph, self.ties.kept, self.how, self.device_type)
        new = {path: sites for path, sites in found.items() if path not in self.regions and path not in self.products}
        self.products |= new
        if new:
            sites = {site for sites in self.products.values() for site in sites}
            held = held_tensors(self.model, self.graph, {*self.how, *sites}, self.run)
            self.how = {**held, **self.how}
            self.roles = _by_role(self.model, self.how)
        return bool(new)

    def _drop_what_stays(self) -> None:
        """Products that are in FP32 in a region too are kept there by the user's code."""
        stay = {
            path
            for path, sites in self.products.items()
            if all((path, self.graph[site].op) in self.ties.kept for site in sites)
        }
        if stay:
            self.products = {path: sites for path, sites in self.products.items() if path not in stay}
            self._tie()

    def _tie(self) -> None:
        chosen = self._chosen()
        regions = {path: region.feeds for path, region in self.regions.items()}
        self.ties = tied_by_run(
            self.model, self.run, self.roles, low=self.low, how=self.how, regions=regions, chosen=chosen
        )
        self.how, self.roles = _without_followers(self.how, self.roles, self.ties)

    def _chosen(self) -> dict[str, list[str]]:
        """Name of each group of products -> the modules that compute them: those of one role and class."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for path, sites in self.products.items():
            kind = type(self.model.get_submodule(path)).__name__
            alike.setdefault((role_of(path), kind, *(site.partition("#")[2] for site in sites)), []).append(path)
        count = Counter(role for role, *_ in alike)
        named = {key[0] if count[key[0]] == 1 else _told_apart(key[0], paths): paths for key, paths in alike.items()}
        return {f"{name}#autocast": paths for name, paths in named.items()}

    def all_roles(self) -> dict[str, list[str]]:
        """The groups with those of products, by their sites."""
        chosen = self._chosen().items()
        return self.roles | {name: [site for path in paths for site in self.products[path]] for name, paths in chosen}

    def all_how(self) -> dict[str, How]:
        """How each site takes its format."""
        by: How = "autocast"
        return self.how | {site: by for sites in self.products.values() for site in sites}


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


def _with_twins(model: nn.Module, uncalled: Mapping[str, How], roles: Mapping[str, list[str]]) -> dict[str, Uncalled]:
    """What is not called with what is like it and is."""
    called = [path for paths in roles.values() for path in paths]
    alike = _by_role(model, [*called, *uncalled]).values()
    twins = {path: next((other for other in paths if other in called), None) for paths in alike for path in paths}
    return {path: (how, twins[path]) for path, how in uncalled.items()}


def _told_apart(role: str, paths: list[str]) -> str:
    """A name for one of several groups of a role: its path, or the role with its first member."""
    return paths[0] if len(paths) == 1 else f"{role} as {paths[0]}"

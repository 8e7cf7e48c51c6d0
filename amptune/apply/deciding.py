"""Which groups of modules decide the dtypes that arrive at functions, by runs with one group in turn in FP32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping

import torch

from amptune import runtime
from amptune.apply.arrivals import Arrivals, Place, differ
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.paths import is_within, upwards


@dataclasses.dataclass
class Deciding:
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


def deciding(lowered: Arrivals, names: Collection[str], raise_one: Callable[[str], Arrivals], low: Format) -> Deciding:
    """Compare what arrives with each of ``names`` in FP32, by ``raise_one``, with ``lowered``, where none is."""
    low_dtype = runtime.FORMATS[low.label]
    # What no group lowers is FP32 in every run, and so says nothing of the groups.
    found = Deciding({
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
        if not differ(lowered, raised):
            found.idle.add(name)
        found.raised[name] = {place: raised.operands[place] for place in found.sources if place in raised.operands}
        for place, operands in found.sources.items():
            for groups, dtype in zip(operands, raised.operands.get(place, ()), strict=False):
                if dtype != low_dtype and INPUT not in groups:
                    groups.add(name)
    return found


def in_chosen(
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


def tied_within(own: Mapping[Place, str], found: Deciding, low: torch.dtype) -> list[set[str]]:
    """What has to agree where the region of a call is left out: what comes in from outside of it is cast up there, and
    what its own layers give is not."""
    ties = []
    for place, name in own.items():
        operands = list(zip(found.sources[place], found.raised.get(name, {}).get(place, ()), strict=False))
        inner = set[str]().union(*(sources for sources, dtype in operands if dtype == low)) - {INPUT}
        is_mixed = any(dtype != low for _, dtype in operands)
        ties.append(inner | {name} if inner and is_mixed else inner)
    return ties


def arriving_at_regions(own: Mapping[Place, str], found: Deciding) -> dict[str, frozenset[str]]:
    """Name of each group that is a region -> groups that decide what its functions meet."""
    arriving: dict[str, frozenset[str]] = {}
    for place, name in own.items():
        sources = frozenset[str]().union(*found.sources[place]) - {INPUT, name}
        arriving[name] = arriving.get(name, frozenset()) | sources
    return arriving


def alike_regions(regions: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """A name -> regions that are there for the same groups, as those of repeated blocks, which are one to look at."""
    alike: dict[frozenset[str], list[str]] = {}
    for path, feeds in regions.items():
        alike.setdefault(frozenset(feeds), []).append(path)
    return {f"@{paths[0]}": paths for paths in alike.values()}


def let_in(
    found: Deciding, joined: Iterable[Place], regions: Mapping[str, Collection[str]], alike: Mapping[str, list[str]]
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

"""The smallest change that makes a plan run, where tensors of two formats meet in an op that takes one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from amptune.apply.ties import arriving_at, sources_of
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph, Site
from amptune.core.ops import op_named
from amptune.core.plan import Plan, SitePlan
from amptune.errors import CaptureError
from amptune.patch.instrument import pinnable_sites
from amptune.patch.text import read_source

_ROUNDS = 4
"""How many lines of a file, one after the other, a change may be needed for."""
_SHOWN = 3
_UNKNOWN = "give what meets there one format, or pin the op where it stands in your file"
Fails = Callable[[Plan], CaptureError | None]
Changes = dict[str, SitePlan]


def how_to_mend(plan: Plan, graph: PrecisionGraph, path: Path | None, error: CaptureError, fails: Fails) -> str:
    """What to write into the plan, tried; without anything that helps, what to look at.

    Args:
        plan: with which the model does not run.
        graph: of the model as it is.
        path: the user's file, where ops can be pinned; None for a model from a package.
        error: how it fails.
        fails: tries a plan; None where the model runs with it.
    """
    sources = sources_of(graph)

    def pins(place: str) -> Changes:
        found = _pinnable(path, _at(place, graph))
        codes = {site.code for site in found}
        pin = SitePlan(Format.FP32, how="source")
        return {site.id: pin for site in graph if not site.is_module and site.code in codes}

    def raised(place: str) -> Changes:
        arriving = (names for site in _at(place, graph) for names in arriving_at(graph, site, sources))
        low = {name for names in arriving for name in names - {INPUT} if _is_low(plan, name)}
        return {name: dataclasses.replace(plan.sites[name], format=Format.FP32, scaling=None) for name in sorted(low)}

    first = _tried(plan, error, fails, pins) or _tried(plan, error, fails, raised)
    if not first:
        return _UNKNOWN
    words = f"this makes it run (tried): {_shown(first)}"
    before = {name for site in _at(error.place, graph) for name in _parameters_before(site, graph, sources)}
    parameters = sorted(name for name in before if not _is_low(plan, name))
    if parameters:
        words += (
            f"; or keep the speed of 16 bits there: cast {_listed(parameters)}, which no plan casts, "
            "to the dtype of what they meet in the forward (parameter.to(x.dtype))"
        )
    return words


def _tried(plan: Plan, error: CaptureError, fails: Fails, change: Callable[[str], Changes]) -> Changes:
    """The changes for one failing line after another until the model runs; empty where they do not help."""
    changes: Changes = {}
    for _ in range(_ROUNDS):
        more = {name: site for name, site in change(error.place).items() if name not in changes}
        if not more:
            return {}
        changes |= more
        left = fails(dataclasses.replace(plan, sites={**plan.sites, **changes}))
        if left is None:
            return changes
        error = left
    return {}


def _at(place: str, graph: PrecisionGraph) -> list[Site]:
    """Functional ops on a line; where some of them take one dtype only, these."""
    path, _, line = place.rpartition(":")
    found = [
        site
        for site in graph
        if not site.is_module and site.location is not None and site.location.path == path
        and site.location.line <= int(line or 0) <= (site.location.end_line or site.location.line)
    ]  # fmt: skip
    return [site for site in found if op_named(site.op).same_dtype] or found


def _pinnable(path: Path | None, sites: list[Site]) -> list[Site]:
    return [] if path is None else pinnable_sites(read_source(path)[0], path, sites)


def _is_low(plan: Plan, name: str) -> bool:
    return name in plan.sites and plan.sites[name].format is not Format.FP32


def _parameters_before(site: Site, graph: PrecisionGraph, sources: Mapping[str, frozenset[str]]) -> set[str]:
    """Parameters that functions read on the way to a site, by which it gets FP32 whatever the plan says."""
    found: set[str] = set()
    pending, seen = [site.id], {site.id}
    while pending:
        here = graph[pending.pop()]
        found |= {parameter.name for parameter in here.params if parameter.meta.is_floating}
        for producer in graph.graph.predecessors(here.id):
            follows = producer in graph and sources.get(producer) != frozenset({producer})
            if follows and producer != INPUT and producer not in seen:
                seen.add(producer)
                pending.append(producer)
    return found


def _shown(changes: Mapping[str, SitePlan]) -> str:
    lines = [f"{json.dumps(name)}: {json.dumps(_written(site))}" for name, site in changes.items()]
    return _listed(lines)


def _written(site: SitePlan) -> dict[str, str]:
    return {"format": site.format.label, **({"how": site.how} if site.how != "swap" else {})}


def _listed(items: Iterable[str]) -> str:
    found = list(items)
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more like it" if len(found) > _SHOWN else "")

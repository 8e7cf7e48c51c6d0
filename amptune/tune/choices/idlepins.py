"""Pins that change nothing: an op computes in FP32 without one where all that arrives is in FP32."""

from __future__ import annotations

import dataclasses

from amptune.apply import arriving_at, sources_of
from amptune.core.graph import PrecisionGraph
from amptune.tune.choices.edges import in_regions
from amptune.tune.choices.ownautocast import is_in_fp32
from amptune.tune.choices.space import Group, Space

Arriving = frozenset[frozenset[str]]


def with_arriving(graph: PrecisionGraph, space: Space) -> Space:
    """The space with what decides the formats that arrive at each pin; as it is for a model with formats of its own."""
    if not is_in_fp32(graph):
        return space
    planned = {site for group in space.groups if group.has_format for site in group.sites}
    sources = sources_of(graph, planned, in_regions(space, planned))

    def arriving(group: Group) -> Arriving:
        found = (each for site in group.sites for each in arriving_at(graph, graph[site], sources))
        return frozenset(each for each in found if each <= planned)  # what no plan decides is in FP32

    groups = tuple(
        dataclasses.replace(group, arriving=arriving(group)) if group.kind == "pin" else group for group in space.groups
    )
    return dataclasses.replace(space, groups=groups)

"""The allocation of two choices as an s-t minimum cut: exact, and nothing but networkx is needed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import networkx as nx

from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT

if TYPE_CHECKING:
    from amptune.tune.allocation.allocate import Problem

_HIGH, _LOW = ("side", "high"), ("side", "low")
_NEVER = 1e12
"""Stands for infinity, which networkx reads as an unbounded flow."""


def minimum_cut(problem: Problem, weight: float = 0.0) -> dict[str, Choice] | None:
    """The best assignment; None where this is no minimum cut.

    That is so with more than two choices in all, or where a tensor's format is promoted from several groups: whether
    one of them is in FP32 is not a price on a pair.
    """
    choices = sorted({choice for values in problem.times.values() for choice in values})
    plain = all(len(link.sources) == len(link.into) == 1 for link in problem.links)
    if len(choices) > 2 or not plain or (len(choices) == 2 and choices[0].format is not Format.FP32):
        return None
    high, low = choices[0], choices[-1]
    network = nx.DiGraph()
    network.add_nodes_from([_HIGH, _LOW])
    for name, values in problem.times.items():
        errors = problem.errors.get(name, {})
        # The cut edge from the high side is paid when the group lands on the low side, and the other way round.
        for choice, a, b in ((low, _HIGH, name), (high, name, _LOW)):
            _add(network, a, b, values.get(choice, math.inf) + weight * errors.get(choice, 0.0))
    for link in problem.links:
        (source,), (target,) = link.sources, link.into
        a, b = (_HIGH if name == INPUT else name for name in (source, target))
        price = link.prices.get(frozenset((high.output_format, low.output_format)), 0.0)
        _add(network, a, b, price)
        _add(network, b, a, price)
    _, (high_side, _) = nx.minimum_cut(network, _HIGH, _LOW)
    return {name: high if name in high_side else low for name in problem.times}


def _add(network: nx.DiGraph, a: object, b: object, capacity: float) -> None:
    capacity = min(capacity, _NEVER)
    if network.has_edge(a, b):
        network.edges[a, b]["capacity"] += capacity
    else:
        network.add_edge(a, b, capacity=capacity)

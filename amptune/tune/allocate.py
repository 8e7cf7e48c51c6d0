"""The assignment of two choices to the groups of a graph that is fastest by the cost table, cast prices included.

Minimise  sum_i cost_i(x_i) + sum_(i,j) price_ij [x_i != x_j]  over x in {high, low}: an s-t minimum cut, so the answer
is the optimum of the model, not a heuristic's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

from amptune.core.choice import FP32, Choice
from amptune.core.tables import CostTable, Edge

_SOURCE, _SINK = "high", "low"


def allocate_two(
    groups: Mapping[str, Sequence[str]],
    edges: Iterable[Edge],
    table: CostTable,
    low: Choice,
    *,
    high: Choice = FP32,
    penalty: Mapping[str, float] | None = None,
) -> dict[str, Choice]:
    """The best choice for each group, of ``high`` and ``low``.

    Args:
        groups: group name -> its sites, which decide together.
        edges: (source site, target site, elements) for each tensor between sites.
        table: measured costs and cast prices, milliseconds.
        low: the choice to make where it pays.
        high: the other one.
        penalty: milliseconds added to a group's low cost, such as lambda times its error.
    """
    network = nx.DiGraph()
    network.add_nodes_from([_SOURCE, _SINK])
    group_of = {site: ("group", name) for name, sites in groups.items() for site in sites}
    for name, sites in groups.items():
        extra = (penalty or {}).get(name, 0.0)
        # The cut edge source -> group is paid when the group lands on the low side, and the other way round.
        _add(network, _SOURCE, ("group", name), _capacity(table, sites, low) + extra)
        _add(network, ("group", name), _SINK, _capacity(table, sites, high))
    for source, target, numel in edges:
        a, b = group_of.get(source), group_of.get(target)
        if a is not None and b is not None and a != b:
            price = table.cast(high.output_format, low.output_format, numel)
            _add(network, a, b, price)
            _add(network, b, a, price)
    _, (high_side, _low_side) = nx.minimum_cut(network, _SOURCE, _SINK)
    return {name: high if ("group", name) in high_side else low for name in groups}


def _capacity(table: CostTable, sites: Sequence[str], choice: Choice) -> float:
    total = sum(table.site(site, choice).ms for site in sites)
    return min(total, 1e12)  # networkx reads an infinite capacity as unbounded flow


def _add(network: nx.DiGraph, a: object, b: object, capacity: float) -> None:
    if network.has_edge(a, b):
        network.edges[a, b]["capacity"] += capacity
    else:
        network.add_edge(a, b, capacity=capacity)

"""What the numbers of the batch say of single nodes: found once for a capture, and told to sites by ``enrich``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from amptune.analyze.closedrows import stored
from amptune.analyze.dtypes import root
from amptune.analyze.folding import Folded
from amptune.analyze.zerotimes import UNTOLD, zeros_times_infinity

FACTS = "amptune_facts"
"""The key in ``node.meta`` under which facts stand: name -> how many numbers it is true of."""


def note_facts(module: fx.GraphModule, batch: Mapping[str, torch.Tensor]) -> None:
    """Add :data:`FACTS` to nodes of a captured graph, in place.

    Args:
        module: the captured graph.
        batch: name of a placeholder -> the tensor of the batch that it stands for.
    """
    written = {root(each) for node in module.graph.nodes for each in node.meta.get("amptune_writes", ())}
    folded = Folded(lambda node: stored(module, node, batch), lambda node: node not in written)
    for node in module.graph.nodes:
        if count := zeros_times_infinity(node, folded):
            node.meta.setdefault(FACTS, {})["zero_times_infinity"] = count


def facts_of(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """What is known of a site by the nodes that it covers: of all its calls together."""
    found: dict[str, int] = {}
    for node in nodes:
        for name, count in node.meta.get(FACTS, {}).items():
            before = found.get(name, 0)
            found[name] = UNTOLD if UNTOLD in (count, before) else before + count
    return found

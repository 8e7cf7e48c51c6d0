"""What the numbers of the batch say of single nodes: found once for a capture, and told to sites by ``enrich``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._subclasses import FakeTensor

from amptune.analyze.batchzeros import Zeros
from amptune.analyze.closedrows import stored
from amptune.analyze.dtypes import REVERSED, root, spelling
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

    def worked_out(numbers: Mapping[str, torch.Tensor]) -> Folded:
        return Folded(
            lambda node: None if node in written else stored(module, node, numbers), lambda node: node not in written
        )

    folded = worked_out(batch)
    # A tensor of zeros alone stands for data, and is none.
    zeros = Zeros(worked_out({name: tensor for name, tensor in batch.items() if not _is_empty_of_numbers(tensor)}))
    for node in module.graph.nodes:
        facts = {"zero_times_infinity": zeros_times_infinity(node, folded), "zeros_read": _zeros_read(node, zeros)}
        if found := {name: count for name, count in facts.items() if count}:
            node.meta[FACTS] = found


def _is_empty_of_numbers(tensor: torch.Tensor) -> bool:
    is_real = not isinstance(tensor, FakeTensor) and tensor.device.type != "meta" and tensor.layout is torch.strided
    return bool(is_real and tensor.is_floating_point() and not tensor.detach().any())


_ASK = {"div": 1, "reciprocal": 0, "log": 0, "log2": 0, "log10": 0, "sqrt": 0, "rsqrt": 0, "pow": 0}
"""Ops that break where an operand is zero -> the place of that operand."""


def _zeros_read(node: fx.Node, zeros: Zeros) -> int:
    """How many numbers are zero of the operand that is to be off zero."""
    place = _ASK.get(str(node.meta.get("amptune_op")))
    if place is None or not node.args:
        return 0
    if len(node.args) > 1 and spelling(node) in REVERSED:  # 1 / x has x first; 2 ** x has no base that could be zero
        place = 0 if place else len(node.args)
    return zeros.count(node.args[place]) if place < len(node.args) else 0


def facts_of(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """What is known of a site by the nodes that it covers: of all its calls together."""
    found: dict[str, int] = {}
    for node in nodes:
        for name, count in node.meta.get(FACTS, {}).items():
            before = found.get(name, 0)
            found[name] = UNTOLD if UNTOLD in (count, before) else before + count
    return found

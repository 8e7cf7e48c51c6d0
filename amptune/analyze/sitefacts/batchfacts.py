"""What the numbers of the batch say of single nodes: found once for a capture, and told to sites by ``enrich``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._subclasses import FakeTensor

from amptune.analyze.sitefacts.batchzeros import Zeros
from amptune.analyze.sitefacts.closedrows import Closed, stored
from amptune.analyze.sitefacts.dtypes import REVERSED, root, spelling
from amptune.analyze.sitefacts.folding import LARGEST, Folded
from amptune.analyze.sitefacts.rewritten import Rewritten
from amptune.analyze.sitefacts.zerotimes import UNTOLD, zeros_times_closed, zeros_times_infinity

FACTS = "amptune_facts"
"""The key in ``node.meta`` under which facts stand: name -> how many numbers it is true of."""
_LARGEST = frozenset({"most_added"})
"""Facts of which the largest of a site's calls counts, rather than the sum."""


def note_facts(module: fx.GraphModule, batch: Mapping[str, torch.Tensor]) -> None:
    """Add :data:`FACTS` to nodes of a captured graph, in place.

    Args:
        module: the captured graph.
        batch: name of a placeholder -> the tensor of the batch that it stands for.
    """
    written = {root(each) for node in module.graph.nodes for each in node.meta.get("amptune_writes", ())}
    rewritten = Rewritten(module.graph)

    def worked_out(numbers: Mapping[str, torch.Tensor]) -> Folded:
        return Folded(
            lambda node: None if node in written else stored(module, node, numbers),
            lambda node: node not in written,
            rewritten,
        )

    folded = worked_out(batch)
    # A tensor of zeros alone stands for data, and is none.
    zeros = Zeros(worked_out({name: tensor for name, tensor in batch.items() if not _is_empty_of_numbers(tensor)}))
    closed = Closed(module, batch)
    for node in module.graph.nodes:
        facts = {
            "zero_times_infinity": zeros_times_infinity(node, folded),
            "zero_times_closed": zeros_times_closed(node, folded, closed),
            "zeros_read": _zeros_read(node, zeros),
            "below_read": _below_read(node, folded),
            "turned_infinite": _turned_infinite(node, folded),
            "most_added": _most_added(node, folded),
        }
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


_NOT_BELOW = frozenset({"log", "log2", "log10", "sqrt", "rsqrt", "pow"})


def _below_read(node: fx.Node, folded: Folded) -> int:
    """How many numbers are below zero of an operand whose root or logarithm is NaN there, by the batch alone."""
    op, base = str(node.meta.get("amptune_op")), node.args[0] if node.args else None
    if op not in _NOT_BELOW or not isinstance(base, fx.Node) or not _is_root(node, op):
        return 0
    value = folded.of(base)
    return int((value < 0).sum()) if value is not None and value.is_floating_point() else 0


def _is_root(node: fx.Node, op: str) -> bool:
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return op != "pow" or (spelling(node) not in REVERSED and isinstance(exponent, float) and not exponent.is_integer())


_GROWS = frozenset({"add", "sub", "mul", "sum", "cumsum", "prod", "cumprod", "matmul", "mm", "bmm", "einsum"})
"""Ops whose results leave a format by their size alone."""


def _turned_infinite(node: fx.Node, folded: Folded) -> int:
    """How many numbers are infinite that the batch alone makes of finite ones; masks that add up to -inf are none."""
    if str(node.meta.get("amptune_op")) not in _GROWS:
        return 0
    value = folded.of(node)
    given = [folded.of(each) for each in node.all_input_nodes]
    if value is None or not value.is_floating_point() or any(each is None for each in given):
        return 0
    if not all(bool(each.isfinite().all()) for each in given if each is not None and each.is_floating_point()):
        return 0
    return int(torch.isposinf(value).sum())


_ADDS = frozenset({"index_add", "scatter_add"})


def _most_added(node: fx.Node, folded: Folded) -> int:
    """How many terms the place is given that is given most, where the batch alone says which are added where."""
    if str(node.meta.get("amptune_op")) not in _ADDS or len(node.args) < 3 or not isinstance(node.args[2], fx.Node):
        return 0
    dim, index = node.args[1], folded.of(node.args[2])
    if not isinstance(dim, int) or index is None or index.is_floating_point() or not index.numel():
        return 0
    if index.dim() <= 1:
        return int(torch.bincount(index.flatten().cpu()).max())
    shape = list(index.shape)
    shape[dim] = int(index.max()) + 1
    if math.prod(shape) > LARGEST:
        return 0
    return int(torch.zeros(shape).scatter_add_(dim, index.cpu().long(), torch.ones(index.shape)).max())


def facts_of(nodes: Sequence[fx.Node]) -> dict[str, int]:
    """What is known of a site by the nodes that it covers: of all its calls together."""
    found: dict[str, int] = {}
    for node in nodes:
        for name, count in node.meta.get(FACTS, {}).items():
            before = found.get(name, 0)
            if name in _LARGEST:
                found[name] = max(before, count)
                continue
            found[name] = UNTOLD if UNTOLD in (count, before) else before + count
    return found

"""Rows of scores that a mask of the batch closes as a whole: their softmax is 0 / 0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor

from amptune.analyze.sitefacts.calling import call_on
from amptune.analyze.sitefacts.dtypes import root
from amptune.analyze.sitefacts.folding import LARGEST, Folded
from amptune.analyze.sitefacts.rewritten import Rewritten
from amptune.core.graph import PrecisionGraph
from amptune.core.ops import Family, op_named


def mark_closed_rows(graph: PrecisionGraph, module: fx.GraphModule, batch: Mapping[str, torch.Tensor]) -> None:
    """Add ``closed_rows`` to softmaxes, in place: how many of the rows that their mask has are -inf everywhere.

    Args:
        graph: the sites of a capture.
        module: the captured graph.
        batch: name of a placeholder -> the tensor of the batch that it stands for.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    places = None
    for site in list(graph):
        softmaxes = [nodes[name] for name in site.nodes if name in nodes and _is_over_last(nodes[name])]
        if not softmaxes:
            continue
        places = places or Closed(module, batch)
        if rows := sum(_rows(places.of(node.all_input_nodes[0]), node) for node in softmaxes):
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, "closed_rows": rows}))


def _is_over_last(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.meta.get("amptune_op") != "softmax" or not node.all_input_nodes or not isinstance(value, torch.Tensor):
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return value.dim() > 0 and dim in (-1, value.dim() - 1)


def _rows(places: torch.Tensor | None, softmax: fx.Node) -> int:
    length = softmax.meta["val"].shape[-1]
    if places is None or not places.dim() or places.shape[-1] != length:
        return 0
    return int(places.all(-1).sum())


_SHIFTS = {"add": 2, "sub": 1, "baddbmm": 1, "addmm": 1}
"""Ops that leave -inf what is -inf in one of so many first operands."""


_PICKS = frozenset({"gather", "index", "index_select", "take_along_dim"})


class Closed:
    """Where the numbers of a node are -inf whatever the layers give: by a mask of constants or of the batch."""

    def __init__(self, module: fx.GraphModule, batch: Mapping[str, torch.Tensor]) -> None:
        writes = [(each, node) for node in module.graph.nodes for each in node.meta.get("amptune_writes", ())]
        written = {root(each) for each, _ in writes}
        self._opened = {root(each) for each, node in writes if not _closes(node)}
        self._folded = Folded(lambda node: stored(module, node, batch),
                              lambda node: node not in written, Rewritten(module.graph))  # fmt: skip
        self._known: dict[fx.Node, torch.Tensor | None] = {}

    def of(self, node: fx.Node, depth: int = 16) -> torch.Tensor | None:
        """Truth values that broadcast to the shape of a node; ``None`` where no place is known to be -inf."""
        if node not in self._known:
            is_kept = depth > 0 and isinstance(node.meta.get("val"), torch.Tensor) and root(node) not in self._opened
            found = self._found(node, depth - 1) if is_kept else None
            self._known[node] = found if found is not None and bool(found.any()) else None
        return self._known[node]

    def _found(self, node: fx.Node, depth: int) -> torch.Tensor | None:
        op, first = str(node.meta.get("amptune_op") or ""), node.all_input_nodes[:1]
        if op == "masked_fill":
            before, mask = self.of(first[0], depth), self._mask(node)
            if _closes(node):
                return _either(mask, before)
            return before & ~mask if before is not None and mask is not None else None
        if op == "where":
            return self._chosen(node, depth)
        if op in _SHIFTS:
            found: torch.Tensor | None = None
            for each in [each for each in node.args[: _SHIFTS[op]] if isinstance(each, fx.Node)]:
                found = _either(found, self.of(each, depth))
            return found
        if op == "log_softmax" and first:
            return self._unlikely(node, self.of(first[0], depth))
        if op in _PICKS and first:
            return self._picked(node, self.of(first[0], depth))
        family = op_named(op).family
        if first and family is Family.CAST:
            return self.of(first[0], depth)
        if len(node.all_input_nodes) == 1 and family is Family.VIEW and op != "getitem":
            return seen_as(node, self.of(first[0], depth))
        value = self._folded.of(node)
        return value == -math.inf if value is not None and value.is_floating_point() else None

    def _unlikely(self, node: fx.Node, closed: torch.Tensor | None) -> torch.Tensor | None:
        """Where the logarithm of a share is -inf: where a score is, but for rows that are closed as a whole."""
        dim, value = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim"), node.meta["val"]
        if closed is None or not isinstance(dim, int) or value.numel() > LARGEST:
            return None
        full = closed.expand(value.shape)
        return full & ~full.all(dim, keepdim=True)

    def _picked(self, node: fx.Node, closed: torch.Tensor | None) -> torch.Tensor | None:
        """Where numbers that the batch says which are picked of are -inf: ``x.gather(-1, labels)``."""
        given = node.all_input_nodes[0].meta.get("val")
        indices = {each: self._folded.of(each) for each in node.all_input_nodes[1:]}
        if closed is None or not isinstance(given, torch.Tensor) or given.numel() > LARGEST:
            return None
        if any(each is None for each in indices.values()):
            return None
        full = closed.expand(given.shape)
        try:
            found = call_on(node, lambda each: indices.get(each, full))
        except (RuntimeError, TypeError, IndexError):  # an index that is not for these numbers
            return None
        return found if isinstance(found, torch.Tensor) and found.dtype is torch.bool else None

    def _mask(self, node: fx.Node) -> torch.Tensor | None:
        """The mask of a ``masked_fill``."""
        masks = [each for each in [*node.args, *node.kwargs.values()][1:] if isinstance(each, fx.Node)]
        mask = self._folded.of(masks[0]) if len(masks) == 1 else None
        return mask if mask is not None and mask.dtype is torch.bool else None

    def _chosen(self, node: fx.Node, depth: int) -> torch.Tensor | None:
        if len(node.args) != 3 or not isinstance(node.args[0], fx.Node):
            return None
        mask = self._folded.of(node.args[0])
        if mask is None or mask.dtype is not torch.bool:
            return None
        found: torch.Tensor | None = None
        for chosen, each in zip((mask, ~mask), node.args[1:], strict=True):
            closed = self.of(each, depth) if isinstance(each, fx.Node) else torch.tensor(each == -math.inf)
            found = _either(found, chosen & closed if closed is not None else None)
        return found


def _closes(node: fx.Node) -> bool:
    """Whether a node fills with -inf where a mask is, rather than with a number that opens what was closed."""
    numbers = [each for each in [*node.args, *node.kwargs.values()] if isinstance(each, float)]
    return node.meta.get("amptune_op") == "masked_fill" and -math.inf in numbers


def _either(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if one is None else one if other is None else one | other


def seen_as(node: fx.Node, closed: torch.Tensor | None) -> torch.Tensor | None:
    """The places of what a view reads, as the view has them."""
    given = node.all_input_nodes[0].meta.get("val")
    if closed is None or not isinstance(given, torch.Tensor) or math.prod(given.shape) > LARGEST:
        return None
    seen = view_of(node, closed.expand(tuple(given.shape)))
    return seen if seen is not None and seen.dtype is torch.bool else None


def view_of(node: fx.Node, given: torch.Tensor) -> torch.Tensor | None:
    """The view that a node takes, of another tensor of the same shape; ``None`` where it cannot be taken."""
    try:
        seen = call_on(node, lambda _: given)
    except (RuntimeError, TypeError):  # a view of one dtype as another: the places stay unknown
        return None
    return seen if isinstance(seen, torch.Tensor) else None


def stored(module: fx.GraphModule, node: fx.Node, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """A constant, or a tensor of the batch in the shape that was captured."""
    if node.op == "placeholder":
        value, own = node.meta.get("val"), batch.get(str(node.target))
        return own if own is not None and isinstance(value, torch.Tensor) and own.shape == value.shape else None
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    is_real = isinstance(found, torch.Tensor) and not isinstance(found, FakeTensor | torch.nn.Parameter)
    return found if is_real and found.device.type != "meta" else None

"""Rows of scores that a mask of the batch closes as a whole: their softmax is 0 / 0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor

from amptune.analyze.dtypes import root
from amptune.analyze.folding import Folded
from amptune.core.graph import PrecisionGraph, Site


def mark_closed_rows(graph: PrecisionGraph, module: fx.GraphModule, batch: Mapping[str, torch.Tensor]) -> None:
    """Add ``closed_rows`` to softmaxes, in place: how many of the rows that their mask has are -inf everywhere.

    Args:
        graph: the sites of a capture.
        module: the captured graph.
        batch: name of a placeholder -> the tensor of the batch that it stands for.
    """
    softmaxes = [site for site in graph if site.op == "softmax" and _is_over_last(site)]
    if not softmaxes:
        return
    nodes = {node.name: node for node in module.graph.nodes}
    written = {root(each) for node in nodes.values() if isinstance(each := node.meta.get("amptune_writes"), fx.Node)}
    folded = Folded(lambda node: _stored(module, node, batch), lambda node: node not in written)
    for site in softmaxes:
        covered = [nodes[name] for name in site.nodes if name in nodes]
        rows = sum(_closed(folded, root(read)) for node in covered for read in _read(node))
        if rows:
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, "closed_rows": rows}))


def _read(node: fx.Node) -> list[fx.Node]:
    return node.all_input_nodes[:1] if node.meta.get("amptune_op") == "softmax" else []


def _is_over_last(site: Site) -> bool:
    dim = site.attrs.get("dim")
    return bool(site.inputs) and dim in (-1, len(site.inputs[0].shape) - 1)


def _closed(folded: Folded, filled: fx.Node) -> int:
    """Rows of the mask of a ``masked_fill`` with -inf in which no place is left."""
    value = filled.meta.get("val")
    if filled.meta.get("amptune_op") != "masked_fill" or not isinstance(value, torch.Tensor) or not value.shape:
        return 0
    arguments = [*filled.args, *filled.kwargs.values()]
    masks = [each for each in arguments[1:] if isinstance(each, fx.Node)]
    if len(masks) != 1 or -math.inf not in [each for each in arguments if isinstance(each, float)]:
        return 0
    mask = folded.of(masks[0])
    if mask is None or mask.dtype is not torch.bool or not mask.shape or mask.shape[-1] != value.shape[-1]:
        return 0
    return int(mask.all(-1).sum())


def _stored(module: fx.GraphModule, node: fx.Node, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """A constant, or a tensor of the batch in the shape that was captured."""
    if node.op == "placeholder":
        value, own = node.meta.get("val"), batch.get(str(node.target))
        return own if own is not None and isinstance(value, torch.Tensor) and own.shape == value.shape else None
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    is_real = isinstance(found, torch.Tensor) and not isinstance(found, FakeTensor | torch.nn.Parameter)
    return found if is_real and found.device.type != "meta" else None

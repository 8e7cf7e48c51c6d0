"""Batch norms over sequences, whose result lies in rows on a GPU whatever they are given.

torch hands a batch norm of three dimensions to cuDNN, and copies its operand into rows first: it has no layout with the
channels last for them (``_batch_norm_impl_index`` of aten/src/ATen/native/Normalization.cpp). The copy is what autograd
keeps, and a result that is turned back, as in ``norm(x.transpose(1, 2)).transpose(1, 2)``, lies across its rows for all
that reads it. Fakes of the processor keep the order of the operand, as torch's own kernels do, which BF16 has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from amptune.analyze.sitefacts.calling import call_on
from amptune.capture.fakes import map_tensors, new_fake_mode
from amptune.capture.target import tensors_in

IN_ROWS = "amptune_in_rows"
"""Key of ``meta`` of nodes whose order in memory is what a batch norm over sequences made of it."""
_DIMENSIONS = 3


def lay_out(graph: fx.Graph) -> None:
    """Give such results, and all views and sums of them, the order in memory that they have on a GPU, in place."""
    mode = new_fake_mode()
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.meta.get("amptune_op") == "batch_norm":
            if isinstance(value, torch.Tensor) and value.dim() == _DIMENSIONS and not value.is_contiguous():
                _set(node, _empty(value, mode, contiguous=True))
        elif any(IN_ROWS in each.meta for each in node.all_input_nodes):
            found = _again(node, mode)
            if _strides(found) != _strides(value) and _shapes(found) == _shapes(value):
                _set(node, found)


def _set(node: fx.Node, value: Any) -> None:
    node.meta["val"] = value
    node.meta[IN_ROWS] = True


def _again(node: fx.Node, mode: FakeTensorMode) -> Any:
    """What the node makes of its operands as they lie now; ``None`` where it cannot be called."""

    def empty_like(read: fx.Node) -> Any:
        return map_tensors(read.meta.get("val"), lambda value: _empty(value, mode))

    try:
        with mode, torch.no_grad():
            return call_on(node, empty_like)
    except Exception:  # a call that fakes cannot make on its own keeps the layout that it was captured with
        return None


def _empty(value: torch.Tensor, mode: FakeTensorMode, *, contiguous: bool = False) -> torch.Tensor:
    with mode:
        if contiguous:
            return torch.empty(value.shape, dtype=value.dtype)
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _strides(value: Any) -> list[tuple[int, ...]]:
    return [tensor.stride() for tensor in tensors_in(value)]


def _shapes(value: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(value)]

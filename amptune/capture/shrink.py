"""Recording a real forward with a small batch, and giving its shapes back at the full size.

The forward runs with two small batches. An extent that differs between them grows with the batch, and is continued to
the full one along the line through both; this is exact for everything that is a multiple of the batch plus a constant.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from amptune.capture.calls import Call
from amptune.capture.fakes import map_tensors
from amptune.capture.target import batch_tensors, tensors_in
from amptune.core.graph import Gemm

SMALL = (2, 3)
"""Batch sizes of the two runs; BatchNorm in training needs at least two samples."""


def common_batch_size(batch: Any) -> int | None:
    """The leading extent that all tensors of a batch share; None where they differ or it is small already."""
    leading = {tensor.shape[0] if tensor.dim() else 0 for tensor in batch_tensors(batch)}
    size = leading.pop() if len(leading) == 1 else 0
    return size if size > SMALL[-1] else None


def cut(batch: Any, size: int) -> Any:
    """The first ``size`` samples."""
    return map_tensors(batch, lambda tensor: tensor[:size])


def continued(first: int, second: int, full: int) -> int:
    """An extent at the full batch size, from those at the two small ones."""
    low, high = SMALL
    slope = (second - first) / (high - low)
    return round(first + slope * (full - low))


def grown(first: torch.Tensor, second: torch.Tensor, full: int) -> torch.Tensor:
    """The value that a node has at the full batch size; both are of device meta."""
    shape = [continued(a, b, full) for a, b in zip(first.shape, second.shape, strict=True)]
    strides = first.stride()
    order = sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))
    value = torch.empty([shape[axis] for axis in order], dtype=first.dtype, device="meta")
    back = [order.index(axis) for axis in range(len(shape))]
    return value.permute(back).requires_grad_(first.requires_grad) if value.is_floating_point() else value.permute(back)


def grow(first: fx.Graph, second: fx.Graph, full: int) -> bool:
    """Give the nodes of ``first`` the values and costs that they have at the full batch size.

    Returns:
        Whether that could be done: the two runs must have made the same calls.
    """
    pairs = list(zip(first.nodes, second.nodes, strict=False))
    if len(first.nodes) != len(second.nodes) or not all(_are_alike(a, b) for a, b in pairs):
        return False
    calls: dict[int, Call] = {}
    for a, b in pairs:
        a.meta["val"] = _grown_value(a.meta.get("val"), b.meta.get("val"), full)
        call = a.meta.get("amptune_call")
        if call is not None:
            if call.number not in calls:
                calls[call.number] = _grown_call(call, b.meta["amptune_call"], full)
            a.meta["amptune_call"] = calls[call.number]
    return True


def _are_alike(first: fx.Node, second: fx.Node) -> bool:
    if first.op != second.op or first.meta.get("amptune_op") != second.meta.get("amptune_op"):
        return False
    values = [list(tensors_in(node.meta.get("val"))) for node in (first, second)]
    return [v.dim() for v in values[0]] == [v.dim() for v in values[1]]


def _grown_value(first: Any, second: Any, full: int) -> Any:
    if isinstance(first, torch.Tensor):
        return grown(first, second, full)
    if isinstance(first, tuple):
        return tuple(_grown_value(a, b, full) for a, b in zip(first, second, strict=True))
    return first


def _grown_call(first: Call, second: Call, full: int) -> Call:
    gemms = tuple(
        Gemm(*(continued(x, y, full) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True)))
        for a, b in zip(first.gemms, second.gemms, strict=False)
    )
    return dataclasses.replace(first, gemms=gemms)

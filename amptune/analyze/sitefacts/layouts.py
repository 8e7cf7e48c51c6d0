"""Memory layout of what convolutions and norms over channels read."""

from __future__ import annotations

import torch
from torch import fx

from amptune.capture.flow import has_channels_last
from amptune.core.ops import Family, op_named


def order_in_memory(node: fx.Node) -> tuple[int, ...] | None:
    """Dimensions from the outermost to the innermost in memory, of a tensor that is dense but not contiguous; ``None``
    for one that is contiguous, expanded or no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_contiguous():
        return None
    sizes, strides = value.shape, value.stride()
    if not all(isinstance(size, int) for size in sizes) or 0 in strides:
        return None
    return tuple(sorted((dim for dim, size in enumerate(sizes) if size > 1), key=lambda dim: -strides[dim]))


_KEEPS = (Family.POINTWISE, Family.SENSITIVE, Family.NORM, Family.CAST)
"""Families whose result is laid out as what they read."""


def is_channels_last(node: fx.Node) -> bool | None:
    """Whether a sequence, image or volume has its channels innermost; ``None`` where its strides fit both layouts.

    torch has no name for that layout of sequences, but takes one whose channels are innermost for an image of height 1
    in channels_last, and so is the result of its convolution; fakes do not show that, so it is followed from where the
    sequence was turned.
    """
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.dim() == 3:
        return _is_turned(node)
    return has_channels_last(value)


def _is_turned(node: fx.Node) -> bool | None:
    while True:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() != 3 or 1 in value.shape[1:]:
            return None
        if value.stride(1) == 1:
            return True
        op = str(node.meta.get("amptune_op") or "")
        keeps = op in ("conv1d", "glu") or (bool(op) and op_named(op).family in _KEEPS)
        if not keeps or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]

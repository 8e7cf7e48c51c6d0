"""Views between the sites: each takes the processor some time, and a reshape of a transposed tensor is a copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from amptune.core.ops import Family, op_named

_MAY_COPY = ("reshape", "flatten")


def is_view(shape: Sequence[int], strides: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a tensor of this shape and these strides has ``wanted`` as a view: what ``torch.Tensor.view`` asks."""
    runs = _runs(shape, strides)
    if not runs or 0 in shape:
        return True
    left = runs.pop()
    for length in reversed([each for each in wanted if each != 1]):
        if left == 1:
            if not runs:
                return False
            left = runs.pop()
        if left % length:
            return False
        left //= length
    return left == 1 and not runs


def _runs(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Elements of each group of dimensions that lie in memory as one."""
    runs: list[int] = []
    last = None
    for length, stride in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if last is not None and last == stride * length:
            runs[-1] *= length
        else:
            runs.append(length)
        last = stride
    return runs


def counted_views(nodes: Iterable[fx.Node], seen: set[str]) -> tuple[int, int]:
    """How many views ``nodes`` are, and how many elements they copy.

    Those in ``seen`` have been counted, and all are added to it.
    """
    count, elements = 0, 0
    for node in nodes:
        op = str(node.meta.get("amptune_op") or "")
        if node.name in seen or not op or op_named(op).family is not Family.VIEW or not node.all_input_nodes:
            continue
        seen.add(node.name)
        count += 1
        if op in _MAY_COPY:
            elements += _copied(node)
    return count, elements


def _copied(node: fx.Node) -> int:
    before, after = (_value(each) for each in (node.all_input_nodes[0], node))
    if before is None or after is None or is_view(before.shape, before.stride(), after.shape):
        return 0
    return math.prod(after.shape)


def _value(node: fx.Node) -> torch.Tensor | None:
    value: Any = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not all(isinstance(each, int) for each in value.shape):
        return None
    return value if value.layout is torch.strided else None

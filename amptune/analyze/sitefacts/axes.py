"""Which axis of a tensor each axis of a view of it runs along, by shapes and strides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.dtypes import family, walk
from amptune.analyze.sitefacts.views import is_view
from amptune.core.ops import Family

_PICKS = frozenset({"slice", "select", "narrow", "split", "chunk", "unbind", "getitem"})
_RESHAPES = frozenset({"reshape", "flatten"})


def axes_of_view(node: fx.Node) -> tuple[int | None, ...] | None:
    """For each axis of a tensor the axis of what made it along which it runs, all of it or a part, counted from the
    last; ``None`` for an axis of which that is not known, and where there is no view on the way."""
    steps = [step for step in reversed(list(walk(node))) if _tensor(step) is not None]
    if len(steps) < 2 or any(step.meta.get("amptune_op") == "as_strided" for step in steps):
        return None
    axes: tuple[int | None, ...] = tuple(range(-steps[0].meta["val"].dim(), 0))
    for before, after in itertools.pairwise(steps):
        found = _step(after, before.meta["val"], after.meta["val"])
        axes = tuple(None if axis is None else axes[axis] for axis in found)
    return axes


def _step(node: fx.Node, before: torch.Tensor, after: torch.Tensor) -> Sequence[int | None]:
    if family(node) is Family.CAST:
        return range(after.dim()) if before.shape == after.shape else [None] * after.dim()
    op = str(node.meta.get("amptune_op"))
    if op in _RESHAPES and not is_view(before.shape, before.stride(), after.shape):
        return [None] * after.dim()
    return [
        _axis(before, size, stride, picks=op in _PICKS)
        for size, stride in zip(after.shape, after.stride(), strict=True)
    ]


def _axis(before: torch.Tensor, size: int, stride: int, *, picks: bool) -> int | None:
    """The axis that has a stride, or a multiple of it where some of its numbers were picked."""
    if size < 2 or stride == 0:
        return None
    found = []
    for axis, (own, step) in enumerate(zip(before.shape, before.stride(), strict=True)):
        if own < 2 or step == 0:
            continue
        taken = stride % step == 0 and (size - 1) * (stride // step) < own
        if (size == own and stride == step) or (picks and taken):
            found.append(axis)
    return found[0] if len(found) == 1 else None


def _tensor(node: fx.Node) -> torch.Tensor | None:
    value: Any = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) and value.layout is torch.strided else None

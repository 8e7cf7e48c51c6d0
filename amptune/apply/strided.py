"""Where a padded output need not be copied: the slice that a padded Linear gives is not contiguous in memory.

Whether the code that follows takes such a tensor (``.view(B, -1)`` may raise) only a run can say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from amptune import runtime
from amptune.apply.support import paddings

TOLERANCE = 1e-4
"""Relative difference of the loss that another order of summation may make in FP32."""


def strided_where_safe(model: nn.Module, run: Callable[[], torch.Tensor], paths: Sequence[str]) -> frozenset[str]:
    """Misaligned Linear modules among ``paths`` whose padded output may stay uncopied.

    A forward and backward in FP32, padded and uncopied, must run and give the loss that the same gives with copies;
    first with all of them so, then where that fails with one after the other. Running statistics and gradients are
    the caller's to restore.

    Args:
        model: the model, with no plan in force.
        run: a forward; returns the loss, the same each time.
        paths: the modules that a plan may pad.
    """
    candidates = [path for path in paths if _is_padded_linear(model.get_submodule(path))]
    if not candidates:
        return frozenset()
    expected = _loss(model, run, candidates, frozenset())
    if expected is None or _agrees(model, run, candidates, frozenset(candidates), expected):
        return frozenset(candidates if expected is not None else ())
    alone = frozenset(path for path in candidates if _agrees(model, run, candidates, frozenset({path}), expected))
    return alone if _agrees(model, run, candidates, alone, expected) else frozenset()


def _is_padded_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear and any(pad for pad, _ in paddings(module))


def _agrees(
    model: nn.Module, run: Callable[[], torch.Tensor], paths: Sequence[str], strided: frozenset[str], expected: float
) -> bool:
    found = _loss(model, run, paths, strided)
    return found is not None and abs(found - expected) <= TOLERANCE * max(abs(expected), 1.0)


def _loss(
    model: nn.Module, run: Callable[[], torch.Tensor], paths: Sequence[str], strided: frozenset[str]
) -> float | None:
    """The loss with ``paths`` padded and ``strided`` uncopied; None where something raises."""
    pads = {path: max(paddings(model.get_submodule(path)))[0] for path in paths}
    table: dict[str, dict[str, Any]] = {
        path: {"format": "fp32", "pad": pad, "strided": path in strided} for path, pad in pads.items()
    }
    applied = runtime.apply_plan(model, table)
    try:
        loss = run()
        loss.backward()
        return float(loss.detach())
    except Exception:  # what the user's code raises on a strided tensor is the answer that was asked for
        return None
    finally:
        applied.undo()

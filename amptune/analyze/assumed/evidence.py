"""Collects what the graph rules may know beside the graph: assumed ranges, a recorded step, changing dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from amptune.analyze.assumed.assume import assume, user_names
from amptune.analyze.assumed.observe import observe_step
from amptune.capture import Capture
from amptune.capture.forward import batch_names, repeatable
from amptune.capture.target import Target
from amptune.capture.usercode import describe, quiet
from amptune.core.evidence import DynamicDim, Evidence
from amptune.errors import AmptuneError, WorkError

BATCHES = 4
"""Batches of ``train_batches`` that are looked at for dimensions that change."""


def gather(
    target: Target, capture: Capture, *, stated: Sequence[str] = (), observe: bool = False, train: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Evidence:  # fmt: skip
    """All evidence about a captured target.

    Args:
        target: what was captured.
        capture: its capture.
        stated: ``--range`` arguments.
        observe: run the model for real on its batch.
        train: whether there is a backward.
        say: told what had to be left out.

    Raises:
        UsageError: a range that does not read, or that names no tensor of the batch.
        WorkError: the model cannot be run for real here.
    """
    asked = bool(stated) or observe
    try:
        found = assume(target, capture, stated, asked=asked)
    except AmptuneError as error:
        if asked:
            raise
        say(f"ranges are left out: {error.message}")
        return Evidence()
    except Exception as error:  # weights of a kind that cannot be read: the capture stands without their ranges
        if asked:
            raise WorkError(
                f"the weights or the batch cannot be read for ranges: {describe(error)}",
                hint="leave --range and --calibrate out",
            ) from error
        say(f"ranges are left out: {describe(error)}")
        return Evidence()
    for remark in found.remarks:
        say(f"note: {remark}")
    observed = observe_step(target, train=train) if observe else None
    return Evidence(
        found.facts, found.assumptions, found.inputs, found.weights, asked, observed, tuple(dynamic_dims(target))
    )


def dynamic_dims(target: Target) -> list[DynamicDim]:
    """Dimensions that ``torch._dynamo.mark_dynamic`` marks in the batch, or that differ between training batches."""
    try:
        with quiet(), repeatable():
            batch = target.make_batch()
            batches = list(itertools.islice(target.train_batches(), BATCHES)) if target.train_batches else []
    except Exception:  # what the user's loader needs is not analyze's business
        return []
    names = user_names(target, None, batch)
    found: list[DynamicDim] = []
    for number, (own, tensor) in enumerate(batch_names(batch)):
        name = names.get(id(tensor), own.removeprefix("batch_"))
        shapes = [seen[number].shape for each in batches if (seen := [t for _, t in batch_names(each)])[number:]]
        found += _of_tensor(name, tensor, shapes)
    return found


def _of_tensor(name: str, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> list[DynamicDim]:
    marked = getattr(tensor, "_dynamo_dynamic_indices", set()) | getattr(tensor, "_dynamo_weak_dynamic_indices", set())
    found = []
    for axis, extent in enumerate(tensor.shape):
        sizes = {extent, *(shape[axis] for shape in shapes if len(shape) > axis)}
        if len(sizes) > 1 or axis in marked:
            found.append(DynamicDim(name, axis, tuple(sorted(sizes))))
    return found

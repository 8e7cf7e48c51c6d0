"""What parts of a step that are no sites take, by running them alone: the loss in each of its choices, with large
outputs a good part of a step, and the optimizer with and without a loss scaler."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import torch

from amptune.core.formats import Format
from amptune.core.plan import ScalerConfig
from amptune.runtime import cast_all, tensors_in
from amptune.tune.choices.space import COMPILED_LOSS, FOLLOW
from amptune.tune.prices.costs import times_of
from amptune.tune.running.compilation import BACKEND
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, training

_SCALED = ScalerConfig(enabled=True)
PLAIN_LOSS = "fp32-output"
"""The loss of an output that is FP32 already."""


def measure_losses(
    bench: Workbench, batch: Any, choices: Iterable[str], low: Format, backend: str = BACKEND
) -> dict[str, float]:
    """Milliseconds of forward and backward of the loss for each of ``choices`` on an output in ``low``, casts included.

    And ``PLAIN_LOSS`` on an FP32 output. A choice that does not run is left out; empty for a model that makes its loss
    itself. ``backend`` is torch.compile's, for a loss that is compiled.
    """
    if bench.target.loss_fn is None:
        return {}
    with training(bench, Candidate("fp32")), bench.no_gradients():
        output = bench.target.call(bench.model, batch)
    found = {}
    variants: dict[str, tuple[Any, Format | None, str | None]] = {PLAIN_LOSS: (output, None, None)}
    lowered = cast_all(output, getattr(torch, low.torch_name))
    for choice in choices:
        loss_format = None if choice == FOLLOW else Format.FP32
        variants[choice] = (lowered, loss_format, backend if choice == COMPILED_LOSS else None)
    for name, (given, loss_format, compiled_by) in variants.items():
        target = bench.target_with_loss(loss_format, compiled_by)
        leaves = [tensor.requires_grad_() for tensor in tensors_in(given) if tensor.is_floating_point()]

        def once(target: Any = target, given: Any = given, leaves: list[torch.Tensor] = leaves) -> None:
            torch.autograd.grad(target.loss(given, batch), leaves, allow_unused=True)

        try:
            once()  # what compiles, compiles here
            found[name] = statistics.median(times_of(once, bench.device))
        except RuntimeError:
            continue  # a kernel that this format lacks: the choice will fail in its trial, with the reason
    return found


def measure_update(bench: Workbench) -> tuple[float, float] | None:
    """Milliseconds of the optimizer's step on gradients of zero, and what a loss scaler adds to it.

    None for an optimizer that does not take such gradients.
    """
    found = []
    for candidate in (Candidate("fp32"), Candidate("fp32", scaler=_SCALED)):
        with training(bench, candidate) as run:
            for parameter in bench.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            run.scaler.scale(torch.zeros((), device=bench.device.torch))  # its first call sets the scale up
            try:
                found.append(statistics.median(times_of(run.update, bench.device)))
            except Exception:  # the optimizer may be the user's own: what it makes of such gradients is not known
                return None
    return found[0], max(0.0, found[1] - found[0])

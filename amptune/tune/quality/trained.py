"""Runs that are judged: K training steps and the loss of what they give, and the gradients at given weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch

from amptune.capture.usercode import place_of
from amptune.core.scaler import SMALLEST_SCALE
from amptune.errors import CaptureError
from amptune.tune.running.batches import Batches
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.recipes import Candidate, backend_flags
from amptune.tune.running.state import dense
from amptune.tune.running.training import Run, Workbench, eager, loss_of, seed_everything, still, training


def loss_after_training(
    bench: Workbench,
    candidate: Candidate,
    batches: Batches,
    order: int,
    seed: int,
    state: dict[str, torch.Tensor] | None = None,
    after_step: Callable[[torch.Tensor], bool] | None = None,
) -> tuple[float, Run]:
    """Held-back FP32 loss after training on the batches in one order, from ``state`` or the initial weights.

    ``after_step`` is called with each step's loss once its weights are there, and says whether that was enough.
    """
    with still(bench), training(bench, candidate, state) as run:
        seed_everything(seed + order)
        for batch in batches.order(order):
            loss = run.counted_step(batch)
            if after_step is not None and after_step(loss):
                break
    return held_back_loss(bench, batches), run


def held_back_loss(bench: Workbench, batches: Batches, *, train_mode: bool = False) -> float:
    """Mean loss of the FP32 parameters, evaluated in FP32, on the held-back batches.

    The model must not be under a plan or autocast here, so that a loss that is merely rounded neither hides nor fakes
    a gap. A model that gives no loss in eval mode is in train mode, without dropout and with one random state.
    """
    fp32 = Candidate("fp32")
    was_training = bench.model.training
    bench.model.train(train_mode or not bench.evaluates)
    try:
        if not bench.evaluates:
            seed_everything(0)
        with (
            bench.no_gradients(),
            backend_flags(False),
            eager(bench),
            nullcontext() if bench.evaluates else still(bench),
        ):
            losses = [loss_of(bench, fp32, batch).float().item() for batch in batches.held_back]
    finally:
        bench.model.train(was_training)
    return statistics.fmean(losses)


class Gradients(NamedTuple):
    """Unscaled gradients by parameter, the loss they are of, and the scale it was multiplied by."""

    named: dict[str, torch.Tensor]
    loss: float
    scale: float


def gradients_at(
    bench: Workbench, candidate: Candidate, batches: Batches, state: dict[str, torch.Tensor], seed: int
) -> Gradients:
    """Unscaled gradients of the first training batch at the weights ``state``, under ``candidate``.

    One step is trained first and the weights are set back, so that a cast kept from older weights shows.
    """
    scaler = candidate.scaler
    with still(bench), training(bench, candidate) as run:
        seed_everything(seed)
        run.step(batches.train[0])

        def scaled_by(scale: float) -> Gradients:
            bench.restore(state)
            seed_everything(seed)
            loss = run.loss(batches.train[0])
            bench.backward(loss * scale)
            named = bench.model.named_parameters()
            gradients = {name: dense(p.grad).float() / scale for name, p in named if p.grad is not None}
            return Gradients(gradients, loss.item(), scale)

        found = scaled_by(scaler.init_scale if scaler.enabled else 1.0)
        if not scaler.enabled or _is_finite(found):
            return found
        least = scaled_by(SMALLEST_SCALE)
        if not _is_finite(least):  # no scale cures that
            return least
        while not _is_finite(found) and found.scale > least.scale:
            # What the scaler does after an overflow: back off and try again. A summed loss may need a scale below 1.
            found = scaled_by(found.scale * scaler.backoff_factor)
        return found


def _is_finite(gradients: Gradients) -> bool:
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients.named.values())


def user_evaluation(bench: Workbench) -> float | None:
    """The user's ``evaluate`` on the current weights in FP32, when the target has one.

    Raises:
        CaptureError: it raises, or returns something that is not a number.
    """
    if bench.target.evaluate is None:
        return None
    try:
        with backend_flags(False):
            value = bench.target.evaluate(bench.model)
    except Exception as error:
        raise CaptureError(f"evaluate(model) raised {plain_reason(error, place_of(error))}") from error
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # of a tensor of several elements it is the last
        raise CaptureError(
            f"evaluate(model) returned {type(value).__name__}, not a number", hint="return a float, higher is better"
        ) from None

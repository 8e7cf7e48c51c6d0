"""The loss of the FP32 model before the first step, from which progress is counted."""

from __future__ import annotations

import math

import torch

from amptune.capture.untrained import CUT_OFF, CUT_OFF_HINT
from amptune.capture.usercode import place_of
from amptune.errors import TuneError
from amptune.tune.quality.trained import held_back_loss
from amptune.tune.running.batches import Batches
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, loss_of, still


def initial_loss(bench: Workbench, batches: Batches) -> float:
    """Loss before the first step: the smaller one of eval mode and train mode.

    Running statistics that nothing has run yet normalise nothing: in eval mode such a model may begin at a hundred
    times the loss that it trains from, beside which every gap would be small.

    Raises:
        TuneError: it is NaN or infinity.
    """
    initial = _evaluated(bench, batches)
    if not math.isfinite(initial):
        raise TuneError(
            f"the loss of the FP32 model is {initial} before the first step{_nan_in(bench, batches)}",
            hint="no precision setting can cure this: check the batch and the model in FP32 first",
        )
    if not loss_of(bench, Candidate("fp32"), batches.train[0]).requires_grad:
        raise TuneError(CUT_OFF, hint=CUT_OFF_HINT)
    with still(bench):
        trained_from = held_back_loss(bench, batches, train_mode=True)
    return min(initial, trained_from) if math.isfinite(trained_from) else initial


def _nan_in(bench: Workbench, batches: Batches) -> str:
    """The first tensor of the held-back batches, or parameter, that holds NaN, as the end of a sentence."""
    # Half a second that runs without NaN do not need.
    from amptune.analyze.assumed.assume import not_numbers, user_names

    for batch in batches.held_back:
        for remark in not_numbers(user_names(bench.target, bench.model, batch), batch, bench.model):
            return f": {remark}"
    return ""


def _evaluated(bench: Workbench, batches: Batches) -> float:
    """The held-back loss in eval mode, or in train mode where the model gives none in eval mode, which is noted."""
    try:
        return held_back_loss(bench, batches)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the user's code: this model cannot be evaluated, or fails altogether
        bench.evaluates, bench.eval_error = False, plain_reason(error, place_of(error))
        return held_back_loss(bench, batches)

"""A loss that comes out in 16 bits: training was judged with it, but the number that a loop prints has few digits."""

from __future__ import annotations

from typing import Any

import torch

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.training import Workbench, training

_DIGITS = {Format.BF16: "2 to 3", Format.FP16: "3 to 4"}


def rounded_loss(bench: Workbench, candidate: Candidate, batch: Any) -> Format | None:
    """The 16-bit format that the candidate's loss is rounded to, where the FP32 reference's is not."""
    plan = candidate.plan
    used = {site.format for site in plan.sites.values()} if plan else {candidate.autocast}
    formats = [each for each in _DIGITS if each in used]
    loss, reference = _loss(bench, candidate, batch), _loss(bench, Candidate("fp32"), batch)
    return next((each for each in formats if _is_in(each, loss) and not _is_in(each, reference)), None)


def _loss(bench: Workbench, candidate: Candidate, batch: Any) -> torch.Tensor:
    with training(bench, candidate) as run, bench.no_gradients():
        loss = run.loss(batch).detach()
    bench.restore()
    return loss


def _is_in(number_format: Format, loss: torch.Tensor) -> bool:
    """The loss may be in FP32 again after it was rounded. Few numbers of FP32 are numbers of 16 bits by chance."""
    dtype = getattr(torch, number_format.torch_name)
    return loss.dtype is dtype or bool(loss.frac() != 0 and torch.equal(loss.to(dtype).to(loss.dtype), loss))


def rounded_loss_note(loss: Format | None, plan: Plan, *, has_loss_fn: bool) -> str | None:
    """What the user has to know of a loss that comes out in 16 bits; None where it does not.

    ``has_loss_fn``: the loss is made by a ``loss_fn``, whose format is the plan's, and not by the model.
    """
    if loss is None:
        return None
    if has_loss_fn and plan.loss_format is None:
        remedy = 'in FP32 it has them all: write "loss": {"format": "fp32"} in plan.json, then run amptune apply'
    else:
        remedy = (
            "the model makes it of 16-bit outputs: take these to FP32 before, as in logits.float(), to see all digits"
        )
    return f"the loss comes out in {loss}, so what your loop prints of it has {_DIGITS[loss]} digits; {remedy}"

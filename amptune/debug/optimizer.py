"""Weights that turn NaN in the optimizer's step, out of finite weights and finite gradients."""

from __future__ import annotations

from typing import Any

import torch

from amptune.core.formats import Format

_HALF = {torch.float16: Format.FP16, torch.bfloat16: Format.BF16}


def optimizer_failure(
    optimizer: torch.optim.Optimizer, name: str, parameter: torch.nn.Parameter, step: int
) -> dict[str, Any]:
    """What happened to a parameter that is not finite after ``optimizer.step``, and what to change.

    In FP16 parameters Adam's eps of 1e-8 is zero, and so are squares of gradients below 2.4e-4: their quotient is 0/0.
    """
    kind = type(optimizer).__name__
    low = _HALF.get(parameter.dtype)
    settings = next(
        (group for group in optimizer.param_groups if any(p is parameter for p in group["params"])), {}
    )  # fmt: skip
    eps = settings.get("eps")
    message = f"NaN or inf in the optimizer of step {step}: {kind} makes {name} not finite; its gradient is finite"
    if low is None:
        cure = "no precision setting can cure this: lower the learning rate, or look at the gradients"
        return _entry(step, name, message, cure, low=False)
    if isinstance(eps, float) and 0 < eps <= low.smallest_subnormal / 2:
        message += f", but {name} is in {low}, where eps {eps:g} is zero"
        cure = f"keep the parameters in FP32 (autocast lowers them as needed), or give {kind} an eps of 1e-4"
    else:
        message += f", but {name} is in {low}"
        cure = "keep the parameters in FP32 (autocast lowers them as needed)"
    return _entry(step, name, message, cure, low=True)


def _entry(step: int, name: str, message: str, cure: str, *, low: bool) -> dict[str, Any]:
    return {"step": step, "parameter": name, "message": message, "cure": cure, "low": low}

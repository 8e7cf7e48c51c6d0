"""Steps that train nothing: every parameter is frozen, or the loss is cut off from those that are not."""

from __future__ import annotations

from torch import nn

FROZEN = "the model has no parameter that requires a gradient, so there is nothing to train"
FROZEN_HINT = "call requires_grad_(True) on the parameters that are to be trained"
CUT_OFF = "the loss does not depend on any parameter of the model that requires a gradient"
CUT_OFF_HINT = "look for .detach(), .item(), argmax or torch.no_grad() between the model's layers and the loss"


def untrained_note(model: nn.Module, *, has_gradient: bool, is_hidden: bool = False) -> str | None:
    """What to say of a training step that has no backward; None where it has one.

    A model without parameters is a function that is looked at for itself, which nobody means to train, unless its
    modules keep their weights in a form of their own, as quantised ones do.

    Args:
        model: the model that ran.
        has_gradient: whether its loss, or its output where there is no loss, requires one.
        is_hidden: whether code that no graph shows has a part in it: what that gives on fake tensors may lack its
            gradient.
    """
    params = list(model.parameters())
    packed = is_hidden and any(True for _ in model.children())
    if has_gradient or not (params or packed):
        return None
    if not any(param.requires_grad for param in params):
        return f"{FROZEN}: {FROZEN_HINT}"
    return None if is_hidden else f"{CUT_OFF}: {CUT_OFF_HINT}"

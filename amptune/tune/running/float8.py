"""The stock FP8 recipes: torchao's float8 training on the user's model, and the model as it was afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from torch import nn

from amptune.core.hardware import FP8_MULTIPLE
from amptune.tune.running.device import Device

STOCK_SCALINGS = ("tensorwise", "rowwise")
"""Names of torchao's recipes, which the stock recipes ``fp8-tensorwise`` and ``fp8-rowwise`` are."""


def stock_scalings(device: Device, model: nn.Module) -> tuple[str, ...]:
    """The FP8 recipes that run here: on a GPU with FP8 products, where torchao is installed, and where the model has a
    linear to convert. Without one, each would be autocast in BF16 under another name."""
    runs = device.has_fp8() and importlib.util.find_spec("torchao") is not None
    return STOCK_SCALINGS if runs and _converts(model) else ()


def missing_note(device: Device, model: nn.Module) -> str | None:
    """Why the FP8 recipes are left out on a device that could run them, as a line for the user."""
    if not device.has_fp8() or stock_scalings(device, model):
        return None
    recipes = " and ".join(f"fp8-{scaling}" for scaling in STOCK_SCALINGS)
    if _converts(model):
        return f"the stock recipes {recipes} are left out: they need torchao, pip install 'amptune[fp8]'"
    return (
        f"the stock recipes {recipes} are left out: no nn.Linear of the model has dimensions that are multiples of "
        f"{FP8_MULTIPLE}, so they would be autocast-bf16"
    )


def _converts(model: nn.Module) -> bool:
    return any(takes_fp8(module) for module in model.modules())


@contextlib.contextmanager
def float8_linears(model: nn.Module, scaling: str) -> Iterator[None]:
    """``convert_to_float8_training`` on ``model``, in place, with torchao's recipe; undone on leaving.

    Converted is every linear whose dimensions FP8 takes, as its users do it; the rest is for autocast. The parameters
    are the same objects in both forms, so an optimizer made inside or outside goes on.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, nn.Linear)
    ]
    convert_to_float8_training(
        model, config=Float8LinearConfig.from_recipe_name(scaling), module_filter_fn=lambda part, _: takes_fp8(part)
    )
    try:
        yield
    finally:
        for parent, name, child in linears:
            parent._modules[name] = child


def takes_fp8(module: nn.Module) -> bool:
    """Whether a linear's dimensions are what FP8 products take."""
    return isinstance(module, nn.Linear) and not any(size % FP8_MULTIPLE for size in module.weight.shape)

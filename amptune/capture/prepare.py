"""Building what a frontend runs: a model with fake weights that take no memory, or a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from amptune.capture.fakes import FakeTensorMode, fake_batch, fake_model, new_fake_mode, parameters_as_fakes
from amptune.capture.forward import Prepared, repeatable
from amptune.capture.target import Target
from amptune.errors import TargetError

_LAYERDROP = ("layerdrop", "layer_drop", "encoder_layerdrop", "decoder_layerdrop")


def prepare_fake(target: Target, *, train: bool, notes: list[str]) -> tuple[Prepared, FakeTensorMode]:
    """The model with fake weights, and the batch with fake floating tensors and real integers, which code may read.

    Raises:
        TargetError: the model cannot be built in any way.
    """
    mode = new_fake_mode()
    with repeatable():
        batch = target.make_batch()
        model = ready(without_memory(target, mode, notes), train, notes)
        prepared = Prepared(target, model, fake_batch(batch, mode))
        if run_lazy_layers(target, model, lambda: prepared.batch):
            fake_model(model, mode)
    return prepared, mode


def without_memory(target: Target, mode: FakeTensorMode, notes: list[str]) -> nn.Module:
    """The target's model with fake weights; built with real ones first where it cannot be otherwise."""
    try:
        with parameters_as_fakes(mode):
            model = target.make_model()
    except TargetError as error:
        # Constructors that read or copy weights cannot do it with fakes.
        model = target.make_model()
        notes.append(f"the model was built with real weights, because without memory {error.message}")
    fake_model(model, mode)
    return model


def prepare_real(target: Target, *, train: bool, notes: list[str]) -> Prepared:
    """The model and the batch as the user's code makes them."""
    with repeatable():
        batch, model = target.make_batch(), target.make_model()
        prepared = Prepared(target, ready(model, train, notes), batch)
        run_lazy_layers(target, prepared.model, lambda: batch)
    return prepared


def run_lazy_layers(target: Target, model: nn.Module, batch: Callable[[], Any]) -> bool:
    """Lazy layers make their weights when they first run; says whether there were any. ``batch`` is asked for then."""
    lazy = any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()])
    if lazy:
        with torch.no_grad():
            target.call(model, batch())
    return lazy


def ready(model: nn.Module, train: bool, notes: list[str]) -> nn.Module:
    """Set the mode, and switch random skipping of layers off: a capture must see all of them."""
    places = [*model.modules(), *filter(None, (getattr(module, "config", None) for module in model.modules()))]
    dropped = False
    for place in {id(place): place for place in places}.values():
        for name in _LAYERDROP:
            if isinstance(getattr(place, name, None), float) and getattr(place, name) > 0:
                setattr(place, name, 0.0)
                dropped = True
    if dropped and train:
        notes.append("layerdrop was set to 0 for the capture: in training, layers are skipped at random")
    if train and not model.training:
        notes.append("the model comes in eval mode, and is judged in train mode, as in a training loop")
    return model.train(train)


def weight_bytes(model: nn.Module) -> int:
    """Memory that the parameters and buffers would take; tied ones once."""
    tensors: dict[int, torch.Tensor] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())

"""What a run changes in a model, and how it is set back: every run starts from the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

_SIMPLE = (bool, int, float, str, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that torch keeps in every module, its hooks among them."""
_OF_OURS = ("_amptune", "_compiled")


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters, tied ones once, and all buffers, also those that a ``state_dict`` leaves out."""
    named = itertools.chain(model.named_parameters(), model.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in named if not nn.parameter.is_lazy(tensor)}


def set_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Set parameters and buffers to copies of ``tensors_of`` the model, in place where they still have their shape.

    Buffers that it lacks were None.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    device = next((parameter.device for parameter in parameters.values()), None)
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            key = f"{path}.{name}" if path else name
            value = state.get(key)
            if value is None or buffer is None or buffer.shape != value.shape:
                module._buffers[name] = None if value is None else value.to(device or value.device, copy=True)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, value in state.items():
            (parameters if name in parameters else buffers)[name].data.copy_(value)


def dense(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient as plain real numbers: with all its rows, where an ``nn.Embedding(..., sparse=True)`` gives those that
    were looked up, and complex ones as pairs."""
    full = gradient if gradient.layout is torch.strided else gradient.to_dense()
    return torch.view_as_real(full.resolve_conj()) if full.is_complex() else full


class _Kept(NamedTuple):
    """A tensor that is an attribute: itself, how often it had been written to, and its value then."""

    tensor: torch.Tensor
    version: int
    value: torch.Tensor


class Attributes:
    """Numbers, flags, texts and tensors that the model keeps in plain attributes: a step counter, "has been set up"."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = {
            path: {name: _kept(value) for name, value in _plain_attributes(module)}
            for path, module in model.named_modules()
        }

    def restore(self, model: nn.Module) -> None:
        """Give those that changed their values again."""
        for path, module in model.named_modules():
            for name, kept in self._kept.get(path, {}).items():
                if not isinstance(kept, _Kept):
                    if vars(module).get(name, kept) != kept:
                        vars(module)[name] = kept
                    continue
                if kept.tensor._version != kept.version or vars(module).get(name) is not kept.tensor:
                    vars(module)[name] = kept.value.clone()


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        is_plain = type(value) in _SIMPLE or (isinstance(value, torch.Tensor) and not value.is_inference())
        if is_plain and name not in _OF_TORCH and not name.startswith(_OF_OURS):
            yield name, value


def _kept(value: Any) -> Any:
    return _Kept(value, value._version, value.detach().clone()) if isinstance(value, torch.Tensor) else value

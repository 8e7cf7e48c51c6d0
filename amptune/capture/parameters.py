"""Names and shapes of a model's parameters, tied ones under one key."""

from __future__ import annotations

import functools

import torch
from torch import nn

from amptune.core.graph import Param, TensorMeta


class ParameterNames:
    """What a ``state_dict`` name stands for."""

    def __init__(self, model: nn.Module) -> None:
        self._params = dict(model.named_parameters(remove_duplicate=False))
        first: dict[int, str] = {}
        for name, param in self._params.items():
            first.setdefault(id(param), name)
        self._keys = {name: first[id(param)] for name, param in self._params.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._params

    def param(self, name: str) -> Param:
        """The parameter called ``name``; tied ones share the key, which is the first name of the tensor."""
        return Param(name, tensor_meta(self._params[name]), self._keys[name])

    def own(self, path: str, module: nn.Module) -> list[str]:
        """Names of a module's parameters, with those of its submodules."""
        prefix = f"{path}." if path else ""
        return [prefix + name for name, _ in module.named_parameters(remove_duplicate=False)]


def tensor_meta(tensor: torch.Tensor) -> TensorMeta:
    """Shape and type of a tensor, real, fake or meta."""
    return _meta(tensor.shape, tensor.dtype, tensor.requires_grad)


@functools.lru_cache(maxsize=4096)
def _meta(shape: torch.Size, dtype: torch.dtype, requires_grad: bool) -> TensorMeta:
    return TensorMeta(tuple(int(extent) for extent in shape), str(dtype).removeprefix("torch."), requires_grad)

"""Casts that change nothing in this run, made visible: ``x.float()`` matters where x is in 16 bits in another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from amptune.capture.names import spelling_of

_NAMED = {"float", "double", "half", "bfloat16", "type_as"}


def call_visibly(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Make a call; a cast works on an alias of its input, so that one which changes nothing gives another tensor."""
    if names_dtype(func, args, kwargs) and args and isinstance(args[0], torch.Tensor):
        args = (torch.ops.aten.alias.default(args[0]), *args[1:])
    return func(*args, **kwargs)


def names_dtype(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is a cast to a dtype, not a move to a device."""
    spelling = spelling_of(func)
    if spelling in _NAMED:
        return True
    is_cast = spelling in {"to", "type"}
    return is_cast and any(isinstance(value, torch.dtype | torch.Tensor) for value in (*args[1:], *kwargs.values()))


def cast_attrs(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> dict[str, str]:
    """The dtype that a cast names, however it is spelled; empty for other calls."""
    if isinstance(result, torch.Tensor) and names_dtype(func, args, kwargs):
        return {"dtype": str(result.dtype).removeprefix("torch.")}
    return {}

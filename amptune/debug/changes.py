"""Changes to the user's source, tried without touching it: calls at a line are made in another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch

from amptune import runtime
from amptune.debug.record import Spot

_HALF = (torch.float16, torch.bfloat16)
ChangeKind = Literal["fp32", "fp32-result", "constant", "scale", "unscale"]


@dataclasses.dataclass(frozen=True)
class Change:
    """What to do at some places of the source.

    Attributes:
        kind: ``fp32`` computes in FP32 and gives the result back in the format of its inputs, ``fp32-result`` leaves
            it in FP32, ``constant`` replaces a literal argument, ``scale`` multiplies the first operand, ``unscale``
            the result.
        spots: where; each stands for all instances of its line in repeated blocks.
        argument: ``constant``: name or position of the literal.
        value: the new literal, or the factor.
    """

    kind: ChangeKind
    spots: frozenset[Spot]
    argument: str = ""
    value: float = 0.0

    def __call__(self, spot: Spot, func: Callable[..., Any]) -> Callable[..., Any] | None:
        """The call in place of ``func`` at ``spot``; None elsewhere."""
        if spot not in self.spots:
            return None
        match self.kind:
            case "fp32":
                return _in_fp32(func, back=True)
            case "fp32-result":
                return _in_fp32(func)
            case "constant":
                return _with_literal(func, self.argument, self.value)
            case "scale":
                return _scaled(func, self.value)
        return _unscaled(func, self.value)


def _in_fp32(func: Callable[..., Any], *, back: bool = False) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = runtime.tensors_in((args, kwargs))
        device_type = tensors[0].device.type if tensors else "cpu"
        # Where autocast chooses the format of the result, it would have been autocast's.
        low = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        low = next((tensor.dtype for tensor in tensors if tensor.dtype in _HALF), low)
        raised_args, raised_kwargs = runtime._map_tensors(runtime._upcast, (args, kwargs))
        with torch.autocast(device_type, enabled=False):
            result = func(*raised_args, **raised_kwargs)
        return runtime.cast_all(result, low) if back and low is not None else result

    return run


def _with_literal(func: Callable[..., Any], argument: str, value: float) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if argument.isdigit():
            position = int(argument)
            args = (*args[:position], value, *args[position + 1 :])
        else:
            kwargs = {**kwargs, argument: value}
        return func(*args, **kwargs)

    return run


def _scaled(func: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        first = next(index for index, value in enumerate(args) if isinstance(value, torch.Tensor))
        return func(*args[:first], args[first] * factor, *args[first + 1 :], **kwargs)

    return run


def _unscaled(func: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs) * factor

    return run

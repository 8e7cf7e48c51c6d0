"""Linear layers in FP8 with tensorwise dynamic scales, emulated by casts: what saturates and what underflows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from amptune.core.formats import Format
from amptune.debug.record import Spot

E4M3, E5M2 = Format.FP8_E4M3, Format.FP8_E5M2


@dataclasses.dataclass
class Fp8Tensor:
    """What one tensor of a linear loses in FP8.

    Attributes:
        elements: nonzero elements seen.
        saturated: those beyond the format's largest number under the scale of the step before (delayed scaling).
        unscaled: those beyond it without any scale.
        flushed: those that become zero under the scale of the tensor itself (dynamic scaling).
        largest: largest magnitude.
    """

    elements: int = 0
    saturated: int = 0
    unscaled: int = 0
    flushed: int = 0
    largest: float = 0.0
    _last: float | None = None

    def add(self, tensor: torch.Tensor, number_format: Format, scale: float) -> None:
        """Count one tensor that is multiplied by ``scale`` before the cast."""
        sizes = tensor.detach().abs().float()
        nonzero = sizes > 0
        amax = float(sizes.max()) if sizes.numel() else 0.0
        self.elements += int(nonzero.sum())
        self.unscaled += int((sizes > number_format.max).sum())
        self.flushed += int(((sizes * scale <= number_format.smallest_subnormal / 2) & nonzero).sum())
        if self._last is not None:
            self.saturated += int((sizes * self._last > number_format.max).sum())
        self._last = scale
        self.largest = max(self.largest, amax)

    def to_json(self) -> dict[str, float]:
        """Shares of the nonzero elements."""
        count = max(1, self.elements)
        return {
            "saturated": self.saturated / count, "saturated_unscaled": self.unscaled / count,
            "underflow": self.flushed / count, "largest": self.largest,
        }  # fmt: skip


class Fp8Linears:
    """The rewrite that runs linear layers in FP8, as torchao's tensorwise recipe does, and counts what they lose."""

    def __init__(self) -> None:
        self._layers: dict[str, dict[str, Fp8Tensor]] = {}
        self.note = (
            "FP8 is emulated: inputs and weights are cast to e4m3 and output gradients to e5m2, each with a scale from "
            "its own largest magnitude, then multiplied in FP32; the rest runs under bf16 autocast"
        )

    def __call__(self, spot: Spot, func: Callable[..., Any]) -> Callable[..., Any] | None:
        """FP8 in place of ``F.linear``; None elsewhere."""
        if func is not F.linear or spot.op != "linear":
            return None

        def run(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            tensors = self._layers.setdefault(spot.module or "model", {})
            dtype = torch.get_autocast_dtype(input.device.type)
            output: torch.Tensor = _Fp8Linear.apply(input, weight, tensors, dtype)  # type: ignore[no-untyped-call]
            return output if bias is None else output + bias.to(output.dtype)

        return run

    def to_json(self) -> list[dict[str, Any]]:
        """One entry a layer."""
        return [{"module": path, **{name: found.to_json() for name, found in tensors.items()}}
                for path, tensors in self._layers.items()]  # fmt: skip


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, tensors: dict[str, Fp8Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.tensors = tensors
        ctx.dtypes = input.dtype, weight.dtype
        low_input, low_weight = _cast(input, E4M3, tensors, "input"), _cast(weight, E4M3, tensors, "weight")
        ctx.save_for_backward(low_input, low_weight)
        return F.linear(low_input, low_weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        low_input, low_weight = ctx.saved_tensors
        low = _cast(gradients[0], E5M2, ctx.tensors, "gradient")
        rows = low.flatten(0, -2) if low.dim() > 1 else low[None]
        columns = low_input.flatten(0, -2) if low_input.dim() > 1 else low_input[None]
        return (low @ low_weight).to(ctx.dtypes[0]), (rows.t() @ columns).to(ctx.dtypes[1]), None, None


def _cast(tensor: torch.Tensor, number_format: Format, tensors: dict[str, Fp8Tensor], name: str) -> torch.Tensor:
    """The values that FP8 leaves of a tensor, in FP32."""
    values = tensor.detach().float()
    amax = float(values.abs().max()) if values.numel() else 0.0
    scale = number_format.max / amax if 0 < amax < float("inf") else 1.0
    tensors.setdefault(name, Fp8Tensor()).add(values, number_format, scale)
    cast = (values * scale).clamp(-number_format.max, number_format.max).to(getattr(torch, number_format.torch_name))
    return cast.float() / scale

"""One leaf module computed as a choice would round it: tensors are rounded, the arithmetic between them is FP32.

That is what tensor cores do: products of rounded operands, accumulated in FP32, rounded once on the way out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from amptune.capture.fakes import map_tensors
from amptune.capture.target import tensors_in
from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.tune.running.state import dense

_SCALE_FLOOR = 1e-12


@dataclasses.dataclass(frozen=True)
class Result:
    """What a site gives: its floating outputs, and gradients of its inputs and of its parameters."""

    outputs: list[torch.Tensor]
    input_grads: list[torch.Tensor]
    weight_grads: list[torch.Tensor]


@dataclasses.dataclass(frozen=True)
class SiteCall:
    """One call of a leaf module, with the gradients of its floating outputs (None where backward gave none)."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grad_outputs: Sequence[torch.Tensor | None]

    def exact(self) -> Result:
        """The site in FP32."""
        return self._run(_same, _same, _same)

    def rounded(self, choice: Choice, loss_scale: float) -> Result:
        """The site in ``choice``; gradients carry ``loss_scale`` while they are in FP16."""
        if choice.format.is_fp8:
            return _fp8_linear(self, choice)
        scale = loss_scale if choice.format is Format.FP16 else 1.0

        def value(tensor: torch.Tensor) -> torch.Tensor:
            return to_format(tensor, choice.format)

        def gradient(tensor: torch.Tensor) -> torch.Tensor:
            return to_format(tensor * scale, choice.format) / scale

        # BatchNorm keeps FP32 weights whatever its input is in.
        of_weight = _same if isinstance(self.module, nn.modules.batchnorm._BatchNorm) else value
        return self._run(value, of_weight, gradient)

    def _run(
        self,
        value: Callable[[torch.Tensor], torch.Tensor],
        of_weight: Callable[[torch.Tensor], torch.Tensor],
        gradient: Callable[[torch.Tensor], torch.Tensor],
    ) -> Result:
        inputs: list[torch.Tensor] = []

        def fresh(tensor: torch.Tensor) -> torch.Tensor:
            leaf = value(tensor.detach()).clone().requires_grad_(tensor.requires_grad)
            if tensor.requires_grad:
                inputs.append(leaf)
            return leaf

        args, kwargs = map_floats(self.args, fresh), map_floats(dict(self.kwargs), fresh)
        weights = {
            name: of_weight(p.detach()).clone().requires_grad_(p.requires_grad)
            for name, p in self.module.named_parameters()
        }
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        trained = [weight for weight in weights.values() if weight.requires_grad]
        with torch.enable_grad():
            outputs = floats_in(functional_call(self.module, weights | buffers, args, kwargs))
        grads = _gradients(outputs, [*inputs, *trained], self.grad_outputs, gradient)
        return Result([value(out.detach()) for out in outputs], grads[: len(inputs)], grads[len(inputs) :])


def to_format(tensor: torch.Tensor, number_format: Format) -> torch.Tensor:
    """The tensor rounded to a format and back in FP32; what overflows is infinite."""
    dtype: torch.dtype = getattr(torch, number_format.torch_name)
    rounded: torch.Tensor = tensor.to(dtype).float()
    return rounded


def to_fp8(tensor: torch.Tensor, number_format: Format, over: int | None) -> torch.Tensor:
    """The tensor rounded to FP8 with one scale for all of it, or for each slice along dimension ``over``."""
    amax = tensor.abs().amax() if over is None else tensor.abs().amax(dim=over, keepdim=True)
    scale: torch.Tensor = number_format.max / amax.clamp(min=_SCALE_FLOOR)
    limited = (tensor * scale).clamp(-number_format.max, number_format.max)
    rounded: torch.Tensor = to_format(limited, number_format) / scale
    return rounded


def floats_in(value: Any) -> list[torch.Tensor]:
    """Floating tensors in nested tuples, lists, dicts and dataclasses."""
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def map_floats(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nest with ``function`` of every floating tensor."""
    return map_tensors(value, lambda tensor: function(tensor) if tensor.is_floating_point() else tensor)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()


def _gradients(
    outputs: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    grad_outputs: Sequence[torch.Tensor | None],
    gradient: Callable[[torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Gradients of ``wanted``, rounded where they enter and where they leave; zeros where there is none."""
    flowing = [
        (o, gradient(g)) for o, g in zip(outputs, grad_outputs, strict=True) if g is not None and o.requires_grad
    ]
    if not flowing or not wanted:
        return [torch.zeros_like(tensor) for tensor in wanted]
    ends, grads = zip(*flowing, strict=True)
    found = torch.autograd.grad(ends, wanted, grads, allow_unused=True)
    return [torch.zeros_like(w) if g is None else gradient(dense(g)) for w, g in zip(wanted, found, strict=True)]


def _fp8_linear(call: SiteCall, choice: Choice) -> Result:
    """A Linear in FP8: each of the three products rounds its two operands along the dimension that it sums over."""
    if not isinstance(call.module, nn.Linear):
        raise RuntimeError("only a Linear has an FP8 form")
    arriving = floats_in((call.args, dict(call.kwargs)))[0]
    weight, bias = call.module.weight, call.module.bias
    x, w = arriving.detach(), weight.detach()
    rows, rowwise = x.reshape(-1, x.shape[-1]), choice.scaling != "tensorwise"
    # Tensorwise gradients are E5M2 for its range; a scale for each row leaves E4M3 enough of it.
    of_gradient = choice.format if rowwise else Format.FP8_E5M2

    def rounded(tensor: torch.Tensor, dim: int, number_format: Format = choice.format) -> torch.Tensor:
        return to_fp8(tensor, number_format, dim if rowwise else None)

    out = rounded(rows, 1) @ rounded(w, 1).T
    out = to_format(out if bias is None else out + bias.detach(), Format.BF16)
    g = call.grad_outputs[0]
    if g is None:
        return Result([out.view(*x.shape[:-1], -1)], [], [])
    grad = g.reshape(-1, g.shape[-1])
    into_x = to_format(rounded(grad, 1, of_gradient) @ rounded(w, 0), Format.BF16)
    if choice.scaling == "rowwise_gw_hp":
        into_w = to_format(grad, Format.BF16).T @ to_format(rows, Format.BF16)
    else:
        into_w = rounded(grad, 0, of_gradient).T @ rounded(rows, 0)
    into_weights = [to_format(into_w, Format.BF16)] if weight.requires_grad else []
    if bias is not None and bias.requires_grad:
        into_weights.append(to_format(to_format(grad, Format.BF16).sum(0), Format.BF16))
    into_inputs = [into_x.view_as(x)] if arriving.requires_grad else []
    return Result([out.view(*x.shape[:-1], -1)], into_inputs, into_weights)

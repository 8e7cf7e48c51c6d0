"""What each layer loses to underflow: counted on the FP32 twin, for what the low format really computes."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.debug.passes import Pass, twins
from amptune.debug.record import Op
from amptune.debug.result import LayerLoss


class Losses:
    """Adds up over the steps that are looked at.

    Attributes:
        lost_forward: the first op of each layer that loses most of its result.
        largest_gradient: (magnitude unscaled, op) of each layer's largest gradient, here or in FP32.
    """

    def __init__(self) -> None:
        self._layers: dict[str, LayerLoss] = {}
        self.lost_forward: dict[str, tuple[float, Op]] = {}
        self.lost_backward: dict[str, tuple[float, Op]] = {}
        self.largest_gradient: dict[str, tuple[float, Op]] = {}

    def add(self, low: Pass, high: Pass, number_format: Format, step: int, scale: float) -> None:
        """Count one step; both passes detailed, at the same scale."""
        twin = twins(low, high)
        for op in low.ops:
            other = twin(op)
            if not any(m.dtype == number_format.torch_name for m in op.outputs):
                continue
            if op.phase == "backward" and op.call is not None:
                self._note_largest(op, other, low.ops[op.call], scale)
            if other is None:
                continue
            layer = self._layers.setdefault(op.path, LayerLoss(op.path))
            if op.phase == "forward":
                self._add_activation(layer, op, other)
            else:
                self._add_gradient(layer, low.ops[op.call] if op.call is not None else op, other, scale)

    def layers(self) -> list[LayerLoss]:
        """One entry a layer, in call order."""
        return list(self._layers.values())

    def _add_activation(self, layer: LayerLoss, op: Op, twin: Op) -> None:
        for magnitude in twin.outputs:
            layer.activations += magnitude.nonzero
            layer.activations_lost += magnitude.lost
            layer.activations_subnormal += magnitude.subnormal
            layer.largest_activation = max(layer.largest_activation, magnitude.amax)
            if magnitude.lost_norm > layer.activation_norm:
                layer.activation_norm = magnitude.lost_norm
                self.lost_forward[layer.path] = (magnitude.lost_norm, op)

    def _note_largest(self, op: Op, twin: Op | None, owner: Op, scale: float) -> None:
        # The twin's too: where everything underflows, only FP32 says how large the gradients would be.
        size = max(magnitude.amax for magnitude in (*op.outputs, *(twin.outputs if twin else ()))) / scale
        if size >= self.largest_gradient.get(op.path, (0.0, owner))[0]:
            self.largest_gradient[op.path] = (size, owner)

    def _add_gradient(self, layer: LayerLoss, owner: Op, twin: Op, scale: float) -> None:
        for magnitude in twin.outputs:
            layer.gradients += magnitude.nonzero
            layer.gradients_lost += magnitude.lost
            layer.gradients_subnormal += magnitude.subnormal
            layer.largest_gradient = max(layer.largest_gradient, magnitude.amax / scale)
            if magnitude.lost_norm > layer.gradient_norm:
                layer.gradient_norm = magnitude.lost_norm
                self.lost_backward[layer.path] = (magnitude.lost_norm, owner)

"""Layers whose gradients underflow, and whether a loss scale can feed them all."""

from __future__ import annotations

import math
from collections.abc import Callable

from amptune.core.formats import Format
from amptune.core.scaler import MARGIN
from amptune.debug.changes import Change
from amptune.debug.losses import Losses
from amptune.debug.magnitude import number
from amptune.debug.record import Op, Rewrite
from amptune.debug.result import LayerLoss, Underfed, location_of

STARVED = 0.1
"""Share of a gradient's norm that is lost, from which on a layer does not train as it should."""
_FIRST, _STEPS_TO_GROW = 16, 2000
"""torch.amp.GradScaler starts at 2**16 and doubles after so many good steps (its init_scale and growth_interval)."""
Check = Callable[[float, tuple[Rewrite, ...]], Losses | None]


def find_underfed(
    losses: Losses, number_format: Format, *, scaled: bool, scale: float, check: Check
) -> list[Underfed]:  # fmt: skip
    """Layers that lose at least STARVED of a gradient's norm, with the change that feeds them.

    Args:
        losses: of the run.
        number_format: the format asked about.
        scaled: whether the run had a loss scale.
        scale: what it was in the end.
        check: runs a step at another scale with changes, and counts anew; None where gradients overflow.
    """
    starved = [layer for layer in losses.layers() if layer.gradient_norm >= STARVED]
    if not starved:
        return []
    best = round(math.log2(_scale_for(losses, number_format)))
    for power in dict.fromkeys((min(best, _FIRST), best)):
        fed = check(2.0**power, ())
        if fed is not None and not _starved(fed):
            advice = f"scale the loss by 2**{power} ({_how_to_get_there(power)})"
            return _by_line(starved, losses, scale, advice, verified=True)
    return _capped(starved, losses, number_format, scale, check)


def _capped(
    starved: list[LayerLoss], losses: Losses, number_format: Format, scale: float, check: Check
) -> list[Underfed]:  # fmt: skip
    """No one scale does: the layers with the largest gradients keep it down, so they leave the format."""
    ranked = sorted(losses.largest_gradient.items(), key=lambda item: -item[1][0])
    spots = []
    for position, (_, (_, op)) in enumerate(ranked[:-1]):
        spots.append(op.spot)
        change = Change("fp32-result", frozenset(spots))
        higher = _scale_of(ranked[position + 1][1][0], number_format)
        fed = check(higher, (change,))
        if fed is not None and not _starved(fed):
            names = ", ".join(path for path, _ in ranked[: position + 1])
            advice = (
                f"keep {names} in FP32: gradients there reach {number(ranked[0][1][0])} and hold the scale down; "
                f"then 2**{round(math.log2(higher))} feeds the others"
            )
            return _by_line(starved, losses, scale, advice, verified=True)
        if position >= 3:
            break
    advice = "train in bf16, whose range is that of FP32"
    return _by_line(starved, losses, scale, advice, verified=False)


def _how_to_get_there(power: int) -> str:
    if power <= _FIRST:
        return "a GradScaler finds such a scale by itself"
    steps = (power - _FIRST) * _STEPS_TO_GROW
    return f"GradScaler(init_scale=2.0**{power}): from its own 2**{_FIRST} it would take {steps:,} steps to grow there"


def _starved(losses: Losses) -> bool:
    return any(layer.gradient_norm >= STARVED for layer in losses.layers())


def _scale_for(losses: Losses, number_format: Format) -> float:
    return _scale_of(max((size for size, _ in losses.largest_gradient.values()), default=0.0), number_format)


def _scale_of(largest: float, number_format: Format) -> float:
    """The power of two that keeps the largest gradient a margin under the format's largest number."""
    if largest <= 0:
        return 1.0
    return float(2.0 ** math.floor(math.log2(number_format.max / MARGIN / largest)))


def _by_line(starved: list[LayerLoss], losses: Losses, scale: float, advice: str, *, verified: bool) -> list[Underfed]:
    """One entry for each line that runs in starved layers, about the layer that loses most."""
    lines: dict[object, list[LayerLoss]] = {}
    for layer in starved:
        op = _lost_at(layer, losses)
        place = location_of(op) if op else None
        lines.setdefault((place.path, place.line) if place else layer.path, []).append(layer)
    return [_underfed(layers, losses, scale, advice, verified=verified) for layers in lines.values()]


def _underfed(layers: list[LayerLoss], losses: Losses, scale: float, advice: str, *, verified: bool) -> Underfed:
    worst = max(layers, key=lambda layer: (layer.gradient_norm, layer.gradient_share))
    words = (
        f"{worst.gradient_share:.1%} of the gradients in {worst.path or 'the model'} underflow to zero "
        f"at a loss scale of {number(scale)}: up to {worst.gradient_norm:.0%} of a gradient's norm"
    )
    also = tuple(layer.path for layer in layers if layer is not worst)
    return Underfed(worst, _lost_at(worst, losses), words, advice, verified, also)


def _lost_at(layer: LayerLoss, losses: Losses) -> Op | None:
    return losses.lost_backward.get(layer.path, (0.0, None))[1]

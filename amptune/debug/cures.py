"""The smallest change that cures a culprit, found by trying: each is put in force and the step is run again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

from amptune.capture.names import op_of_spelling
from amptune.core.formats import Format
from amptune.core.ops import Family, op_named
from amptune.debug.changes import Change
from amptune.debug.diagnose import Culprit
from amptune.debug.passes import Pass
from amptune.debug.record import Op, Rewrite, Spot

CureKind = Literal["eps", "mask", "scale", "fp32", "bf16"]
Outcome = Literal["cured", "moved", "same"]
Try = Callable[[tuple[Rewrite, ...]], Outcome]

_EPS = (1e-7, 1e-6, 1e-5, 1e-4)
"""What is tried in place of an eps that is zero in FP16."""
_MOST_SITES = 12
"""How many places a set that stays in FP32 may grow to."""
_ROOM = 2.0
"""How far a scaled result stays under the format's largest number."""


@dataclasses.dataclass(frozen=True)
class Cure:
    """A change that was put in force and cured the culprit.

    Attributes:
        kind: eps, mask, scale, fp32 (sites that stay in FP32), or bf16 for the whole model.
        words: what to do, for a person.
        changes: the same, to be put in force; empty for bf16.
        spots: the places that it touches.
        complete: whether the whole step was finite then, or this op alone.
    """

    kind: CureKind
    words: str
    changes: tuple[Change, ...] = ()
    spots: tuple[Spot, ...] = ()
    complete: bool = True


def find_cures(culprit: Culprit, low: Pass, number_format: Format, attempt: Try) -> list[Cure]:
    """Cures that work, the smallest change first; at most one of each kind.

    Args:
        culprit: what went wrong first.
        low: the pass that it went wrong in.
        number_format: the format asked about.
        attempt: puts changes in force, runs the step, and says what became of the culprit.
    """
    found: list[Cure] = []
    for propose in (_literal, _scale):
        best = _first_that_works(propose(culprit, low, number_format), attempt)
        found += [best] if best else []
    kept = _kept_in_fp32(culprit, low, attempt)
    found += [kept] if kept else []
    return [cure for cure in found if cure.complete] or found


def _first_that_works(proposals: Iterator[Cure], attempt: Try) -> Cure | None:
    """The first proposal that cures the whole step, else the first that cures the culprit."""
    moved: Cure | None = None
    for cure in proposals:
        outcome = attempt(cure.changes)
        if outcome == "cured":
            return cure
        if outcome == "moved" and moved is None:
            moved = dataclasses.replace(cure, complete=False)
    return moved


def spot_of(op: Op, low: Pass) -> Spot:
    """Where the source would change for ``op``: its own line, or that of what it differentiates."""
    if op.phase == "forward" or op.call is None:
        return op.spot
    owner = low.ops[op.call]
    if op.place == owner.place:
        return owner.spot
    return Spot(op_of_spelling(op.op), op.place, "")  # a line of a backward that the user wrote


def _literal(culprit: Culprit, low: Pass, number_format: Format) -> Iterator[Cure]:
    if culprit.literal is None:
        return
    argument, value = culprit.literal
    spot = spot_of(culprit.to_blame, low)
    if abs(value) > number_format.max:
        largest = math.copysign(number_format.max, value)
        words = f"write torch.finfo(x.dtype).{'min' if value < 0 else 'max'} in place of {value:g}"
        yield Cure("mask", words, (Change("constant", frozenset({spot}), argument, largest),), (spot,))
        return
    for eps in _EPS:
        if eps > abs(value) and eps > number_format.smallest_subnormal:
            change = Change("constant", frozenset({spot}), argument, math.copysign(eps, value))
            yield Cure("eps", f"write {eps:g} in place of {value:g}", (change,), (spot,))


def _scale(culprit: Culprit, low: Pass, number_format: Format) -> Iterator[Cure]:
    """A product whose result is scaled down anyway: scale an operand before it instead."""
    op, twin = culprit.op, culprit.twin
    if op.phase != "forward" or culprit.kind != "overflow" or twin is None:
        return
    if op_named(op.op).family not in (Family.GEMM, Family.CONV):
        return
    consumer = next((other for other in low.ops if op.index in other.producers), None)
    if consumer is None or consumer.op not in ("mul", "div") or not consumer.numbers:
        return
    top = max((m.amax for m in twin.outputs), default=0.0)
    power = max(1, math.ceil(math.log2(max(top, 1.0) * _ROOM / number_format.max)))
    divisor = next(iter(consumer.numbers.values()))
    what = f"divide by {divisor:.4g}" if consumer.op == "div" else f"multiply by {divisor:.4g}"
    shrink = divisor if consumer.op == "div" else 1 / divisor if divisor else 0.0
    if shrink >= 2.0**power / _ROOM and shrink > 0:
        words = f"{what} the first operand of {op.op} before the product, not the result after it"
    else:
        words = f"multiply the first operand of {op.op} by 2**-{power} before the product, and the result by 2**{power}"
    changes = (
        Change("scale", frozenset({op.spot}), value=2.0**-power),
        Change("unscale", frozenset({consumer.spot}), value=2.0**power),
    )
    yield Cure("scale", words, changes, (op.spot, consumer.spot))


def _kept_in_fp32(culprit: Culprit, low: Pass, attempt: Try) -> Cure | None:
    """The culprit in FP32, its cause, both, then more of what leads to it; what is not needed is dropped again."""
    first = spot_of(culprit.op, low)
    alone = Change("fp32", frozenset({first}))
    moved: Cure | None = None
    outcome = attempt((alone,))
    if outcome == "cured":
        return _fp32_cure(alone, complete=True)
    for spots in _growing(culprit, low):
        change = Change("fp32-result", frozenset(spots))
        outcome = attempt((change,))
        if outcome == "cured":
            return _fp32_cure(_smallest(change, attempt), complete=True)
        if outcome == "moved" and moved is None:
            moved = _fp32_cure(change, complete=False)
    return moved


def _growing(culprit: Culprit, low: Pass) -> Iterator[list[Spot]]:
    first = spot_of(culprit.op, low)
    yield [first]
    spots = [first]
    if culprit.cause is not None:
        cause = spot_of(culprit.cause.op, low)
        if cause != first:
            yield [cause]
        spots = [cause, first]
    for op in _ancestors(culprit.op, low):
        spot = spot_of(op, low)
        if spot not in spots:
            spots.append(spot)
            yield list(spots)
        if len(spots) >= _MOST_SITES:
            return


def _ancestors(op: Op, low: Pass) -> Iterator[Op]:
    """What made the inputs of ``op``, nearest first."""
    waiting = [low.ops[op.call]] if op.phase == "backward" and op.call is not None else [op]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop(0)
        if current.index in seen:
            continue
        seen.add(current.index)
        if len(seen) > 1 and op_named(current.op).family is not Family.VIEW:
            yield current
        waiting += [low.ops[producer] for producer in current.producers if producer is not None]


def _smallest(change: Change, attempt: Try) -> Change:
    """The change without the places that it does not need."""
    for spot in sorted(change.spots, key=lambda spot: str(spot.place)):
        fewer = dataclasses.replace(change, spots=change.spots - {spot})
        if fewer.spots and attempt((fewer,)) == "cured":
            change = fewer
    return change


def _fp32_cure(change: Change, *, complete: bool) -> Cure:
    spots = tuple(sorted(change.spots, key=lambda spot: str(spot.place)))
    names = ", ".join(dict.fromkeys(_spot_words(spot) for spot in spots))
    left = "" if change.kind == "fp32" else " and leave the result in FP32"
    return Cure("fp32", f"compute {names} in FP32{left}", (change,), spots, complete)


def _spot_words(spot: Spot) -> str:
    return f"{spot.op} of {spot.module} ({_line(spot)})" if spot.module else f"{spot.op} ({_line(spot)})"


def _line(spot: Spot) -> str:
    place = spot.place.reader or spot.place.origin
    if place is None:
        return spot.module or "model"
    location = place.location()
    _, in_package, tail = location.path.rpartition("site-packages/")
    return f"{tail if in_package else location.path}:{location.line}"

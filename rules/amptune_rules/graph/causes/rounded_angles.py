"""G211: positions and times whose neighbours 16 bits do not tell apart, most often on their way to a sine or cosine."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.bounds.ranges import Ranges
from amptune.core.finding import Finding
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import by_autocast, cast_inputs

_COARSE = 0.25
"""Radians by which the rounding of a number may move an angle without a word."""
_TURNS = ("sin", "cos", "sinc")
_ON_THE_WAY = ("mul", "div", "add", "sub", "cat", "stack", "outer", "einsum", "matmul")
_STEPS = 4


def rounded_integers(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """Integers of the code's own, or of the batch on their way to a sine or cosine."""
    for length, number_format, runs in _rounded(context, site):
        return context.finding(
            rule,
            site,
            f"integers 0 to {length - 1} are rounded to {number_format} (under {recipes_in(runs)}), which has no "
            f"{number_format.largest_exact_integer + 1}: compute this in float32{_how(runs, site)}",
            count=length,
            format=str(number_format),
        )
    return None


def _rounded(context: GraphContext, site: Site) -> Iterator[tuple[int, Format, tuple[Run, ...]]]:
    made = {**(site.attrs.get("integers") or {}), **_given(context, site)}
    for index, length in made.items():
        for number_format in (Format.BF16, Format.FP16):
            name = number_format.torch_name
            runs = tuple(run for run in context.runs if run.dtypes[site.id].inputs[index] == name)
            if runs and length > number_format.largest_exact_integer:
                yield length, number_format, runs


def rounded_angles(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """Numbers of the batch that are no integers, rounded on their way to a sine or cosine."""
    if not site.attrs.get("batch") or not _is_turned(context, site):
        return None
    for number_format in (Format.BF16, Format.FP16):
        for run in context.runs:
            largest, turn = _largest_turn(context, run, site, number_format)
            if turn / 2 < _COARSE:
                continue
            return context.finding(
                rule,
                site,
                f"numbers of the batch up to {largest:.4g} are rounded to {number_format} (under "
                f"{recipes_in((run,))}) on their way to a sine or cosine: neighbouring angles are {turn:.3g} rad "
                f"apart there; compute the angle in float32{_how((run,), site)}",
                largest=largest,
                format=str(number_format),
            )
    return None


def _how(runs: tuple[Run, ...], site: Site) -> str:
    """What keeps a computation in FP32: autocast's own casts end with it, the user's with the cast."""
    return " with autocast off" if by_autocast(runs, site) else ", and cast what comes of it"


def _given(context: GraphContext, site: Site) -> dict[int, int]:
    """How far the integers of the batch go that a site reads on their way to a sine or cosine."""
    places = site.attrs.get("batch_integers", ())
    bounds = context.bounds(context.runs[0]) if places and context.runs else None
    if bounds is None or not _is_turned(context, site):
        return {}
    found = {index: bounds.input(site, index).high for index in places}
    return {index: int(high) + 1 for index, high in found.items() if math.isfinite(high)}


def _largest_turn(context: GraphContext, run: Run, site: Site, number_format: Format) -> tuple[float, float]:
    """The largest number of the batch that a site reads rounded to a format, and how far apart the angles are that it
    makes of it and its neighbour; zeros where it does not read one so."""
    bounds = context.bounds(run)
    for position in site.attrs["batch"]:
        tensor = site.inputs[position]
        is_held = tensor.dtype == "float32" or position in cast_inputs(site)
        is_rounded = is_held and run.dtypes[site.id].inputs[position] == number_format.torch_name
        if bounds is None or not is_rounded:
            continue
        largest = bounds.arriving(site, position).magnitude
        if 0 < largest < math.inf:
            return largest, number_format.spacing_at(largest) * _factor(bounds, site, position)
    return 0.0, 0.0


def _factor(bounds: Ranges, site: Site, position: int) -> float:
    """What a site multiplies one of its inputs by, at most; 0 where that is not known."""
    if site.op not in ("mul", "div", "outer", "einsum", "matmul"):
        return 1.0
    places = [place for place in (0, 1) if input_of(site, place) != position]
    if len(places) != 1:
        return 0.0
    other = bounds.operand(site, places[0])
    if site.op == "div":
        return 1 / other.least if other.least > 0 else 0.0
    return other.magnitude if math.isfinite(other.magnitude) else 0.0


def _is_turned(context: GraphContext, site: Site, steps: int = _STEPS) -> bool:
    if site.op in _TURNS:
        return True
    if not steps or site.op not in _ON_THE_WAY:
        return False
    return any(_is_turned(context, after, steps - 1) for after in context.graph.consumers(site.id))

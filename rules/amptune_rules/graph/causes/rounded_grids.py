"""G211: grids whose places 16 bits do not tell apart, and integers of the batch that come back from 16 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from amptune.core.finding import Finding, Location
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import by_autocast

_LEFT = 0.9
"""The share of a grid's places that has to be left."""
_SCALES = ("mul", "div")
"""Ops that a ramp scales something by, as a fade does, of which the digits are as good as any."""
_MOST = 1 << 16
"""Places up to which they are counted one by one."""


def rounded_grids(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Evenly spaced numbers of which 16 bits leave fewer: at the line that makes them so, or that reads them."""
    told: set[tuple[Location | None, int]] = set()
    for site in context.graph:
        for index, (first, last, count, place) in (site.attrs.get("grids") or {}).items():
            where = place or site.location
            if site.op in _SCALES or index in (site.attrs.get("integers") or {}) or (where, count) in told:
                continue
            for number_format in (Format.BF16, Format.FP16):
                runs = tuple(each for each in context.runs if _reads(each, site, index, number_format))
                left = _left(first, last, count, number_format) if runs else count
                if left >= _LEFT * count:
                    continue
                told.add((where, count))
                how = " with autocast off" if by_autocast(runs, site) and place is None else ""
                found = context.finding(
                    rule,
                    site,
                    f"{count} evenly spaced numbers from {first:g} to {last:g} are rounded to {number_format} (under "
                    f"{recipes_in(runs)}), which has {left} of them: neighbours become one; keep them in "
                    f"float32{how}",
                    count=count,
                    left=left,
                    format=str(number_format),
                )
                yield found if place is None else dataclasses.replace(found, location=place)
                break


def _reads(run: Run, site: Site, index: int, number_format: Format) -> bool:
    return run.dtypes[site.id].inputs[index] == number_format.torch_name


def _left(first: float, last: float, count: int, number_format: Format) -> int:
    """How many different numbers a format has of a grid."""
    if not 1 < count <= _MOST:
        return count
    step = (last - first) / (count - 1)
    return len({number_format.round(first + at * step) for at in range(count)})


def returned_integers(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Integers of the batch, as kinds and places, that 16 bits round before they are integers again."""
    assumed, told = context.evidence.assumptions, set[Location]()
    for site in context.graph:
        for names, dtype, like, place in (site.attrs.get("returned") or {}).values():
            known = assumed.inputs if assumed is not None else {}
            largest = max((known[name].high for name in names if name in known), default=0.0)
            for number_format in (Format.BF16, Format.FP16):
                runs = tuple(each for each in context.runs if number_format.torch_name in _dtypes(each, dtype, like))
                if not runs or largest <= number_format.largest_exact_integer or place in told:
                    continue
                told.add(place)
                found = context.finding(
                    rule,
                    site,
                    f"integers of the batch up to {largest:.0f} are cast to {number_format} (under "
                    f"{recipes_in(runs)}) and back: it has no {number_format.largest_exact_integer + 1}, so that many "
                    "become others; keep them in integers, or in float32",
                    largest=largest,
                    format=str(number_format),
                )
                yield dataclasses.replace(found, location=place)


def _dtypes(run: Run, dtype: str, like: str) -> tuple[str, ...]:
    """The dtype that a cast gives in a run: the one that it names, or that of a site."""
    if not like:
        return (dtype,)
    return run.dtypes[like].outputs if like != INPUT and like in run.dtypes else ()

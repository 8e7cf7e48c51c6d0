"""Values that grow no faster than the logarithm of what the model computes: their exponential grows as that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

_LOGS = frozenset({"log", "log1p", "log2", "log10"})
_SUMS = frozenset({"logsumexp", "logcumsumexp"})
_CHOICES = {"where": (1, 2), "maximum": (0, 1), "minimum": (0, 1), "logaddexp": (0, 1), "add": (0, 1)}
_DEPTH = 10


def is_logarithmic(ranges: Ranges, site: Site, index: int = 0, depth: int = 0) -> bool:
    """Whether an operand is a logarithm, a number that is not positive, or is made of these by sums and choices.

    A recurrence in logarithms, ``k + logcumsumexp(a - k)`` with k the cumulative sum of what is not positive, is one
    where a is: each term decays from the place where it came in.
    """
    if ranges.operand(site, index).high < _SMALL:
        return True
    made = ranges.root(site, index)
    if made is None or depth > _DEPTH:
        return False
    if made.op in _LOGS:
        return True
    if made.op in _SUMS or made.op == "pad":
        return is_logarithmic(ranges, made, 0, depth + 1)
    if made.op == "add" and any(_is_recurrence(ranges, made, side, depth) for side in (0, 1)):
        return True
    if made.op == "sub":
        return ranges.operand(made, 1).low >= 0 and is_logarithmic(ranges, made, 0, depth + 1)
    places = _CHOICES.get(made.op, ())
    return bool(places) and all(is_logarithmic(ranges, made, place, depth + 1) for place in places)


_SMALL = 1.0
"""Constants up to here are a factor in what is raised."""


def _is_recurrence(ranges: Ranges, site: Site, side: int, depth: int) -> bool:
    decays, total = ranges.root(site, side), ranges.root(site, 1 - side)
    if decays is None or total is None or total.op != "logcumsumexp":
        return False
    terms = ranges.root(total)
    if terms is None or terms.op != "sub" or not ranges.covers(terms, 1, site, side):
        return False
    if decays.op == "pad" and not decays.attrs.get("value"):
        decays = ranges.root(decays) or decays  # with a zero before its first number
    falls = decays.op == "cumsum" and ranges.operand(decays, 0).high <= 0
    return falls and _axis(decays) == _axis(total) and is_logarithmic(ranges, terms, 0, depth + 1)


def _axis(site: Site) -> object:
    position = input_of(site, 0)
    dim, rank = site.attrs.get("dim"), len(site.inputs[position].shape) if position is not None else 0
    return dim % rank if isinstance(dim, int) and rank else None

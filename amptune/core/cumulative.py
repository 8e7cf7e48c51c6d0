"""Differences of a cumulative sum: what is left of it from some place on has the sign of its terms."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from amptune.core.graph import Site
from amptune.core.intervals import Range
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.ranges import Ranges

_LAST = re.compile(r"slice\(-1, None|, -1, 9223372036854775807|^select\([-\d]+, -1\)|^narrow\([-\d]+, -1")
"""Views that pick the last element along an axis, as torch.export and a recorded forward write them."""


def rest_of_sum(ranges: Ranges, site: Site) -> Range | None:
    """Bounds of ``c[..., -1:] - c`` where c is the cumulative sum of terms of one sign."""
    whole = ranges.root(site, 1)
    if whole is None or whole.op != "cumsum" or ranges.root(site, 0) is not whole or site.attrs.get("alpha"):
        return None
    views = site.attrs.get("views") or {}
    last, every = (views.get(input_of(site, index), ("", "")) for index in (0, 1))
    if every[0] or not _LAST.search(last[0]) or not _is_last(site, whole):
        return None
    terms = ranges.operand(whole, 0)
    if terms.high <= 0:
        return Range(-math.inf, 0.0)
    return Range(0.0, math.inf) if terms.low >= 0 else None


def _is_last(site: Site, whole: Site) -> bool:
    """Whether the first operand has one element along the axis of the sum, and all along the others."""
    dim, shape = whole.attrs.get("dim"), whole.outputs[0].shape
    position = input_of(site, 0)
    if not isinstance(dim, int) or position is None:
        return False
    picked = list(shape)
    picked[dim] = 1
    return site.inputs[position].shape == tuple(picked)

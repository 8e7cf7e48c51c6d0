"""Cosines by hand: a dot product divided by the norms of its two vectors lies within 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.core.arguments import limits_of, norm_order
from amptune.core.bounds.relations.alignment import axes_of, is_plain
from amptune.core.graph import Site

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges


def is_cosine(ranges: Ranges, site: Site, part: int, norms: Site) -> bool:
    """Whether an operand of ``site`` is sum(x * y), and ``norms`` is norm(x) * norm(y) over the same axes."""
    dot = ranges.root(site, part)
    terms = ranges.root(dot) if dot is not None and dot.op == "sum" else None
    if dot is None or terms is None or terms.op != "mul" or norms.op != "mul":
        return False
    if not is_plain(ranges, dot, 0) or not all(is_plain(ranges, norms, side) for side in (0, 1)):
        return False
    return any(
        _is_norm_of(ranges, ranges.root(norms, 0), terms, first, dot)
        and _is_norm_of(ranges, ranges.root(norms, 1), terms, 1 - first, dot)
        for first in (0, 1)
    )


def _is_norm_of(ranges: Ranges, norm: Site | None, terms: Site, place: int, dot: Site) -> bool:
    """Whether a norm, with or without a lower limit, is that of a factor of the terms, over the axes of their sum."""
    if norm is not None and norm.op in ("clamp", "maximum"):
        norm = ranges.root(norm) if is_plain(ranges, norm, 0) and limits_of(norm)[1] == math.inf else None
    if norm is None or norm.op not in ("norm", "linalg_vector_norm") or norm_order(norm) not in (2, "fro"):
        return False
    alike = norm.inputs[0].shape == dot.inputs[0].shape and axes_of(norm) == axes_of(dot)
    return alike and ranges.same(norm, 0, terms, place)

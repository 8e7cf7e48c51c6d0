"""Bounds on the values at every site that follow from the ops and literals alone, whatever the inputs and weights are.

Interval arithmetic over the graph, with inputs, parameters and buffers unbounded, and each bound rounded to the format
that the site delivers (rounding is monotone, so the rounded bounds bound the rounded values): an eps that the format
cannot hold is gone from the bound too. Where intervals are blind, the graph is read for relations between terms:
``x - max(x)`` is at most 0 and the sum of its exponentials at least 1, ``x * x`` is not negative, and what is divided
by the sum or the norm of itself lies within 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

from amptune.core.autocast import SiteDtypes, sources_of
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site, TensorMeta
from amptune.core.intervals import ANY, RULES, UNIT, Range, square
from amptune.core.ops import Family, op_named


class Ranges:
    """Bounds of all sites of a graph under given dtypes; see the module's docstring for what is assumed."""

    def __init__(self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes]) -> None:
        self.graph = graph
        self._dtypes = dtypes
        self._known: dict[str, Range] = {}
        self._constants: set[str] = {""}
        for site in graph:
            self._known[site.id] = self._delivered(site)

    def __getitem__(self, site_id: str) -> Range:
        return self._known[site_id]

    def operand(self, site: Site, index: int) -> Range:
        """Bounds of a positional operand: a literal number, or what comes in at that place."""
        scalars = site.attrs.get("scalars") or {}
        if index in scalars:
            value = float(scalars[index])
            return Range(value, value)
        position = input_of(site, index)
        if position is None:
            return ANY
        source = sources_of(self.graph, site)[position]
        return self._known[source] if source in self._known else _of_type(site.inputs[position])

    def root(self, site: Site, index: int = 0) -> Site | None:
        """The site that made a positional operand, seen through copies; ``None`` for what no site made."""
        position = input_of(site, index)
        source = sources_of(self.graph, site)[position] if position is not None else ""
        if source not in self.graph:
            return None
        producer = self.graph[source]
        return (self.root(producer) or producer) if producer.op in _COPIES_ONE else producer

    def same(self, site: Site, first: int, other: Site, second: int) -> bool:
        """Whether two operands are the same tensor, seen through views, casts and copies."""
        left, right = self.root(site, first), self.root(other, second)
        if left is not None or right is not None:
            return left is not None and right is not None and left.id == right.id
        here, there = input_of(site, first), input_of(other, second)
        if here is None or there is None:
            return False
        names = sources_of(self.graph, site)[here], sources_of(self.graph, other)[there]
        # Two tensors of the batch share the name of their source, so they must at least look alike.
        return names[0] == names[1] != "" and site.inputs[here] == other.inputs[there]

    def is_shifted(self, site: Site | None) -> bool:
        """Whether a site is ``x - max(x)``: never above 0, and 0 somewhere along the axis of the maximum."""
        if site is None or site.op != "sub":
            return False
        maximum = self.root(site, 1)
        return maximum is not None and maximum.op in ("max", "amax", "cummax") and self.same(site, 0, maximum, 0)

    def _delivered(self, site: Site) -> Range:
        found = self._related(site) or self._computed(site)
        number_format = _format_of(self._dtypes[site.id])
        return found.rounded(number_format) if number_format and found.is_known else found

    def _related(self, site: Site) -> Range | None:
        """Relations between terms, which intervals do not see."""
        if self.is_shifted(site):
            return Range(-math.inf, 0.0)
        exponential = self.root(site) if site.op == "sum" else None
        if exponential is not None and exponential.op == "exp" and self.is_shifted(self.root(exponential)):
            return Range(1.0, float(max(site.inputs[0].numel, 1)))
        if site.op == "mul" and self.same(site, 0, site, 1):
            return square(self.operand(site, 0))
        if site.op == "div":
            return self._ratio(site)
        return None

    def _ratio(self, site: Site) -> Range | None:
        """What is divided by the sum of itself (not negative) or by its own norm stays within 1."""
        whole = self.root(site, 1)
        while whole is not None and whole.op in ("add", "clamp", "maximum") and whole.attrs.get("scalars"):
            whole = self.root(whole)  # an eps makes the denominator larger
        if whole is None or not self.same(site, 0, whole, 0):
            return None
        if whole.op == "sum" and self.operand(site, 0).low >= 0:
            return UNIT
        return Range(-1.0, 1.0) if whole.op in _NORMS else None

    def _computed(self, site: Site) -> Range:
        if not site.params and self._constants.issuperset(sources_of(self.graph, site)):
            self._constants.add(site.id)  # worked out from constants alone: they are what the user wants them to be
            return ANY
        if (rule := RULES.get(site.op)) is not None:
            return rule(site, [self.operand(site, index) for index in range(arity(site))])
        if op_named(site.op).family is Family.POOL or site.op in _COPIES_ONE:
            return self.operand(site, 0)
        return self._union(site) if site.op in _COPIES_ALL and not site.params else _of_outputs(site.outputs)

    def _union(self, site: Site) -> Range:
        """Of everything that is copied together, parts of the model's own constants included (they have no source)."""
        sources = sources_of(self.graph, site)
        ranges = [self._known.get(name, _of_type(tensor)) for name, tensor in zip(sources, site.inputs, strict=True)]
        return functools.reduce(Range.union, ranges) if ranges else ANY


_COPIES_ONE = frozenset(
    {
        *("gather", "index", "index_select", "masked_select", "flip", "roll", "repeat", "tile", "repeat_interleave"),
        *("clone", "contiguous", "copy", "unfold", "take_along_dim", "rot90", "alias", "identity"),
    }
)
_COPIES_ALL = frozenset({"cat", "stack"})
_NORMS = frozenset({"norm", "linalg_vector_norm"})


def arity(site: Site) -> int:
    """Number of positional operands."""
    layout = site.attrs.get("operands")
    if layout is not None:
        return len(layout)
    found = len(site.inputs) + len(site.params) + len(site.attrs.get("scalars") or {})
    return max(found, 2) if site.op in ("mul", "add", "sub", "div") else found


def input_of(site: Site, index: int) -> int | None:
    """The position in ``Site.inputs`` of a positional operand; ``None`` for a number or a parameter."""
    layout = site.attrs.get("operands")
    if layout is not None:
        return layout[index] if index < len(layout) else None
    scalars = site.attrs.get("scalars") or {}
    if site.op in ("mul", "add", "sub", "div") and len(site.inputs) == 1 and not scalars and not site.params:
        return 0 if index < 2 else None  # an op of two operands with one tensor: x * x
    position = index - sum(1 for place in scalars if place < index)
    return position if index not in scalars and position < len(site.inputs) else None


def _format_of(dtypes: SiteDtypes) -> Format | None:
    for dtype in dtypes.outputs:
        if dtype in ("float32", "float16", "bfloat16"):
            return Format.parse(dtype)
    return None


def _of_type(tensor: TensorMeta) -> Range:
    return {"bool": UNIT, "uint8": Range(0.0, 255.0), "int8": Range(-128.0, 127.0)}.get(tensor.dtype, ANY)


def _of_outputs(outputs: Sequence[TensorMeta]) -> Range:
    return _of_type(outputs[0]) if outputs else ANY

"""Bounds on the values at every site: from ops and literals alone, or under assumptions on inputs and weights.

Interval arithmetic over the graph, each bound rounded to the format that the site delivers (rounding is monotone, so
the rounded bounds bound the rounded values): an eps that the format cannot hold is gone from the bound too. Where
intervals are blind, the graph is read for relations between terms (:mod:`amptune.core.bounds.relations`). A graph with
each call of a site apart has bounds for each call; in a graph of sites they hold for all calls, and are widened until
they are stable. Bounds hold for exact arithmetic between the roundings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.bounds.intervals import ANY, UNIT, Range, point
from amptune.core.bounds.narrowing import PLACES, narrowed
from amptune.core.bounds.relations.parts import COPIES_ALL
from amptune.core.bounds.relations.related import related
from amptune.core.bounds.structure import Structure, is_copy
from amptune.core.bounds.transfer.layers import LAYERS, Weight
from amptune.core.bounds.transfer.places import beside, places
from amptune.core.bounds.transfer.table import RULES
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph, Site, TensorMeta
from amptune.core.operands import COPIES_ONE, arity, input_of, passed_on, ways_on, written_into
from amptune.core.ops import Family, op_named

PASSES = 8
"""Rounds after which a bound that still grows is given up."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is taken for granted beyond ops and literals.

    Attributes:
        inputs: bounds of tensors of the batch, by the name of their placeholder in the captured graph.
        weights: bounds of parameters, by their name in ``state_dict``. A parameter that is missing is unbounded.
        buffers: bounds of buffers that the forward does not write, by name.
        scales: bounds of parameters for arithmetic that reads them number by number, as in ``tanh(x) * exp(scale)``:
            their first values and where training may take them. Layers and matrix products do not ask for them.
        means: how large the numbers of tensors of the batch are on average, by the name of their placeholder; no bound.
    """

    inputs: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)
    weights: Mapping[str, Weight] = dataclasses.field(default_factory=dict, hash=False)
    buffers: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)
    scales: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)
    means: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


NOTHING = Assumptions()


class Ranges(Structure):
    """Bounds of all sites of a graph under given dtypes; see the module's docstring for what is assumed.

    Args:
        graph: what is judged.
        dtypes: what each site computes in; see :func:`amptune.core.autocast.realise`.
        assumed: bounds of inputs and weights; by default they may be anything.
        structure: that of the graph, where it is used elsewhere too.
    """

    def __init__(
        self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes], assumed: Assumptions = NOTHING,
        structure: Structure | None = None,
    ) -> None:  # fmt: skip
        super().__init__(graph, structure)
        self.assumed = assumed
        self._dtypes = dtypes
        self._known: dict[str, Range] = {}
        self._exact: dict[str, Range] = {}
        self._constants: set[str] = {""}
        for site in graph:
            self._known[site.id] = self._delivered(site)
        if any(not _LATER.isdisjoint(site.attrs) for site in graph):
            self._settle()

    def __getitem__(self, site_id: str) -> Range:
        return self._known[site_id]

    def by_site(self) -> dict[str, Range]:
        """Site id -> bounds that hold for all its calls."""
        found: dict[str, Range] = {}
        for site in self.graph:
            bound = self._known[site.id]
            found[site.site_id] = found[site.site_id].union(bound) if site.site_id in found else bound
        return found

    def exact(self, site: Site) -> Range:
        """Bounds of what a site computes, before its result is rounded to the format that it delivers."""
        return self._exact.get(site.id, ANY)

    def operand(self, site: Site, index: int) -> Range:
        """Bounds of a positional operand, as the arithmetic of the site sees it: a literal number, or what comes in at
        that place over all calls."""
        scalars = site.attrs.get("scalars") or {}
        if index in scalars:
            return point(float(scalars[index]))
        position = input_of(site, index)
        if position is not None:
            return self.input(site, position)
        stored = str((site.attrs.get("operand_params") or {}).get(index))
        weight = self.assumed.weights.get(stored)
        return weight.range if weight else self.assumed.scales.get(stored, ANY)

    def input(self, site: Site, position: int) -> Range:
        """Bounds of ``site.inputs[position]``, over all calls of the site."""
        return self._cast(site, position, self.arriving(site, position))

    def arriving(self, site: Site, position: int) -> Range:
        """Bounds of ``site.inputs[position]`` as it comes, before any cast on the way in."""
        found = self._arriving(site, position, self.sources(site)[position])
        for sources in site.attrs.get("later_sources", ()):
            if (source := sources[position]) in self._known or source not in self.graph:
                found = found.union(self._arriving(site, position, source))
        for writer in written_into(site, position):
            if writer in self._known or writer not in self.graph:
                found = found.union(self._known.get(writer, _of_type(site.inputs[position])))
        return found

    def smallest(self, site: Site, index: int) -> float:
        """The smallest number over zero in the format in which an operand comes."""
        return float(self._given(site, index).smallest_subnormal)

    def epsilon(self, site: Site, index: int) -> float:
        """How far apart the numbers next to 1 are in the format in which an operand comes."""
        return float(self._given(site, index).epsilon)

    def _given(self, site: Site, index: int) -> Format:
        position, given = input_of(site, index), self._dtypes[site.id].given
        dtype = given[position] if position is not None and position < len(given) else ""
        return Format.parse(dtype) if dtype in HALF else Format.FP32

    def _arriving(self, site: Site, position: int, source: str) -> Range:
        tensor = site.inputs[position]
        bounds = (site.attrs.get("bounds") or {}).get(position)
        if bounds is not None:
            return Range(*bounds)
        if source in self._known and PLACES in passed_on(site, position):
            return places(self.graph[source], [])
        if source in self._known:
            producer = self.graph[source]
            return self._known[source] if _same_kind(producer, tensor) else beside(producer, tensor) or _of_type(tensor)
        if source == INPUT:
            name = (site.attrs.get("batch") or {}).get(position, "")
            return self.assumed.inputs.get(name, _of_type(tensor))
        return self.assumed.buffers.get(source, _of_type(tensor))

    def _cast(self, site: Site, position: int, found: Range) -> Range:
        """What is left after the casts of the user's code and of autocast on the way in."""
        found = functools.reduce(Range.union, (narrowed(found, dtypes) for dtypes in ways_on(site, position)))
        if not found.is_known:
            return found
        dtypes = self._dtypes[site.id]
        for dtype in ((site.attrs.get("casts") or {}).get(position), *dtypes.inputs[position : position + 1]):
            if dtype in HALF or dtype == "float8_e4m3fn" or dtype == "float8_e5m2":
                found = found.rounded(Format.parse(str(dtype)))
        return found

    def _settle(self) -> None:
        """Bounds of loops: grow until nothing changes, an end that grows twice at once to infinity."""
        for turn in range(PASSES):
            changed = False
            for site in self.graph:
                old, new = self._known[site.id], self._delivered(site)
                if new.low >= old.low and new.high <= old.high:
                    continue
                changed = True
                joined = old.union(new)
                if turn:
                    joined = Range(old.low if new.low >= old.low else -math.inf,
                                   old.high if new.high <= old.high else math.inf)  # fmt: skip
                self._known[site.id] = joined
            if not changed:
                return
        for site in self.graph:
            if site.calls > 1:
                self._known[site.id] = ANY
        for site in self.graph:
            self._known[site.id] = self._delivered(site)

    def _delivered(self, site: Site) -> Range:
        found = None if site.attrs.get("several") else related(self, site)
        computed = self._computed(site)
        if "exact" in site.attrs:
            found = computed = Range(*site.attrs["exact"][:2])
        found = computed if found is None else found.within(computed) if computed.is_known else found
        self._exact[site.id] = found
        number_format = _format_of(self._dtypes[site.id])
        return found.rounded(number_format) if number_format and found.is_known else found

    def _computed(self, site: Site) -> Range:
        if self._is_constant(site):
            self._constants.add(site.id)  # worked out from constants alone: they are what the user wants them to be
        if site.attrs.get("several") or site.attrs.get("uneven"):
            return _of_outputs(site.outputs)
        if (layer := LAYERS.get(site.op)) is not None and (found := layer(self, site)) is not None:
            return found
        if "puts" in site.attrs:
            places, numbers = site.attrs["puts"]
            return functools.reduce(Range.union, [*(self.input(site, place) for place in places), *map(point, numbers)])
        if site.attrs.get("by_name"):
            return _of_outputs(site.outputs)
        if (rule := RULES.get(site.op)) is not None:
            return rule(site, [self.operand(site, index) for index in range(arity(site))])
        if op_named(site.op).family is Family.POOL or is_copy(site):
            return self.operand(site, 0)
        joins = site.op in COPIES_ALL or (site.op in COPIES_ONE and not site.attrs.get("in_place"))
        return self._union(site) if joins and not site.params else _of_outputs(site.outputs)

    def _is_constant(self, site: Site) -> bool:
        return not (site.params or site.attrs.get("random")) and self._constants.issuperset(
            (*self.sources(site), *(name for names in site.attrs.get("written", {}).values() for name in names))
        )

    def is_constant(self, site: Site) -> bool:
        """Whether a site is worked out from constants of the forward alone (random numbers are none)."""
        return site.id in self._constants

    def _union(self, site: Site) -> Range:
        """Of everything that is copied together, parts of the model's own constants included (they have no source)."""
        ranges = [self.input(site, index) for index in range(len(site.inputs))]
        if site.attrs.get("called") == "block_diag":
            ranges.append(point(0.0))
        return functools.reduce(Range.union, ranges) if ranges else ANY


_LATER = {"later_sources", "written"}
"""What may name sites that come after the one that reads them."""


def _same_kind(producer: Site, tensor: TensorMeta) -> bool:
    """Whether a tensor is of the kind that the producer's bounds are about: not the indices beside values."""
    return tensor.is_floating or not any(output.is_floating for output in producer.outputs)


def _format_of(dtypes: SiteDtypes) -> Format | None:
    for dtype in dtypes.outputs:
        if dtype in ("float32", "float16", "bfloat16"):
            return Format.parse(dtype)
    return None


def _of_type(tensor: TensorMeta) -> Range:
    return {"bool": UNIT, "uint8": Range(0.0, 255.0), "int8": Range(-128.0, 127.0)}.get(tensor.dtype, ANY)


def _of_outputs(outputs: Sequence[TensorMeta]) -> Range:
    return _of_type(outputs[0]) if outputs else ANY

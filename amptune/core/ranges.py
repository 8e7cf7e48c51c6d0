"""Bounds on the values at every site: from ops and literals alone, or under assumptions on inputs and weights.

Interval arithmetic over the graph, each bound rounded to the format that the site delivers (rounding is monotone, so
the rounded bounds bound the rounded values): an eps that the format cannot hold is gone from the bound too. Where
intervals are blind, the graph is read for relations between terms (:mod:`amptune.core.relations`). A graph with each
call of a site apart has bounds for each call; in a graph of sites they hold for all calls, and are widened until they
are stable. Bounds hold for exact arithmetic between the roundings.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from amptune.core.autocast import HALF, SiteDtypes, sources_of
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph, Site, TensorMeta
from amptune.core.intervals import ANY, UNIT, Range, point
from amptune.core.layer_ranges import LAYERS, Weight
from amptune.core.narrowing import PLACES, keeps_numbers, narrowed
from amptune.core.operands import arity, input_of, is_altered, passed_on, ways_on, written_into
from amptune.core.ops import Family, op_named
from amptune.core.parts import COPIES_ALL
from amptune.core.places import beside, places
from amptune.core.range_rules import RULES
from amptune.core.relations import COPIES_ONE, related

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
    """

    inputs: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)
    weights: Mapping[str, Weight] = dataclasses.field(default_factory=dict, hash=False)
    buffers: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)
    scales: Mapping[str, Range] = dataclasses.field(default_factory=dict, hash=False)


NOTHING = Assumptions()


class Ranges:
    """Bounds of all sites of a graph under given dtypes; see the module's docstring for what is assumed.

    Args:
        graph: what is judged.
        dtypes: what each site computes in; see :func:`amptune.core.autocast.realise`.
        assumed: bounds of inputs and weights; by default they may be anything.
    """

    def __init__(self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes], assumed: Assumptions = NOTHING) -> None:
        self.graph = graph
        self.assumed = assumed
        self._dtypes = dtypes
        self._known: dict[str, Range] = {}
        self._exact: dict[str, Range] = {}
        self._constants: set[str] = {""}
        self._sources: dict[str, tuple[str, ...]] = {}
        self._roots: dict[tuple[str, int], Site | None] = {}
        self._identities: dict[str, object] = {}
        for site in graph:
            self._identity(site)  # in order, or a long chain would be followed to its start at once
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

    def maker(self, site: Site, position: int) -> Site | None:
        """The site that made all of an input; ``None`` where no site did, or others have written into a part of it, or
        calls of a site read it in several ways."""
        source = self.sources(site)[position]
        one = not is_altered(site, position) and not self._later(site, position)
        return self.graph[source] if source in self.graph and one else None

    def _later(self, site: Site, position: int) -> tuple[str, ...]:
        """Where an input comes from in the calls after the first, where that is elsewhere."""
        own = self.sources(site)[position]
        later = tuple(sources[position] for sources in site.attrs.get("later_sources", ()))
        return later if any(source != own for source in later) else ()

    def sources(self, site: Site) -> tuple[str, ...]:
        """Where each input of the first call comes from; others may have written into parts of it since."""
        if site.id not in self._sources:
            self._sources[site.id] = sources_of(self.graph, site)
        return self._sources[site.id]

    def root(self, site: Site, index: int = 0) -> Site | None:
        """The site that made a positional operand, seen through copies; ``None`` for what no site made."""
        key = (site.id, index)
        if key not in self._roots:
            self._roots[key] = None  # for a loop that ends in itself
            self._roots[key] = self._root(site, index)
        return self._roots[key]

    def _root(self, site: Site, index: int) -> Site | None:
        position = input_of(site, index)
        if (
            position is None
            or position in (site.attrs.get("bounds") or {})
            or not keeps_numbers(passed_on(site, position))
        ):
            return None
        producer = self.maker(site, position)
        if producer is None:
            return None
        return (self.root(producer) or producer) if _copies(producer) else producer

    def same(self, site: Site, first: int, other: Site, second: int) -> bool:
        """Whether two operands are equal number by number: one tensor under the same views, or the same arithmetic on
        the same tensors."""
        position = input_of(site, first)
        if site is other and position == input_of(site, second) is not None and not site.attrs.get("uneven"):
            return True
        left, right = self._place(site, first), self._place(other, second)
        return left is not None and right is not None and (left.made, left.views) == (right.made, right.views)

    def repeats(self, site: Site | None, other: Site) -> bool:
        """Whether two sites compute the same from the same: one term that is written twice, or one site."""
        return site is not None and self._identity(site) == self._identity(other)

    def covers(self, site: Site, first: int, other: Site, second: int) -> bool:
        """Whether one operand holds all numbers of another: the same tensor, and no smaller part of it."""
        left = self._place(site, first)
        places = (self._place(other, second, copies=copies) for copies in (False, True))
        return left is not None and any(
            right is not None and left.made == right.made and left.cuts in ("", right.cuts) for right in places
        )

    def seen(self, site: Site, index: int) -> object:
        """What made an operand and the views since that pick none of its numbers: equal for two operands of which one
        is a part of the other, in the same order; ``None`` where that is not known."""
        place = self._place(site, index)
        return None if place is None else (place.made, place.turns)

    def _place(self, site: Site, index: int, *, copies: bool = False) -> _Place | None:
        """Where an operand comes from; with ``copies`` seen through those that pick numbers as well."""
        position = input_of(site, index)
        if position is None or is_altered(site, position) or not keeps_numbers(passed_on(site, position)):
            return None
        cuts, views = (site.attrs.get("views") or {}).get(position, ("", ""))
        turns = (site.attrs.get("turns") or {}).get(position, "")
        if casts := passed_on(site, position):
            views = f"{views} {' '.join(casts)}"  # x and what x is in fewer digits differ
        source = self.sources(site)[position]
        if later := self._later(site, position):
            return _Place((source, later, _origin(site, position)), cuts, views, turns)
        if source in self.graph and position not in (site.attrs.get("bounds") or {}):
            producer = self.graph[source]
            through = _copies(producer) if copies else producer.op in _IDENTITIES and not producer.attrs.get("in_place")
            if through and producer.id != site.id and (place := self._place(producer, 0, copies=copies)):
                return _Place(place.made, place.cuts + cuts, place.views + views, place.turns + turns)
            return _Place(self._identity(producer), cuts, views, turns)
        # Two tensors of the batch share the name of their source, so they must at least look alike.
        return _Place((source, _origin(site, position)), cuts, views, turns) if source else None

    def _identity(self, site: Site) -> object:
        """Equal for two sites that compute the same from the same: a term that is written twice."""
        if site.id not in self._identities:
            self._identities[site.id] = site.id
            if _is_repeatable(site):
                count = len(site.attrs["operands"])
                places = [self._place(site, index) for index in range(count)]
                literals = sorted((str(key), str(value)) for key, value in site.attrs.items() if key not in _FOUND)
                unknown = any(place is None and input_of(site, index) is not None for index, place in enumerate(places))
                if not unknown and any(place is not None for place in places):
                    later = site.attrs.get("later_sources")
                    self._identities[site.id] = hash((site.op, site.calls, tuple(places), tuple(literals), later))
        return self._identities[site.id]

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
        if op_named(site.op).family is Family.POOL or _copies(site):
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
_RANDOM = ("dropout", "alpha_dropout", "rrelu")
_IDENTITIES = frozenset({"clone", "contiguous", "alias", "identity"})
_FOUND = frozenset(
    {
        *("operands", "views", "turns", "axes", "bounds", "batch", "later_sources", "written", "passed", "passed_too"),
        *(
            "varied",
            "casts",
            "like",
            "param_casts",
            "strided",
            "in_rows",
            "viewed",
            "copied",
            "channels_last",
            "filled",
        ),
        *(
            "integers",
            "batch_integers",
            "tested",
            "whole",
            "kept",
            "triangles",
            "one_hot",
            "pairs",
            "narrowed",
            "exact",
        ),
        *("rises", "fp32_limit", "image", "autocast"),
    }
)
"""What is told of a site beside its arguments: of its inputs, which are compared by where they come from, and of its
result. Any other key may be an argument, in which two calls differ."""


def _is_repeatable(site: Site) -> bool:
    """Whether a second site like it gives the same numbers: plain arithmetic that reads the same sites in all calls."""
    if site.kind != "function" or site.opaque or site.op in _RANDOM or site.attrs.get("by_name"):
        return False
    if str(site.attrs.get("called", "")).strip("_") in _RANDOM:
        return False
    family = op_named(site.op).family
    plain = family in (Family.POINTWISE, Family.SENSITIVE, Family.REDUCTION) and not site.attrs.get("in_place")
    return plain and bool(site.attrs.get("operands")) and not site.attrs.get("random")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor comes from: what made it, and the views since: those that pick some of its numbers, all of them,
    and those that pick none."""

    made: object
    cuts: str
    views: str
    turns: str = ""


def _copies(site: Site) -> bool:
    """Whether a site's result holds numbers of its first operand alone, rather than being written into it."""
    return site.op in COPIES_ONE and not site.attrs.get("in_place")


def _origin(site: Site, position: int) -> object:
    return (site.attrs.get("batch") or {}).get(position) or site.inputs[position]


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

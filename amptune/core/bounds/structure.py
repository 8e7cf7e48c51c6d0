"""Where the operands of sites come from, and which of them are the same: what holds in any format and for any values.

Worked out once for a graph, and shared by the bounds under each recipe and assumption.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from amptune.core.autocast import sources_of
from amptune.core.bounds.narrowing import keeps_numbers
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.operands import COPIES_ONE, input_of, is_altered, passed_on
from amptune.core.ops import Family, op_named

_S = TypeVar("_S", bound="Structure")
_P = ParamSpec("_P")
_T = TypeVar("_T")


def told_once(function: Callable[Concatenate[_S, Site, _P], _T]) -> Callable[Concatenate[_S, Site, _P], _T]:
    """For functions of a site, and of the places of its operands, that ask the structure alone and no bounds."""

    @functools.wraps(function)
    def told(structure: _S, site: Site, /, *places: _P.args, **named: _P.kwargs) -> _T:
        key = (function, site.id, *places)
        if key not in structure.told:
            structure.told[key] = function(structure, site, *places, **named)
        found: _T = structure.told[key]
        return found

    return told


class Structure:
    """What the sites of a graph read, seen through views and copies.

    Args:
        graph: what is looked at; it stays as it is from then on.
        known: the same of that graph, to go on with what was found.

    Attributes:
        told: what functions found that are :func:`told_once`.
    """

    def __init__(self, graph: PrecisionGraph, known: Structure | None = None) -> None:
        self.graph = graph
        self._sources: dict[str, tuple[str, ...]] = {}
        self._roots: dict[tuple[str, int], Site | None] = {}
        self._identities: dict[str, object] = {}
        self.told: dict[Any, Any] = {}
        self._places: dict[tuple[str, int, bool], _Place | None] = {}
        self._is_whole = known is not None
        if known is not None:
            self._sources, self._roots = known._sources, known._roots
            self._identities, self.told, self._places = known._identities, known.told, known._places
        for site in graph if known is None else ():
            self._identity(site)  # in order, or a long chain would be followed to its start at once
        self._is_whole = True

    def maker(self, site: Site, position: int) -> Site | None:
        """The site that made all of an input; ``None`` where no site did, or others have written into a part of it, or
        calls of a site read it in several ways."""
        source = self.sources(site)[position]
        one = not is_altered(site, position) and not self._later(site, position) and not _reckoned(site, position)
        if source not in self.graph or not one:
            return None
        made = self.graph[source]
        return None if made.kind == "function" and made.attrs.get("several") else made

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
        return (self.root(producer) or producer) if is_copy(producer) else producer

    def same(self, site: Site, first: int, other: Site, second: int) -> bool:
        """Whether two operands are equal number by number: one tensor under the same views, or the same arithmetic on
        the same tensors."""
        position = input_of(site, first)
        if site is other and position == input_of(site, second) is not None and not site.attrs.get("uneven"):
            return True
        left, right = self._place(site, first), self._place(other, second)
        return left is not None and right is not None and (left.made, left.views) == (right.made, right.views)

    def picks_alike(self, site: Site, first: int, other: Site, second: int) -> bool:
        """Whether an operand has those numbers of an elementwise result whose arguments another operand has: ``(x *
        x)[:2]`` beside ``x[:2]``."""
        whole, part = self._place(site, first), self._place(other, second)
        made = self.root(site, first)
        before = self._place(made, 0) if made is not None else None
        if made is None or whole is None or part is None or before is None or whole.made != self._identity(made):
            return False
        return (part.made, part.views) == (before.made, before.views + whole.views)

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
        key = (site.id, index, copies)
        if key in self._places:
            return self._places[key]
        place = self._place_now(site, index, copies=copies)
        if self._is_whole:  # before that, an identity may be one for the time being
            self._places[key] = place
        return place

    def _place_now(self, site: Site, index: int, *, copies: bool) -> _Place | None:
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
        if reckoned := _reckoned(site, position):
            return _Place(reckoned, cuts, views, turns)
        if source in self.graph and position not in (site.attrs.get("bounds") or {}):
            producer = self.graph[source]
            through = is_copy(producer) if copies else producer.op in _IDENTITIES and not producer.attrs.get("in_place")
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


_RANDOM = ("dropout", "alpha_dropout", "rrelu")
_IDENTITIES = frozenset({"clone", "contiguous", "alias", "identity"})
_FOUND = frozenset(
    {
        *("operands", "views", "turns", "axes", "bounds", "batch", "later_sources", "written", "passed", "passed_too"),
        *(
            "varied",
            "reckoned",
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
        *("rises", "fp32_limit", "image", "autocast", "assigned", "asks_for_half", "zeros_read", "zero_times_infinity"),
        *("grids", "returned", "below_read", "most_added", "turned_infinite", "zero_times_closed"),
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


def is_copy(site: Site) -> bool:
    """Whether a site's result holds numbers of its first operand alone, rather than being written into it."""
    return site.op in COPIES_ONE and not site.attrs.get("in_place")


def _origin(site: Site, position: int) -> object:
    return (site.attrs.get("batch") or {}).get(position) or site.inputs[position]


def _reckoned(site: Site, position: int) -> tuple[str, ...]:
    """What stands for an input that the forward makes by what is no site; empty for another."""
    name = (site.attrs.get("reckoned") or {}).get(position)
    return ("reckoned", name) if name else ()

"""Ops that write what layers give into a tensor that the model makes in FP32, as ``torch.zeros(n, d).index_add_``.

They take one dtype only. Pinned in FP32 at their line they cast what arrives, so that the layers before them may run
in 16 bits; nothing changes where all of that is FP32.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from amptune import runtime
from amptune.core.formats import Format
from amptune.core.graph import LOSS, Site
from amptune.core.ops import Family, op_named


@dataclasses.dataclass(frozen=True)
class Destination:
    """All calls of such an op in one function of the user's file.

    Attributes:
        place: the function and the op, as ``Class.forward#index_add``.
        sites: functional sites of these calls, in every instance of the class.
        codes: where they stand in the source.
        feeds: names of the groups of layers that decide what arrives.
    """

    place: str
    sites: tuple[str, ...]
    codes: frozenset[str]
    feeds: frozenset[str]


def is_destination(site: Site) -> bool:
    """Whether a functional site may be such an op: it moves or adds up numbers, and takes one dtype only."""
    op = op_named(site.op)
    return not site.is_module and site.module != LOSS and op.same_dtype and op.family is Family.MEMORY


def find_destinations(sites: Iterable[Site], met: Mapping[tuple[str, str], frozenset[str]]) -> list[Destination]:
    """The places where layers meet a tensor that no plan casts.

    Args:
        sites: those of ``is_destination`` that can be pinned in the source.
        met: (module path, op) -> names of the groups of layers that meet such a tensor there, as a run has shown.
    """
    by_place: dict[str, list[Site]] = {}
    for site in sites:
        by_place.setdefault(site.code.rpartition(".")[0], []).append(site)
    found = []
    for place, members in by_place.items():
        feeds = frozenset[str]().union(*(met.get((site.module, site.op), frozenset()) for site in members))
        if feeds:
            codes = frozenset(site.code for site in members)
            found.append(Destination(place, tuple(site.id for site in members), codes, feeds))
    return found


@contextlib.contextmanager
def pinned(destinations: Iterable[Destination]) -> Iterator[None]:
    """The destinations in FP32, in a model whose source looks its pins up."""
    before = dict(runtime.PINS)
    runtime.PINS.update(dict.fromkeys(frozenset[str]().union(*(d.codes for d in destinations)), Format.FP32.label))
    try:
        yield
    finally:
        runtime.PINS.clear()
        runtime.PINS.update(before)

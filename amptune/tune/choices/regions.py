"""Modules whose own functions need an autocast region, so that the layers before them may run in 16 bits.

A product takes one dtype only, and often one of its operands is made by the forward in FP32: a mask that raises the
attention scores, rotary angles, a softmax with ``dtype=torch.float32``. Autocast casts such operands where they meet,
and it casts up what an operation without a 16-bit kernel is given, if that is in its lists. So does a region around the
forward that calls it: layers in it that a plan names ignore it. Functions of the modules in it would not, and a region
that raises some of them to FP32 is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from amptune.apply import Fixing
from amptune.core.graph import LOSS, PrecisionGraph, Site
from amptune.core.ops import joined_by_autocast, lowered_by_autocast, raised_by_autocast
from amptune.core.paths import is_within


@dataclasses.dataclass(frozen=True)
class Region:
    """A module with such a region.

    Attributes:
        path: of the module.
        sites: its functional sites that take one dtype only, and meet a tensor that no plan casts, or have no 16-bit
            kernel.
        feeds: names of the groups of layers that decide what else arrives there.
        raised: functional sites of the module that autocast computes in FP32.
    """

    path: str
    sites: tuple[str, ...]
    feeds: frozenset[str]
    raised: frozenset[str] = frozenset()


def find_regions(
    graph: PrecisionGraph, fixing: Iterable[Fixing], planned: Collection[str], device_type: str
) -> dict[str, Region]:
    """Path -> region, where one lets layers out of FP32.

    Args:
        graph: sites of the model.
        fixing: calls that keep groups in FP32, as a run has shown.
        planned: paths of the modules that take a format.
        device_type: "cuda" or "cpu", whose autocast it would be.
    """
    found: dict[str, Region] = {}
    for call in fixing:
        is_let_out = (joined_by_autocast if call.has_kernel else raised_by_autocast)(call.op, device_type)
        if not is_let_out or _raises_below(graph, call.path, planned, device_type):
            continue
        sites = [
            site.id
            for site in graph
            if not site.is_module and site.module == call.path and site.op == call.op and site.module != LOSS
        ]
        if sites:
            known = found.get(call.path, Region(call.path, (), frozenset()))
            all_sites = tuple(dict.fromkeys((*known.sites, *sites)))
            raised = _raised(graph, call.path, all_sites, device_type)
            found[call.path] = Region(call.path, all_sites, known.feeds | call.groups, raised)
    return found


def _raised(graph: PrecisionGraph, path: str, sites: Collection[str], device_type: str) -> frozenset[str]:
    """What is in FP32 in a region: what autocast raises, and of its sites those that promote what they join."""
    own = [site for site in graph if site.module == path and not site.is_module and site.module != LOSS]
    return frozenset(
        site.id
        for site in own
        if raised_by_autocast(site.op, device_type)
        or (site.id in sites and not lowered_by_autocast(site.op, device_type))
    )


def find_products(
    graph: PrecisionGraph, kept: Iterable[tuple[str, str]], planned: Collection[str], device_type: str
) -> dict[str, tuple[str, ...]]:
    """Module path -> products that its forward computes itself, from nothing that a layer gives in 16 bits: with
    weights that it reads past their layers or makes anew, by hand from its parameters, of the batch.

    Args:
        graph: sites of the model.
        kept: (module path, op) of what is in FP32 with all layers in 16 bits, as a run has shown.
        planned: paths of the modules that take a format.
        device_type: "cuda" or "cpu", whose autocast it would be.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path in dict.fromkeys(path for path, _ in kept):
        ops = {op for other, op in kept if other == path and lowered_by_autocast(op, device_type)}
        sites = tuple(site.id for site in graph if site.module == path and site.op in ops and _is_product(site))
        if sites and not _raises_below(graph, path, planned, device_type):
            found[path] = sites
    return found


def _is_product(site: Site) -> bool:
    """Whether a function sums products: an outer one, as that of positions and frequencies, is none."""
    return not site.is_module and site.module != LOSS and any(gemm.k > 1 for gemm in site.gemms)


def with_feeds(regions: Iterable[Region], joined: Mapping[str, frozenset[str]]) -> list[Region]:
    """The regions with all that needs them where it is in 16 bits.

    Args:
        regions: that were in force in a run.
        joined: module path -> groups that they let out of FP32, as that run has shown.
    """
    found = []
    for region in regions:
        below = [names for path, names in joined.items() if is_within(path, (region.path,))]
        found.append(dataclasses.replace(region, feeds=region.feeds.union(*below)))
    return found


def _raises_below(graph: PrecisionGraph, path: str, planned: Collection[str], device_type: str) -> bool:
    """Whether autocast computes a function in FP32 that a module within ``path`` calls, and no planned one."""
    return any(
        site.module != path
        and is_within(site.module, (path,))
        and site.module != LOSS
        and raised_by_autocast(site.op, device_type)
        and not is_within(site.module, planned)
        for site in graph
        if not site.is_module
    )

"""The kernels of all sites of a graph; those of repeated blocks are worked out and timed once."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Mapping

from amptune.analyze.stepcost.attended import finds_rows
from amptune.analyze.stepcost.fusion import Fusion, is_fused
from amptune.analyze.stepcost.gradients import Accumulations
from amptune.analyze.stepcost.kernels import ATTRS_READ, Kernel, Setting, SiteKernels
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import SiteDtypes
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.hardware import Gpu


class StepKernels:
    """What a step of one graph runs, under any setting.

    Attributes:
        accumulations: the kernels between the sites, on the way back.

    Two sites with the same op, tensors, products, calls and dtypes run the same kernels, so they share one
    :class:`SiteKernels`.
    """

    def __init__(self, graph: PrecisionGraph) -> None:
        self._graph = graph
        numbers: dict[Hashable, int] = {}
        self._kind = {site.id: numbers.setdefault(_kind(site), len(numbers)) for site in graph}
        self._known: dict[Setting, dict[str, SiteKernels]] = {}
        self.accumulations = Accumulations(graph)

    def of(self, dtypes: Mapping[str, SiteDtypes], setting: Setting) -> Mapping[str, SiteKernels]:
        """Site id -> its kernels, fused with its neighbours' where the model is compiled.

        Args:
            dtypes: those under the setting's recipe.
            setting: recipe, mode and direction.
        """
        if setting not in self._known:
            self._known[setting] = self._worked_out(dtypes, setting)
        return self._known[setting]

    def _worked_out(self, dtypes: Mapping[str, SiteDtypes], setting: Setting) -> dict[str, SiteKernels]:
        fusion = Fusion(self._graph, dtypes) if setting.fused else None
        shared: dict[tuple[int, SiteDtypes, bool], SiteKernels] = {}
        result = {}
        for site in self._graph:
            in_rows = finds_rows(self._graph, site, dtypes)
            key = self._kind[site.id], dtypes[site.id], in_rows
            if key not in shared:
                shared[key] = kernels_of(_uncopied(site) if in_rows else site, dtypes[site.id], setting)
            own = shared[key]
            if fusion is not None and is_fused(site):
                fused = fusion.kernels(site, train=setting.train)
                own = SiteKernels(own.forward + fused.forward, own.backward + fused.backward)
            result[site.id] = own
        return result


def _uncopied(site: Site) -> Site:
    """A site whose operand lies in rows already: no copy on the way, and ``contiguous`` returns what it is given."""
    attrs = {name: value for name, value in site.attrs.items() if name != "copied"}
    return dataclasses.replace(site, op="view" if site.op == "contiguous" else site.op, attrs=attrs)


def _kind(site: Site) -> Hashable:
    """All that :func:`kernels_of` reads of a site."""
    params = tuple(param.meta for param in site.params)
    attrs = tuple(_frozen(site.attrs.get(name)) for name in ATTRS_READ)
    shapes = site.inputs, site.outputs, params
    return site.op, site.kind, *shapes, site.gemms, site.calls, site.bytes_moved, site.opaque, attrs


def _frozen(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


class Times:
    """Times of kernels on one GPU; equal kernels of repeated blocks are timed once."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._known: dict[Kernel, float] = {}
        self._sites: dict[int, tuple[SiteKernels, float]] = {}

    def of(self, kernel: Kernel) -> float:
        """Seconds."""
        if kernel not in self._known:
            self._known[kernel] = kernel.seconds(self._gpu)
        return self._known[kernel]

    def of_site(self, kernels: SiteKernels) -> float:
        """Seconds of a site, forward and backward."""
        known = self._sites.get(id(kernels))  # an id is good as long as its object lives, so that is kept beside it
        if known is None:
            run = (*kernels.forward, *kernels.backward)
            each = {id(kernel): self.of(kernel) for kernel in {id(kernel): kernel for kernel in run}.values()}
            seconds = sum(each[id(kernel)] for kernel in run)  # the calls of a loop share their kernels
            known = self._sites[id(kernels)] = kernels, seconds
        return known[1]


def counted(kernels: Iterable[SiteKernels]) -> list[tuple[SiteKernels, int]]:
    """Each shared :class:`SiteKernels` once, and how many sites run it."""
    kept = list(kernels)
    objects = {id(each): each for each in kept}
    counts = collections.Counter(map(id, kept))
    return [(each, counts[key]) for key, each in objects.items()]

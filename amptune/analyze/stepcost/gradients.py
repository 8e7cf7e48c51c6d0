"""How gradients come back to a tensor that other ops read: parts are put together, those of a tensor that was expanded
are summed, and those of several readers are added up in memory."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

from amptune.analyze.stepcost.kernels import Kernel, Move, Setting, call_share
from amptune.core.autocast import SiteDtypes, sources_of
from amptune.core.graph import DTYPE_BYTES, PrecisionGraph, Site
from amptune.core.roofline import Traffic

_SPLITS = ("split", "chunk", "unbind", "tensor_split")
"""Views whose parts come back as one concatenation; those of other cuts come back one by one, each into zeros."""


@dataclasses.dataclass
class _Readers:
    """Gradients that come back to the outputs of one site."""

    whole: int = 0
    split: bool = False
    cut: list[int] = dataclasses.field(default_factory=list)
    expanded: list[int] = dataclasses.field(default_factory=list)


class Accumulations:
    """The kernels beside those of the sites: parts into wholes, and one sum for each further gradient of a tensor.

    A shared module makes one tensor a call, so as many gradients as it has calls need no sum.
    """

    def __init__(self, graph: PrecisionGraph) -> None:
        self._graph = graph
        self._readers: dict[str, _Readers] = collections.defaultdict(_Readers)
        for site in graph:
            _count(graph, site, self._readers)

    def under(self, dtypes: Mapping[str, SiteDtypes], setting: Setting) -> Iterator[Kernel]:
        """Those of a step under the dtypes of a setting's recipe."""
        if not setting.train or setting.fused:
            return
        for name, found in self._readers.items():
            site = self._graph[name]
            elements = max((tensor.numel for tensor in site.outputs), default=0) * call_share(site) / site.calls
            if elements:
                yield from _put_together(found, site, elements, DTYPE_BYTES.get(dtypes[name].outputs[0], 4))


def _put_together(found: _Readers, site: Site, elements: float, item: int) -> Iterator[Kernel]:
    whole = elements * item
    if found.split:
        yield Move(Traffic.JOINED, 2 * whole)
    for part in found.cut:
        yield Move(Traffic.LAYOUT, whole + 2 * whole * part / elements, 2)
    for read in found.expanded:
        yield Move(Traffic.REDUCTION, whole + whole * read / elements)
    for _ in range(found.whole + found.split + len(found.cut) - site.calls):
        yield Move(Traffic.POINTWISE, 3 * whole)


def _count(graph: PrecisionGraph, site: Site, readers: dict[str, _Readers]) -> None:
    views = site.attrs.get("views") or {}
    for index, (tensor, source) in enumerate(zip(site.inputs, sources_of(graph, site), strict=True)):
        if not (tensor.requires_grad and tensor.is_floating) or source not in graph:
            continue
        cuts, every = views.get(index, ("", ""))
        whole = max((output.numel for output in graph[source].outputs), default=0)
        if not cuts or tensor.numel >= whole:
            readers[source].whole += site.calls
            if "expand" in every and tensor.numel > whole:
                readers[source].expanded += [tensor.numel] * site.calls
        elif any(name in cuts for name in _SPLITS):
            readers[source].split = True
        else:
            readers[source].cut += [tensor.numel] * site.calls

"""Pointwise work of a compiled model: what torch.compile fuses into one kernel is read and written once.

Assumption: every chain of pointwise ops, norms, softmaxes, reductions, casts and losses that needs the same products
is one kernel. It reads what products, the batch, parameters or an earlier chain made, and writes what a product or a
later chain reads, in the dtype that the reader computes in. Its backward reads the same again (recomputing what lies
between), reads the incoming gradient and writes the outgoing one. Batch statistics need a second pass over the input.
"""

from __future__ import annotations

from collections.abc import Mapping

from amptune.analyze.stepcost.kernels import Kernel, Move, SiteKernels, needs_backward
from amptune.core.autocast import SiteDtypes, sources_of
from amptune.core.graph import DTYPE_BYTES, OUTPUT, PrecisionGraph, Site
from amptune.core.ops import Family, op_named
from amptune.core.roofline import Traffic

_FUSED = (Family.POINTWISE, Family.SENSITIVE, Family.NORM, Family.SOFTMAX, Family.REDUCTION, Family.LOSS, Family.CAST)
_FUSED_OPS = frozenset({"cat", "stack", "contiguous", "clone", "copy", "pad", "flip", "repeat", "roll"})


def is_fused(site: Site) -> bool:
    """Whether a compiler fuses the site with its neighbours."""
    return op_named(site.op).family in _FUSED or site.op in _FUSED_OPS


class Fusion:
    """Which kernel of a compiled model each fused site ends up in, and what that kernel reads and writes.

    A site's stage is the largest number of products on a path to it: sites of different stages cannot share a kernel,
    so the residual stream between two layers is written and read again.
    """

    def __init__(self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes]) -> None:
        self.graph = graph
        self.dtypes = dtypes
        self._stage: dict[str, int] = {}
        for site in graph:
            self._stage[site.id] = max((self._after(source) for source in sources_of(graph, site)), default=0)

    def _after(self, source: str) -> int:
        if source not in self._stage:
            return 0
        return self._stage[source] + (0 if is_fused(self.graph[source]) else 1)

    def together(self, first: str, second: str) -> bool:
        """Whether two sites share a kernel."""
        both = first in self.graph and second in self.graph
        return (
            both
            and is_fused(self.graph[first])
            and is_fused(self.graph[second])
            and self._stage[first] == self._stage[second]
        )

    def kernels(self, site: Site, *, train: bool) -> SiteKernels:
        """The share of a fused site in its kernel; nothing for a site inside a chain."""
        read, written = self.bytes_read(site), self.bytes_written(site)
        passes = 2 if site.op in ("batch_norm", "instance_norm") else 1
        forward: tuple[Kernel, ...] = (Move(Traffic.FUSED, passes * read + written),) if read or written else ()
        if not (train and needs_backward(site) and forward):
            return SiteKernels(forward, ())
        return SiteKernels(forward, (Move(Traffic.FUSED, passes * (2 * read + written)),))

    def bytes_read(self, site: Site) -> int:
        """Bytes that the site reads from outside of its kernel."""
        total = sum(param.meta.nbytes for param in site.params)
        given = self.dtypes[site.id].given
        for tensor, source, dtype in zip(site.inputs, sources_of(self.graph, site), given, strict=True):
            if not self.together(source, site.id):
                total += tensor.numel * DTYPE_BYTES.get(dtype, 4)
        return total

    def bytes_written(self, site: Site) -> int:
        """Bytes that the site writes for readers outside of its kernel."""
        numel = sum(tensor.numel for tensor in site.outputs)
        sizes = [
            DTYPE_BYTES.get(self.dtypes[reader.id].compute, 4)
            for reader in self.graph.consumers(site.id)
            if not self.together(site.id, reader.id)
        ]
        if OUTPUT in self.graph.graph.successors(site.id):
            outputs = self.dtypes[site.id].outputs
            sizes.append(DTYPE_BYTES.get(outputs[0], 4) if outputs else 4)
        return numel * max(sizes) if sizes else 0

"""Sites that must share a format, because their outputs meet in an op that takes one dtype only.

An op that is not planned follows its inputs: its output has the promoted dtype of them. So the dtype of a tensor is
decided by a set of planned modules, called its sources here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from amptune.core.graph import INPUT, LOSS, PrecisionGraph, Site, TensorMeta
from amptune.core.ops import Family, op_named
from amptune.core.paths import upwards

_FIXED = frozenset({INPUT})
_OWN_FORMAT = (Family.GEMM, Family.CONV, Family.ATTENTION, Family.RNN, Family.EMBEDDING, Family.NORM)


def meet_in_one_op(graph: PrecisionGraph, planned: Collection[str] = ()) -> list[set[str]]:
    """Sets of module sites whose outputs meet in an op that promotes: FP32 may join either, FP16 and BF16 must not mix.

    Where they did, the result would be FP32 without a word. What meets within a planned module is that module's affair.
    """
    sources = sources_of(graph, planned)
    found: list[set[str]] = []
    for site in graph:
        if not (site.is_module and _decides(site)) and owner_of(site, planned) is None:
            sites = set().union(*arriving_at(graph, site, sources)) - _FIXED
            if len(sites) > 1 and sites not in found:
                found.append(sites)
    return found


def sources_of(
    graph: PrecisionGraph, planned: Collection[str] = (), regions: Mapping[str, Collection[str]] | None = None
) -> dict[str, frozenset[str]]:
    """Site id -> sites that decide the dtype of its output; INPUT stands for what no plan changes.

    Repeats until nothing changes, since a shared module can feed itself.

    Args:
        graph: sites of the model.
        planned: what takes a format, see ``owner_of``; beside them, every module with weights decides.
        regions: functional site in an autocast region -> the planned sites that bring 16 bits to it, where autocast
            lowers it; nothing where it computes it in FP32.
    """
    regions = regions or {}
    owners = {site.id: owner_of(site, planned) or (site.id if _decides(site) else None) for site in graph}
    sources: dict[str, frozenset[str]] = {INPUT: _FIXED}
    changed = True
    while changed:
        before = dict(sources)
        for site in graph:
            owner = owners[site.id]
            if owner is None and site.id in regions:
                arriving = frozenset().union(*arriving_at(graph, site, sources)).intersection(planned)
                feeds = frozenset(regions[site.id])
                sources[site.id] = (arriving or feeds) if feeds else _FIXED
            else:
                sources[site.id] = _followed(graph, site, sources) if owner is None else frozenset({owner})
        changed = sources != before
    return sources


def owner_of(site: Site, planned: Collection[str]) -> str | None:
    """What of ``planned`` computes a site: itself, or the module whose forward makes the call, as a norm written by
    hand does; None where no plan says in which format."""
    if site.id in planned:
        return site.id
    if site.module == LOSS or not planned:
        return None
    return next((path for path in upwards(site.module) if path in planned), None)


def _decides(site: Site) -> bool:
    """Whether the plan gives this site's output its format: a module with weights does, what follows does not."""
    return site.is_module and (bool(site.params) or op_named(site.op).family in _OWN_FORMAT)


def _followed(graph: PrecisionGraph, site: Site, sources: dict[str, frozenset[str]]) -> frozenset[str]:
    if site.attrs.get("dtype") is not None:
        return _FIXED
    arriving = arriving_at(graph, site, sources)
    # Nothing that a plan decides arrives, or something in FP32 does, which every promotion with 16 bits ends in.
    if not arriving or _FIXED in arriving:
        return _FIXED
    return frozenset().union(*arriving)


def arriving_at(graph: PrecisionGraph, site: Site, sources: dict[str, frozenset[str]]) -> list[frozenset[str]]:
    """Sources of each floating tensor that ``site`` reads, by producer; a tensor of the model is its own source."""
    found = [
        sources[producer]
        for producer in graph.graph.predecessors(site.id)
        if sources.get(producer) and any(takes_part(tensor, site) for tensor in graph.tensors(producer, site.id))
    ]
    return found + [frozenset({name}) for name in held_by(graph, site)]


def held_by(graph: PrecisionGraph, site: Site) -> frozenset[str]:
    """``state_dict`` names of the model's floating tensors that a functional op reads, or a module is given."""
    # A module's parameters are its own, under another's name where they are shared.
    params = set() if site.is_module else {p.name for p in site.params if p.meta.is_floating}
    inputs = zip(site.sources, site.inputs, strict=False)
    buffers = {s for s, tensor in inputs if s and s != INPUT and s not in graph and takes_part(tensor, site)}
    return frozenset(params | buffers)


def takes_part(tensor: TensorMeta, site: Site) -> bool:
    """Whether the tensor's dtype matters: floating, and not a scalar, which promotion ignores beside other tensors."""
    others = any(other.shape for other in site.inputs if other.is_floating)
    return tensor.is_floating and (bool(tensor.shape) or not others)


def merged(groups: list[set[str]]) -> list[set[str]]:
    """Groups that share a name joined; INPUT joins nothing, it is a mark. Groups of one say nothing."""
    merged: list[set[str]] = []
    for group in groups:
        touching = [other for other in merged if (other & group) - _FIXED]
        merged = [other for other in merged if other not in touching]
        merged.append(group.union(*touching))
    return [group for group in merged if len(group) > 1]

"""The tensors between planned sites, as the allocation prices them: where formats differ, somebody pays a cast."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from amptune.apply import held_by, owner_of, sources_of, takes_part
from amptune.core.graph import INPUT, LOSS, PrecisionGraph, Site
from amptune.core.tables import Edge
from amptune.tune.choices.space import Space

_ONE_WAY = 0.5
"""Share of the price of a cast without a way back: of the batch, or of a gradient alone."""


def edges_of(graph: PrecisionGraph, space: Space) -> list[Edge]:
    """Edges into planned sites, between the operands of ops that promote, and into the loss.

    Ops and modules outside the plan follow their inputs: adds, views, activations. A residual stream is FP32 as soon
    as one of the sites that write it is, and each reader in 16 bits then casts it once, however many wrote it. An
    operand in fewer bits than the others of its op costs the cast of its gradient, and its own cast too where the op is
    pinned in FP32 for what it writes into. In an autocast region FP32 operands are cast to the format of those in 16
    bits, where the op is lowered, and the others are cast up where it is not. The loss is taken to be FP32: its
    edges end in ``LOSS``.
    """
    planned = {site for group in space.groups if group.has_format for site in group.sites}
    destinations = {site for group in space.groups if group.kind == "destination" for site in group.sites}
    losses = {site for group in space.groups if group.kind == "loss" for site in group.sites}
    regions = in_regions(space, planned)
    sources = {name: _decided(found, planned) for name, found in sources_of(graph, planned, regions).items()}
    edges: list[Edge] = []
    given: set[tuple[str, str]] = set()
    for site in graph:
        owner = owner_of(site, planned)
        if owner is not None:
            edges += _into_planned(graph, site, owner, sources, given)
            edges += _constants(site, (owner,)) if owner == site.id and not site.is_module else []
        elif site.module == LOSS:
            edges += _into_loss(graph, site, sources)
        elif site.id in losses:
            edges += _into(graph, site, (LOSS,), sources)
        elif regions.get(site.id):
            edges += _into_lowered(graph, site, sources, planned)
        elif site.id in destinations or site.id in regions:
            edges += [edge for edge in _into(graph, site, (INPUT,), sources) if INPUT not in edge.sources]
        else:
            edges += _promotions(graph, site, sources, planned)
    return edges


def in_regions(space: Space, planned: Collection[str]) -> dict[str, frozenset[str]]:
    """Functional site in an autocast region -> what brings 16 bits to it; nothing where it is in FP32 there."""
    found: dict[str, frozenset[str]] = {}
    for group in space.groups:
        if group.kind == "region":
            feeds = group.feeds.intersection(planned)
            found |= {site: frozenset() if site in group.raised else feeds for site in (*group.sites, *group.raised)}
    return found


def _into_lowered(
    graph: PrecisionGraph, site: Site, sources: Mapping[str, tuple[str, ...]], planned: Collection[str]
) -> list[Edge]:
    """What an op in an autocast region reads in FP32, cast to the format that comes of the others."""
    into = sources[site.id]
    read = [edge for edge in _into(graph, site, into, sources) if INPUT in edge.sources]
    weights = [
        Edge((INPUT,), into, p.meta.numel, 1.0) for p in site.params if p.meta.is_floating and p.name not in planned
    ]
    return [*read, *weights, *_constants(site, into)]


def _constants(site: Site, into: tuple[str, ...]) -> list[Edge]:
    """Tensors that the forward makes of nothing, a mask or a matrix, which have no gradient."""
    made = (tensor for tensor, source in zip(site.inputs, site.sources, strict=False) if not source)
    return [Edge((INPUT,), into, tensor.numel, _ONE_WAY) for tensor in made if takes_part(tensor, site)]


def _decided(found: frozenset[str], planned: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted({site if site in planned else INPUT for site in found}))


def _into_planned(
    graph: PrecisionGraph, site: Site, owner: str, sources: Mapping[str, tuple[str, ...]], given: set[tuple[str, str]]
) -> list[Edge]:
    """The edges into a planned site; where several functions of one module read a tensor, the module casts it once."""
    new = {producer for producer in graph.graph.predecessors(site.id) if (producer, owner) not in given}
    given.update((producer, owner) for producer in new)
    return _into(graph, site, (owner,), {name: found for name, found in sources.items() if name in new})


def _into(
    graph: PrecisionGraph, site: Site, into: tuple[str, ...], sources: Mapping[str, tuple[str, ...]]
) -> list[Edge]:
    """One edge for each floating tensor that ``site`` reads."""
    found = []
    for producer in graph.graph.predecessors(site.id):
        arriving = sources.get(producer, ())
        if not arriving or arriving == into:
            continue
        share = _ONE_WAY if producer == INPUT else 1.0
        tensors = [tensor for tensor in graph.tensors(producer, site.id) if takes_part(tensor, site)]
        found += [Edge(arriving, into, tensor.numel, share) for tensor in tensors]
    return found


def _into_loss(graph: PrecisionGraph, site: Site, sources: Mapping[str, tuple[str, ...]]) -> list[Edge]:
    from_model = {producer.id for producer in graph.producers(site.id) if producer.module != LOSS}
    return _into(graph, site, (LOSS,), {name: found for name, found in sources.items() if name in from_model})


def _promotions(
    graph: PrecisionGraph, site: Site, sources: Mapping[str, tuple[str, ...]], planned: Collection[str]
) -> list[Edge]:
    """The gradients that an op with operands of several formats casts back to each of them."""
    edges = _into(graph, site, (), sources)
    held = _decided(held_by(graph, site), planned)
    union = tuple(sorted({name for edge in edges for name in edge.sources}.union(held)))
    into = (INPUT,) if INPUT in union else union
    return [
        Edge(edge.sources, into, edge.numel, _ONE_WAY)
        for edge in edges
        if edge.sources != into and INPUT not in edge.sources
    ]

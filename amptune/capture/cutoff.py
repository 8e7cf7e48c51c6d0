"""Sites that no gradient comes back to: all that reads their results detaches them, as a teacher's or a loss that is
cut off."""

from __future__ import annotations

import dataclasses

from amptune.core.graph import PrecisionGraph, Site, TensorMeta


def cut_off(graph: PrecisionGraph, *, whole: bool = False) -> None:
    """Say of sites whose backward never runs that their tensors need no gradient, in place.

    A site whose result nothing reads stays as it is: what reads it may be code that no graph shows.

    Args:
        graph: the sites.
        whole: whether the loss is known to have no gradient, so that no site has a backward.
    """
    for name in [site.id for site in graph] if whole else _without_backward(graph):
        graph.replace_site(_without_gradient(graph[name]))


def _without_backward(graph: PrecisionGraph) -> set[str]:
    sites = [site for site in graph if any(tensor.requires_grad for tensor in site.outputs)]
    found: set[str] = set()
    before = -1
    while before < len(found):  # more than one turn for a site that several calls share alone
        before = len(found)
        for site in reversed(sites):
            readers = list(graph.graph.out_edges(site.id, data="tensors"))
            if readers and all(
                reader in found or not any(tensor.requires_grad for tensor in tensors) for _, reader, tensors in readers
            ):
                found.add(site.id)
    return found


def _without_gradient(site: Site) -> Site:
    params = tuple(dataclasses.replace(param, meta=_frozen(param.meta)) for param in site.params)
    inputs, outputs = (tuple(map(_frozen, tensors)) for tensors in (site.inputs, site.outputs))
    return dataclasses.replace(site, inputs=inputs, outputs=outputs, params=params)


def _frozen(meta: TensorMeta) -> TensorMeta:
    return dataclasses.replace(meta, requires_grad=False)

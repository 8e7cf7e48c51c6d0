"""Tensors that a class of the user's holds beside its layers, and which of them a plan should cast.

Position embeddings, layer scale, latent queries, weights of experts: read by functions in a forward, in FP32 they raise
what they are added to, and a residual stream is FP32 from there on; a product with them raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn

from amptune import runtime
from amptune.apply.ties import held_by, sources_of
from amptune.core.graph import LOSS, PrecisionGraph, Site
from amptune.core.ops import Family, op_named

_MOVES = (Family.MEMORY, Family.VIEW, Family.CAST)
_MOVING = ("dropout", "interpolate")
"""Ops beside those of these families that keep the range and the digits of what they read."""


def held_tensors(
    model: nn.Module, graph: PrecisionGraph, planned: Collection[str], run: Callable[[], object]
) -> list[str]:
    """``state_dict`` names of the tensors that may be cast: each of their readers either is a planned module or joins
    them with what a planned module gives, and no forward writes to them.

    A tensor with arithmetic of its own before that (``exp(self.log_scale)``, the frequencies of rotary embeddings) is
    left out: the range and the digits of that arithmetic are the user's choice.

    Args:
        model: the model, in train mode.
        graph: of the same model.
        planned: paths of the modules that take a format.
        run: one forward, to see what it writes.
    """
    tensors = {
        path
        for path, tensor in held_values(model).items()
        if path.rpartition(".")[0] not in planned and tensor.dim() > 0
    }
    readers: dict[str, list[Site]] = {}
    for site in graph:
        for name in held_by(graph, site):
            readers.setdefault(name, []).append(site)
    sources = sources_of(graph)
    found = [path for path in readers if path in tensors and _joins(readers[path], graph, planned, sources)]
    before = _states(model, found)
    run()
    after = _states(model, found)
    return [path for path in found if after[path] == before[path]]


def held_values(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` name -> floating tensor that a class of the user's holds beside its layers."""
    return {path: _tensor(module, name) for path, (module, name) in runtime.own_tensors(model).items()}


def _joins(
    readers: list[Site],
    graph: PrecisionGraph,
    planned: Collection[str],
    sources: Mapping[str, frozenset[str]],
) -> bool:
    """Whether all that becomes of a tensor, moved about at most, meets what planned modules give."""
    meets = False
    pending, seen = list(readers), {site.id for site in readers}
    while pending:
        site = pending.pop()
        if site.module == LOSS:
            return False
        if site.id in planned:
            continue  # it casts for itself
        if any(sources.get(producer.id, frozenset()) & set(planned) for producer in graph.producers(site.id)):
            meets = True
        elif site.op in _MOVING or op_named(site.op).family in _MOVES:
            following = [graph[after] for after in graph.graph.successors(site.id) if after not in seen]
            seen.update(after.id for after in following)
            pending += following
        else:
            return False
    return meets


def _tensor(module: nn.Module, name: str) -> Tensor:
    found = module._parameters.get(name)
    return found if found is not None else module._buffers[name]  # type: ignore[return-value]


def _states(model: nn.Module, paths: Collection[str]) -> dict[str, tuple[int, int, int, float, float]]:
    """What changes when a tensor is replaced or written to, through ``.data`` too."""
    values = held_values(model)
    found = {}
    for path in paths:
        tensor = values[path]
        data = tensor.detach()
        found[path] = id(tensor), data.data_ptr(), tensor._version, float(data.sum()), float(data.norm())
    return found

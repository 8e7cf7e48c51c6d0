"""Tensors that a forward of the user's reads itself, and which of them a plan should cast.

Position embeddings, layer scale, latent queries, weights of experts, the table of an embedding that the head multiplies
with, weights of layers that are never called: read by functions in a forward, in FP32 they raise what they are added
to, and a residual stream is FP32 from there on; a product with them raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from torch import Tensor, nn

from amptune import runtime
from amptune.apply.ties import arriving_at, held_by, owner_of, sources_of, takes_part
from amptune.core.graph import LOSS, PrecisionGraph, Site
from amptune.core.ops import Family, op_named

_MOVES = (Family.MEMORY, Family.VIEW, Family.CAST)
_MOVING = ("dropout", "interpolate")
"""Ops beside those of these families that keep the range and the digits of what they read."""


def held_tensors(
    model: nn.Module, graph: PrecisionGraph, planned: Collection[str], run: Callable[[], object]
) -> dict[str, Literal["own", "read", "late"]]:
    """``state_dict`` name of each tensor that may be cast -> how: each of its readers either is a planned module or
    joins it with what a planned module gives, and no forward writes to it. Of a layer, its own forward is no reader.

    One that the forward computes with first, alone or with others of them (``exp(self.log_scale)``, a weight divided
    by its norm), is cast "late": the range and the digits of that arithmetic are the user's choice. What is joined with
    the batch, or with results of it that no plan decides, is left out.

    Args:
        model: the model, in train mode.
        graph: of the same model.
        planned: paths of the modules that take a format.
        run: one forward, to see what it writes.
    """
    own = runtime.own_tensors(model)
    of_layers = {path for path, (module, _) in own.items() if runtime.is_layer(module)}
    tensors = {
        path
        for path, (module, name) in own.items()
        if runtime.held_tensor(module, name).dim() > 0 and (path in of_layers or path.rpartition(".")[0] not in planned)
    }
    readers: dict[str, list[Site]] = {}
    for site in graph:
        for name in held_by(graph, site):
            readers.setdefault(name, []).append(site)
    sources = sources_of(graph, planned)
    joined = {path: _joined(readers[path], graph, planned, sources, tensors) for path in readers if path in tensors}
    found = {path: how for path, how in joined.items() if how is not None}
    before = _states(model, found)
    run()
    after = _states(model, found)
    return {
        path: "read" if how == "own" and path in of_layers else how
        for path, how in found.items()
        if after[path] == before[path]
    }


def held_values(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` name -> floating tensor that a forward of the user's can read itself."""
    return {path: runtime.held_tensor(module, name) for path, (module, name) in runtime.own_tensors(model).items()}


def _joined(
    readers: list[Site],
    graph: PrecisionGraph,
    planned: Collection[str],
    sources: dict[str, frozenset[str]],
    tensors: Collection[str],
) -> Literal["own", "late"] | None:
    """How a tensor is cast of which all that becomes meets what planned modules give; None where something does not.

    "late" where it is not only moved about before.
    """
    meets = False
    how: Literal["own", "late"] = "own"
    pending, seen = list(readers), {site.id for site in readers}
    while pending:
        site = pending.pop()
        if site.module == LOSS:
            return None
        if owner_of(site, planned) is not None:
            continue  # it casts for itself
        if any(sources.get(producer.id, frozenset()) & set(planned) for producer in graph.producers(site.id)):
            meets = True
        else:
            if site.op not in _MOVING and op_named(site.op).family not in _MOVES:
                how = "late"
                if not frozenset().union(*arriving_at(graph, site, sources)) <= frozenset(tensors):
                    return None
            following = [after for after in _reading(graph, site) if after.id not in seen]
            seen.update(after.id for after in following)
            pending += following
    return how if meets else None


def _reading(graph: PrecisionGraph, site: Site) -> list[Site]:
    """The sites that read what a site gives, and whose result its dtype has a part in."""
    after = [graph[name] for name in graph.graph.successors(site.id)]
    return [each for each in after if any(takes_part(tensor, each) for tensor in graph.tensors(site.id, each.id))]


def _states(model: nn.Module, paths: Collection[str]) -> dict[str, tuple[int, int, int, float, float]]:
    """What changes when a tensor is replaced or written to, through ``.data`` too."""
    values = held_values(model)
    found = {}
    for path in paths:
        tensor = values[path]
        data = tensor.detach()
        found[path] = id(tensor), data.data_ptr(), tensor._version, float(data.sum()), float(data.norm())
    return found

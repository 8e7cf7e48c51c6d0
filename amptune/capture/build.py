"""From a captured fx graph to the PrecisionGraph: calls become sites, and views, casts and constants become edges."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from amptune.capture.attrs import module_attrs
from amptune.capture.calls import Call
from amptune.capture.cutoff import cut_off
from amptune.capture.flow import Flow, Operand, has_channels_last, is_transparent, is_transparent_op, metas_of
from amptune.capture.layers import has_several_ops, is_opaque, layer_op
from amptune.capture.parameters import ParameterNames
from amptune.capture.record import opaque
from amptune.capture.sourcecode import code_at
from amptune.capture.usercode import shown_path
from amptune.capture.where import parting
from amptune.core.graph import FLOATING_DTYPES, Gemm, Param, PrecisionGraph, Site, SiteCall, TensorMeta
from amptune.core.ops import Autocast, Family, op_named

Key = tuple[Any, ...]


@dataclasses.dataclass
class Visit:
    """One call of one site: a run of a leaf module, or one call of a functional op, with the nodes that it covers."""

    key: Key
    call: Call
    nodes: list[fx.Node] = dataclasses.field(default_factory=list)

    @property
    def is_transparent(self) -> bool:
        """Whether nothing in it is computed in a precision."""
        if _is_custom(self.call):
            return False
        if self.call.leaf is None and is_transparent_op(self.call.op):
            return True
        return all(is_transparent(node) for node in self.nodes)


def build_graph(module: fx.GraphModule, model: nn.Module) -> PrecisionGraph:
    """The sites of a captured graph in call order, and the tensors between them.

    Args:
        module: nodes carry ``meta["val"]``, ``meta["amptune_op"]`` and ``meta["amptune_call"]``.
        model: what was captured, for the layers' settings and the parameters' names.
    """
    visits = _computing(module)
    ids = _site_ids(visits)
    return _graph(module, model, visits, [ids[visit.key] for visit in visits])


def build_calls(module: fx.GraphModule, model: nn.Module) -> PrecisionGraph:
    """The same with each call of a site apart: the first keeps the id of the site, later ones are ``id@2``, ``id@3``.

    Args:
        module, model: as for :func:`build_graph`.
    """
    visits = _computing(module)
    ids = _site_ids(visits)
    calls = _site_calls(visits, ids)
    labels = [_label(call, ids[visit.key]) for visit, call in zip(visits, calls, strict=True)]
    graph = _graph(module, model, visits, labels)
    for call, label in zip(calls, labels, strict=True):
        if call is not None:
            graph.replace_site(dataclasses.replace(graph[label], call=call))
    return graph


def _label(call: SiteCall | None, site_id: str) -> str:
    return f"{site_id}@{call.number}" if call is not None and call.number > 1 else site_id


def _site_calls(visits: Sequence[Visit], ids: Mapping[Key, str]) -> list[SiteCall | None]:
    """Which call each visit is; ``None`` for the only one of its site."""
    numbers: dict[Key, list[int]] = collections.defaultdict(list)
    for number, visit in enumerate(visits):
        numbers[visit.key].append(number)
    found: list[SiteCall | None] = [None] * len(visits)
    for key, own in numbers.items():
        if len(own) > 1:
            for turn, (number, place) in enumerate(zip(own, parting([visits[n].call.trail for n in own]), strict=True)):
                shown = f"{shown_path(place.filename)}:{place.line}" if place else ""
                found[number] = SiteCall(ids[key], turn + 1, len(own), shown)
    return found


def _computing(module: fx.GraphModule) -> list[Visit]:
    return [visit for visit in _visits(module.graph.nodes) if not visit.is_transparent]


def _graph(module: fx.GraphModule, model: nn.Module, visits: Sequence[Visit], ids: Sequence[str]) -> PrecisionGraph:
    """Visits of one id are one site."""
    names = ParameterNames(model)
    site_of = {node: name for visit, name in zip(visits, ids, strict=True) for node in visit.nodes}
    group_of = {node: number for number, visit in enumerate(visits) for node in visit.nodes}
    flow = Flow(names, site_of, group_of)
    flow.read(module.graph)
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for number in range(len(visits)):
        groups[ids[number]].append(number)
    graph = PrecisionGraph()
    for site_id, numbers in groups.items():
        made = [(visits[number], flow.operands.get(number, [])) for number in numbers]
        graph.add_site(_site(site_id, made, names))
    for source, target, tensor in flow.edges:
        graph.add_tensor(source, target, tensor)
    cut_off(graph)
    return graph


def _visits(nodes: Iterable[fx.Node]) -> list[Visit]:
    """Nodes grouped by call: all nodes of one run of a leaf module, or of one torch function."""
    found: dict[Key, Visit] = {}
    for node in nodes:
        call: Call | None = node.meta.get("amptune_call")
        if call is None:
            continue
        if node.target is opaque and call.leaf is None and not _is_custom(call):
            continue
        key, number = _key(call)
        found.setdefault((key, number), Visit(key, call)).nodes.append(node)
    return list(found.values())


def _key(call: Call) -> tuple[Key, int]:
    """What two calls of one site share, and the number of the call."""
    if call.leaf is not None:
        return ("module", call.leaf.path), call.leaf.number
    if call.custom is not None and _is_custom(call):
        custom = call.custom
        return ("op", call.holder, custom.name, custom.place.origin or ("", custom.number)), custom.number
    return ("op", call.holder, call.op, call.place.origin or ("", call.number)), call.number


def _is_custom(call: Call) -> bool:
    """Whether a call is part of a custom autograd function that is one site."""
    return call.leaf is None and call.custom is not None and not call.custom.holds_modules


def _site_ids(visits: Sequence[Visit]) -> dict[Key, str]:
    """Module path, or ``path#op.n`` with n in order of the line and column where calls end."""
    ids: dict[Key, str] = {}
    functional: dict[tuple[str, str], list[Key]] = collections.defaultdict(list)
    for key in dict.fromkeys(visit.key for visit in visits):
        if key[0] == "module":
            ids[key] = key[1]
        else:
            functional[key[1], key[2]].append(key)
    for (holder, op), keys in functional.items():
        for number, key in enumerate(sorted(keys, key=_order)):
            ids[key] = f"{holder}#{op}.{number}"
    return ids


def _order(key: Key) -> tuple[Any, ...]:
    spot = key[3]
    if isinstance(spot, tuple):
        return ("", spot[1], 0, 0, 0)
    # As amptune.core.opcodes orders them: an inner call comes before the one around it.
    return (spot.filename, spot.end_line, spot.end_column, -spot.line, -spot.column)


def _site(site_id: str, made: list[tuple[Visit, list[Operand]]], names: ParameterNames) -> Site:
    visit, operands = made[0]
    call, leaf = visit.call, visit.call.leaf
    inputs = [operand for operand in operands if not _is_own(operand, call)]
    gemms = tuple(gemm for each, _ in made for gemm in _gemms(each))
    params = _params(visit, [operand for _, read in made for operand in read], names)
    first = len(_params(visit, operands, names))
    place = call.custom.place if call.custom and _is_custom(call) else call.place
    reader, op = place.reader, _op(visit)
    return Site(
        id=site_id,
        op=op,
        kind="module" if leaf else "function",
        module=leaf.path if leaf else call.holder,
        module_type=leaf.type_name if leaf else call.holder_type,
        inputs=tuple(operand.meta for operand in inputs),
        outputs=_outputs(visit),
        sources=tuple(operand.source for operand in inputs),
        params=params,
        gemms=gemms,
        flops=sum(gemm.flops for gemm in gemms),
        bytes_moved=sum(_bytes(each, read, op) for each, read in made),
        location=reader.location() if reader else None,
        code=code_at(reader, op) if reader and not leaf and reader == place.origin else "",
        calls=len(made),
        attrs=_attrs(visit, inputs) | _written(made) | ({"call_params": first} if first < len(params) else {}),
        nodes=tuple(node.name for each, _ in made for node in each.nodes),
        opaque=is_opaque(leaf.module) if leaf else _is_custom(call),
    )


def _gives_several(node: fx.Node) -> bool:
    """Whether a node writes into several tensors, or does with each of a list what its op does with one."""
    name = str(getattr(node.meta["amptune_call"].function, "__name__", ""))
    return name.startswith("_foreach_") or len(node.meta.get("amptune_writes", ())) > 1


def _written(made: Sequence[tuple[Visit, Sequence[Operand]]]) -> dict[str, Any]:
    """Index of an input -> what was written into parts of it before one of the calls read it."""
    found: dict[int, tuple[str, ...]] = {}
    for visit, operands in made:
        inputs = (operand for operand in operands if not _is_own(operand, visit.call))
        for index, operand in enumerate(inputs):
            if operand.written:
                found[index] = tuple(dict.fromkeys((*found.get(index, ()), *operand.written)))
    return {"written": found} if found else {}


def _op(visit: Visit) -> str:
    call = visit.call
    if call.leaf is not None:
        return layer_op(call.leaf.module, visit.nodes)
    return call.custom.name if call.custom and _is_custom(call) else call.op


def _is_own(operand: Operand, call: Call) -> bool:
    """Whether an operand is a parameter, or the state of the layer itself (running statistics)."""
    if operand.parameter is not None:
        return True
    return call.leaf is not None and operand.source.startswith(f"{call.leaf.path}.") and operand.is_stored


def _gemms(visit: Visit) -> tuple[Gemm, ...]:
    """The products of the calls; of a convolution or linear layer those alone that the layer is named after.

    Others work out its weight (spectral_norm and other parametrizations), and are no passes over its input.
    """
    calls = list({call.number: call for node in visit.nodes if (call := node.meta["amptune_call"])}.values())
    op = _op(visit)
    if op == "linear" or op_named(op).family is Family.CONV:
        calls = [call for call in calls if call.op == op] or calls
    return tuple(gemm for call in calls for gemm in call.gemms)


def _outputs(visit: Visit) -> tuple[TensorMeta, ...]:
    """What is read outside; what the last node gives where nothing is.

    Of a convolution or linear layer that is what the layer is named after alone: the state of a parametrization, which
    the layer's next call reads (spectral_norm's vectors), is no output.
    """
    own, op = set(visit.nodes), _op(visit)
    read = [node for node in visit.nodes if any(user not in own for user in node.users)]
    if op == "linear" or op_named(op).family is Family.CONV:
        read = [node for node in read if node.meta["amptune_call"].op == op] or read
    return tuple(meta for node in read or visit.nodes[-1:] for meta in metas_of(node))


def _params(visit: Visit, operands: Sequence[Operand], names: ParameterNames) -> tuple[Param, ...]:
    """A layer's own parameters, tied or not; for a functional op those that it reads, in any of its calls: a line of a
    helper is one site, whatever weights it is called with."""
    leaf = visit.call.leaf
    read = [operand.parameter for operand in operands if operand.parameter is not None]
    if leaf is None:
        return tuple(names.param(name) for name in dict.fromkeys(read))
    return tuple(names.param(name) for name in names.own(leaf.path, leaf.module))


def _bytes(visit: Visit, operands: Sequence[Operand], op: str) -> int:
    """Bytes read and written; of an embedding's table only the rows that are looked up."""
    written = sum(meta.nbytes for meta in _outputs(visit))
    if op_named(op).family is Family.EMBEDDING:
        read = sum(operand.meta.nbytes for operand in operands if operand.parameter is None)
        return read + 2 * written
    return written + sum(operand.meta.nbytes for operand in operands)


def _ends_in_product(visit: Visit) -> bool:
    """Whether the last op of a call is one that autocast has in 16 bits, so that its gradient is."""
    calls = [node.meta["amptune_call"] for node in visit.nodes if node.target is not opaque]
    return bool(calls) and op_named(max(calls, key=lambda each: each.number).op).cuda is Autocast.LOWER


def _ends_in_16_bits(visit: Visit) -> bool:
    """Whether a call gives 16 bits under autocast: an op in it does, and none behind it has FP32 as its result."""
    calls = {call.number: call for node in visit.nodes if node.target is not opaque
             and (call := node.meta["amptune_call"])}  # fmt: skip
    found = False
    for number in sorted(calls):
        op = op_named(calls[number].op)
        kept = op.cuda is Autocast.FOLLOW and op.family is not Family.CAST
        found = op.cuda is Autocast.LOWER or (found and kept)
    return found


def _attrs(visit: Visit, inputs: Sequence[Operand]) -> dict[str, Any]:
    call, leaf = visit.call, visit.call.leaf
    attrs = module_attrs(leaf.module) if leaf else {} if _is_custom(call) else dict(call.attrs)
    if (leaf and has_several_ops(leaf.module, visit.nodes)) or any(_gives_several(node) for node in visit.nodes):
        attrs["several"] = True
    if call.autocast is not None:
        attrs["autocast"] = call.autocast
    if call.custom is not None and call.custom.cast_inputs and _is_custom(call):
        attrs["cast_inputs"] = call.custom.cast_inputs
    if call.custom is not None and call.custom.divides and _is_custom(call):
        attrs["backward_divides"] = call.custom.divides
    if call.custom is not None and _is_custom(call) and _ends_in_16_bits(visit):
        attrs["lowers"] = True
        if call.custom.mixes and _ends_in_product(visit):
            attrs["mixes"] = call.custom.mixes
    casts = {index: operand.cast for index, operand in enumerate(inputs) if operand.cast in FLOATING_DTYPES}
    if casts:
        attrs["casts"] = casts
    if inputs and has_channels_last(inputs[0].node.meta.get("val")):
        attrs["channels_last"] = True
    return attrs

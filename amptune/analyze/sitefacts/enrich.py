"""What rules need of the fx nodes beyond the PrecisionGraph: order of operands, explicit casts, memory layout.

Adds to ``Site.attrs`` the keys ``operands``, ``operand_params``, ``in_place``, ``casts``, ``param_casts``, ``like``,
``masked``, ``mask_strided``, ``mask_causal``, ``strided``, ``in_rows``, ``viewed``, ``copied``, ``rearranged``,
``channels_last``, ``filled``, ``integers``, ``fp32_limit``, ``exact``, ``rises``, ``bounds``, ``batch``, ``views``,
``turns``, ``axes``, ``narrowed``, ``passed``, ``passed_too``, ``varied``, ``uneven``, ``random``, ``kept``,
``triangles``, ``as_stored``, ``one_hot``, ``pairs``, ``puts``, ``whole``, ``by_name``, ``called``, ``later_sources``,
``assigned``, ``image``, ``grids``, ``returned``, the facts of :mod:`amptune.analyze.sitefacts.batchfacts` and, of
nn.MultiheadAttention, ``fused`` that the class describes, and empties a ``dtype`` that is another tensor's. A site
whose nodes do not line up with its inputs is left as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.assignments import assigned_to
from amptune.analyze.sitefacts.batchfacts import facts_of
from amptune.analyze.sitefacts.branches import asked_for_half
from amptune.analyze.sitefacts.constants import NodeBounds
from amptune.analyze.sitefacts.dtypes import (
    REVERSED,
    FollowedDtypes,
    is_in_place,
    names_literal,
    root,
    source,
    spelling,
    walk,
)
from amptune.analyze.sitefacts.einsums import copied
from amptune.analyze.sitefacts.layouts import is_channels_last, order_in_memory
from amptune.analyze.sitefacts.origins import INTEGERS, is_own, mask_of, origins, read_by
from amptune.analyze.sitefacts.sequences import IN_ROWS, lay_out
from amptune.analyze.sitefacts.spacing import grid_of, returned
from amptune.analyze.sitefacts.views import counted_views
from amptune.analyze.stepcost.images import mark_images
from amptune.capture.forward import one_thread
from amptune.core.autocast import UNKNOWN
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.ops import Family, op_named

_CONSTANT = torch.ops.aten.lift_fresh_copy.default
"""What torch.export makes of a list in a call: ``x[[1, 0]]``."""
_ORDERED_OPS = ("masked_select", "index")
_ORDERED = (Family.POINTWISE, Family.SENSITIVE, Family.REDUCTION, Family.SOFTMAX, Family.GEMM)
_FP32_LIMIT = re.compile(r"finfo\(torch\.float(32)?\)")
_LAID_OUT = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
             "group_norm", "interpolate")  # fmt: skip


_NAMING = frozenset({"like", "later_sources", "written"})
"""Keys whose values are ids of sites, which are other ones in a graph of calls."""


def enrich(graph: PrecisionGraph, module: fx.GraphModule, known: PrecisionGraph | None = None) -> None:
    """Add the keys to all sites of ``graph``, in place, from the nodes that they cover.

    Args:
        graph: the sites, or the calls of each.
        module: the captured graph.
        known: another graph of the same capture that has the keys: sites that are alike in both take theirs from it.
    """
    with one_thread():
        _add_to_all(graph, module, known)
    mark_images(graph)


def _add_to_all(graph: PrecisionGraph, module: fx.GraphModule, known: PrecisionGraph | None) -> None:
    lay_out(module.graph)
    nodes = {node.name: node for node in module.graph.nodes}
    owners = {name: site.id for site in graph for name in site.nodes}
    dtypes = FollowedDtypes(module.graph.nodes, owners)
    bounds = NodeBounds(module, owners)
    seen: set[str] = set()
    for site in list(graph):
        twin = known[site.id] if known is not None and site.id in known else None
        if twin is not None and twin.nodes == site.nodes and not _NAMING.intersection(twin.attrs):
            graph.replace_site(dataclasses.replace(site, attrs=twin.attrs))
            continue
        own = [nodes[name] for name in site.nodes if name in nodes]
        calls = _calls(own)
        covered = calls[0] if calls else []
        read = read_by(covered)
        outside = [node for node in read if not is_own(node, site)]
        if not covered or len(outside) != len(site.inputs):
            continue
        added = dict(_facts(site, covered, outside, dtypes)) | dict(origins(site, calls, owners, bounds))
        added |= _rounded(outside, dtypes, bounds)
        added |= facts_of(own)
        if line := asked_for_half(site, added):
            added["asks_for_half"] = line
        if casts := _param_casts(site, read, dtypes):
            added["param_casts"] = casts
        viewed, elements = counted_views((step for node in outside for step in walk(node)), seen)
        if viewed:
            added["viewed"] = viewed
        if elements:
            added["copied"] = elements
        if added:
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, **added}))


def _rounded(outside: Sequence[fx.Node], dtypes: FollowedDtypes, bounds: NodeBounds) -> dict[str, Any]:
    """What a narrower format may take away of the inputs: places of a grid, and integers that come back as such."""
    grids = {index: grid for index, node in enumerate(outside) if (grid := grid_of(node, bounds.worked_out))}
    back = {index: found for index, node in enumerate(outside) if (found := returned(node, dtypes))}
    return ({"grids": grids} if grids else {}) | ({"returned": back} if back else {})


def _calls(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The nodes of the site, call by call."""
    calls: dict[Any, list[fx.Node]] = {}
    for node in nodes:
        calls.setdefault(_call_key(node), []).append(node)
    return list(calls.values())


def _call_key(node: fx.Node) -> Any:
    call = node.meta.get("amptune_call")
    if call is None:
        return None
    return ("leaf", call.leaf.number) if call.leaf else ("call", call.number)


def _param_casts(site: Site, read: Sequence[fx.Node], dtypes: FollowedDtypes) -> dict[str, str]:
    """Name -> dtype of the parameters that the user's code casts before the op reads them."""
    names = {param.name for param in site.params}
    found = {}
    for node in read:
        stored = root(node).meta.get("amptune_stored")
        if stored in names and (dtype := dtypes.of_stored(node)) is not None:
            found[str(stored)] = dtype
    return found


def _facts(
    site: Site, covered: Sequence[fx.Node], outside: Sequence[fx.Node], dtypes: FollowedDtypes
) -> Iterator[tuple[str, Any]]:
    positions = {node: index for index, node in enumerate(outside)}
    if not site.is_module and (op_named(site.op).family in _ORDERED or site.op in _ORDERED_OPS):
        yield from _operands(site, covered, positions)
    if not site.is_module and is_in_place(covered[0]):
        yield "in_place", True
    if site.op == "add" and any(root(node).op == "get_attr" for node in outside) and (kept := assigned_to(covered[0])):
        yield "assigned", kept
    if not site.is_module and (called := _called(covered[0])) != site.op:
        yield "called", called
    if not site.is_module and site.attrs.get("dtype") and not names_literal(covered[0]):
        yield "dtype", UNKNOWN
    if not site.is_module and _FP32_LIMIT.search(source(covered[0])):
        yield "fp32_limit", True
    yield from dtypes.of_inputs(positions)
    if site.op == "scaled_dot_product_attention":
        mask = mask_of(covered[0])
        yield "masked", mask is not None
        if mask is not None and _is_strided(mask.meta.get("val")):
            yield "mask_strided", True
    if site.op == "multi_head_attention":
        yield from _fused_inside(covered)
    if site.op == "einsum" and (found := copied(site.attrs.get("equation"), _multiplied(site, covered[0], positions))):
        yield "rearranged", found
    integers = {index: count for node, index in positions.items() if (count := _counted(node))}
    if integers:
        yield "integers", integers
    if counts := tuple(index for node, index in positions.items() if _is_given_integers(root(node))):
        yield "batch_integers", counts
    if filled := {index: op for node, index in positions.items() if (op := _filled_like(node))}:
        yield "filled", filled
    if tests := tuple(index for node, index in positions.items() if _is_test(root(node))):
        yield "tested", tests
    strided = {index: order for node, index in positions.items() if (order := order_in_memory(node))}
    if strided:
        yield "strided", strided
        if in_rows := tuple(index for node, index in positions.items() if IN_ROWS in node.meta):
            yield "in_rows", in_rows
    if site.op in _LAID_OUT and outside:
        layout = is_channels_last(outside[0])
        if layout is not None:
            yield "channels_last", layout


def _multiplied(site: Site, node: fx.Node, positions: Mapping[fx.Node, int]) -> list[tuple[fx.Node, bool]]:
    """The operands of an einsum, each with whether it has a gradient."""
    given = [argument for argument in _one_by_one(node.args) if isinstance(argument, fx.Node)]
    trained = any(param.meta.requires_grad for param in site.params)
    return [(each, site.inputs[positions[each]].requires_grad if each in positions else trained) for each in given]


def _operands(site: Site, covered: Sequence[fx.Node], positions: Mapping[fx.Node, int]) -> Iterator[tuple[str, Any]]:
    """Positions in ``inputs`` of the positional arguments; turned round for ``1 - x`` and the like."""
    if "operands" in site.attrs:
        return  # a graph that was enriched before: the literals of 1 - x are turned round already
    made = [node for node in covered if node.target is not _CONSTANT]
    node = made[0] if made else covered[0]
    is_reversed = spelling(node) in REVERSED
    scalars = dict(site.attrs.get("scalars") or {})
    if len(made) > 1 and not (is_reversed and len(positions) == len(scalars) == 1):
        return  # a call that torch.export took apart, as it does 1 / x
    arguments = list(_one_by_one(node.args))
    layout = [positions.get(argument) if isinstance(argument, fx.Node) else None for argument in arguments]
    if len(layout) == 1 and 1 in scalars:
        layout.append(None)  # the number was given by name, or stands in a later node
    stored = {
        place: str(name)
        for place, argument in enumerate(arguments)
        if isinstance(argument, fx.Node) and layout[place] is None
        if (name := root(argument).meta.get("amptune_stored"))
    }
    if is_reversed and len(layout) == 2:
        # torch.export keeps the order of 1 - x as rsub(x, 1), and has 2 ** x as pow(2, x): turned round already.
        if all(layout[place] is None and place not in stored for place in scalars):
            layout.reverse()
            stored = {1 - place: name for place, name in stored.items()}
        yield "scalars", {1 - place: value for place, value in scalars.items()}
    if stored:
        yield "operand_params", stored
    named = {name: positions[value] for name, value in node.kwargs.items()
             if isinstance(value, fx.Node) and value in positions and name != "out"}  # fmt: skip
    if named:
        yield "by_name", named
    yield "operands", layout


def _one_by_one(arguments: Sequence[Any]) -> Iterator[Any]:
    """Arguments with lists of tensors taken apart: torch.export has ``einsum(equation, [a, b])``."""
    for argument in arguments:
        if isinstance(argument, list | tuple) and any(isinstance(item, fx.Node) for item in argument):
            yield from argument
        else:
            yield argument


def _called(node: fx.Node) -> str:
    """How the user's code calls an op: ``fill_diagonal_``, ``erfc`` also of torch.special; the op's own name for an
    operator."""
    call = node.meta.get("amptune_call")
    name = str(getattr(call.function, "__name__", "")).removeprefix("special_") if call else ""
    return call.op if call and (not name.strip("_") or name.startswith("_")) else name


def _counted(node: fx.Node) -> int:
    """How many integers from 0 a tensor holds, or the tensors do that it joins, as the axes of a grid; 0 for others."""
    for step in walk(node):
        if step.meta.get("amptune_op") in _JOINS:
            parts = [_counted(each) for each in _one_by_one(step.args) if isinstance(each, fx.Node)]
            return max(parts, default=0) if all(parts) else 0
    return _integers(root(node))


def _integers(node: fx.Node) -> int:
    """How many integers from 0 a tensor counts or is drawn from; 0 for other tensors."""
    op, value = node.meta.get("amptune_op"), node.meta.get("val")
    if op == "arange" and isinstance(value, torch.Tensor):
        return value.numel()
    numbers = [each for each in node.args if isinstance(each, int)]
    return max(numbers[:2], default=0) if op == "randint" else 0


def _filled_like(node: fx.Node) -> str:
    """The op that made a tensor out of one number in the dtype of another tensor; empty for other tensors."""
    while op_named(op := str(node.meta.get("amptune_op"))).family is Family.VIEW and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return op if op in ("full", "full_like", "new_full") else ""


def _is_given_integers(node: fx.Node) -> bool:
    """Whether a tensor of the batch holds integers, as timesteps and positions."""
    value = node.meta.get("val")
    return node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dtype in INTEGERS


_JOINS = ("stack", "cat", "meshgrid", "broadcast_tensors")


def _is_test(node: fx.Node) -> bool:
    """Whether a tensor says yes or no of each place, before any cast: a mask."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


def _fused_inside(covered: Sequence[fx.Node]) -> Iterator[tuple[str, Any]]:
    """Whether nn.MultiheadAttention calls scaled_dot_product_attention, and with what: as a node where the graph has
    its inside, else by the argument that asks for no weights."""
    for node in covered:
        op = str(node.meta.get("amptune_op"))
        if op == "scaled_dot_product_attention":
            yield "fused", True
            yield "masked", mask_of(node) is not None
            yield "is_causal", bool(node.kwargs.get("is_causal", node.args[5] if len(node.args) > 5 else False))
        elif op == "multi_head_attention" and node.kwargs.get("need_weights") is False:
            padding, causal = node.kwargs.get("key_padding_mask"), bool(node.kwargs.get("is_causal"))
            yield "fused", True
            yield "masked", padding is not None or (node.kwargs.get("attn_mask") is not None and not causal)
            yield "is_causal", causal and padding is None


def _is_strided(value: Any) -> bool:
    """Whether neighbours in the last dimension lie apart in memory."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.stride(-1) != 1

"""What rules need of the fx nodes beyond the PrecisionGraph: order of operands, explicit casts, memory layout.

Adds to ``Site.attrs`` the keys ``operands``, ``operand_params``, ``in_place``, ``casts``, ``param_casts``, ``like``,
``masked``, ``mask_strided``, ``viewed``, ``copied``, ``channels_last``, ``integers``, ``bounds``, ``batch``, ``views``,
``narrowed``, ``random`` and ``later_sources`` that the class describes, and empties a ``dtype`` that is another
tensor's. A site whose nodes do not line up with its inputs is left as it is.
"""

from __future__ import annotations

import dataclasses
import linecache
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from amptune.analyze.constants import NodeBounds
from amptune.analyze.views import counted_views
from amptune.core.autocast import UNKNOWN
from amptune.core.graph import INPUT, PrecisionGraph, Site
from amptune.core.ops import Family, op_named

_TRANSPARENT = (Family.VIEW, Family.CAST)
_REVERSED = frozenset({"rsub", "rtruediv", "rdiv", "rpow", "rfloordiv", "rmod", "rmatmul"})
_ORDERED_OPS = ("masked_select", "index")
_ORDERED = (Family.POINTWISE, Family.SENSITIVE, Family.REDUCTION, Family.SOFTMAX, Family.GEMM)
_NAMED_CASTS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16", "double": "float64"}
_LITERAL = re.compile(
    r"\.(float|half|bfloat16|double)\(\)|torch\.(float32|float16|bfloat16|float64|float|half|double)\b"
)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_LAID_OUT = ("conv2d", "conv_transpose2d", "batch_norm", "group_norm")


def enrich(graph: PrecisionGraph, module: fx.GraphModule) -> None:
    """Add the keys to all sites of ``graph``, in place, from the nodes that they cover."""
    nodes = {node.name: node for node in module.graph.nodes}
    owners = {name: site.id for site in graph for name in site.nodes}
    bounds = NodeBounds(module, owners)
    seen: set[str] = set()
    for site in list(graph):
        calls = _calls([nodes[name] for name in site.nodes if name in nodes])
        covered = calls[0] if calls else []
        read = _read(covered)
        outside = [node for node in read if not _is_own(node, site)]
        if not covered or len(outside) != len(site.inputs):
            continue
        added = dict(_facts(site, covered, outside, owners)) | dict(_origins(site, calls, outside, owners, bounds))
        if casts := _param_casts(site, read):
            added["param_casts"] = casts
        viewed, elements = counted_views((step for node in outside for step in _walk(node)), seen)
        if viewed:
            added["viewed"] = viewed
        if elements:
            added["copied"] = elements
        if added:
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, **added}))


def _calls(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """The nodes of the site, call by call."""
    calls: dict[Any, list[fx.Node]] = {}
    for node in nodes:
        calls.setdefault(_call_key(node), []).append(node)
    return list(calls.values())


def _origins(
    site: Site, calls: Sequence[Sequence[fx.Node]], outside: Sequence[fx.Node], owners: Mapping[str, str],
    bounds: NodeBounds,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """What is known of inputs that no site makes, and where those of later calls come from."""
    known = {index: found for index, node in enumerate(outside) if (found := bounds.of(node)) is not None}
    if known:
        yield "bounds", {index: (found.low, found.high) for index, found in known.items()}
    batch = {index: str(root.target) for index, node in enumerate(outside) if (root := _root(node)).op == "placeholder"}
    if batch:
        yield "batch", batch
    views = {index: seen for index, node in enumerate(outside) if any(seen := _views(node))}
    if views:
        yield "views", views
    narrowed = {index: dtype for index, node in enumerate(outside) if (dtype := _narrowed(node))}
    if narrowed:
        yield "narrowed", narrowed
    if any(bounds.is_random(node) for node in outside):
        yield "random", True
    later = []
    for covered in calls[1:]:
        read = [node for node in _read(covered) if not _is_own(node, site)]
        if len(read) == len(outside):
            later.append(tuple(_owner(node, owners) for node in read))
    if any(sources != site.sources for sources in later):
        yield "later_sources", tuple(dict.fromkeys(later))


_CUTS = frozenset({"slice", "select", "split", "chunk", "narrow", "unbind", "diagonal", "as_strided", "getitem"})


def _views(node: fx.Node) -> tuple[str, str]:
    """The views between a tensor and what made it, as text: those that pick some of its numbers, and all of them."""
    cuts, every = [], []
    for step in _walk(node):
        op = str(step.meta.get("amptune_op"))
        if _family(step) is Family.VIEW and op not in ("detach", "alias"):
            text = f"{op}{step.args[1:]}{dict(step.kwargs)}"
            every.append(text)
            if op in _CUTS:
                cuts.append(text)
    return " ".join(cuts), " ".join(every)


def _narrowed(node: fx.Node) -> str:
    """The 8-bit format that the user's code casts a tensor to on the way, also where it is cast back."""
    for step in _walk(node):
        value = step.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in _FP8:
            return str(value.dtype).removeprefix("torch.")
    return ""


def _owner(node: fx.Node, owners: Mapping[str, str]) -> str:
    root = _root(node)
    return INPUT if root.op == "placeholder" else owners.get(root.name, str(root.meta.get("amptune_stored") or ""))


def _call_key(node: fx.Node) -> Any:
    call = node.meta.get("amptune_call")
    if call is None:
        return None
    return ("leaf", call.leaf.number) if call.leaf else ("call", call.number)


def _read(covered: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that the call reads from outside, parameters included, in order."""
    own = set(covered)
    return list(dict.fromkeys(argument for node in covered for argument in node.all_input_nodes if argument not in own))


def _param_casts(site: Site, read: Sequence[fx.Node]) -> dict[str, str]:
    """Name -> dtype of the parameters that the user's code casts before the op reads them."""
    names = {param.name for param in site.params}
    found = {}
    for node in read:
        stored = _root(node).meta.get("amptune_stored")
        if stored in names and (dtype := _explicit_cast(node)) is not None:
            found[str(stored)] = dtype
    return found


def _is_own(node: fx.Node, site: Site) -> bool:
    stored = _root(node).meta.get("amptune_stored")
    if stored is None:
        return False
    if stored in {param.name for param in site.params}:
        return True
    return site.is_module and str(stored).startswith(f"{site.module}.")


def _walk(node: fx.Node) -> Iterator[fx.Node]:
    """The node and those that it is a view or a cast of."""
    yield node
    while _family(node) in _TRANSPARENT and node.all_input_nodes:
        node = node.all_input_nodes[0]
        yield node


def _root(node: fx.Node) -> fx.Node:
    *_, last = _walk(node)
    return last


def _family(node: fx.Node) -> Family | None:
    op = node.meta.get("amptune_op")
    if op == "getitem":
        return Family.VIEW
    return op_named(str(op)).family if op else None


def _facts(
    site: Site, covered: Sequence[fx.Node], outside: Sequence[fx.Node], owners: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    positions = {node: index for index, node in enumerate(outside)}
    if not site.is_module and (op_named(site.op).family in _ORDERED or site.op in _ORDERED_OPS):
        yield from _operands(site, covered, positions)
    if not site.is_module and _is_in_place(covered[0]):
        yield "in_place", True
    if not site.is_module and site.attrs.get("dtype") and not _LITERAL.search(_source(covered[0])):
        yield "dtype", UNKNOWN
    casts = {index: dtype for node, index in positions.items() if (dtype := _explicit_cast(node)) is not None}
    if casts:
        yield "casts", casts
    like = {index: owners.get(name, "") for node, index in positions.items() if (name := _template(node)) is not None}
    if like:
        yield "like", like
    if site.op == "scaled_dot_product_attention":
        mask = covered[0].kwargs.get("attn_mask", covered[0].args[3] if len(covered[0].args) > 3 else None)
        yield "masked", isinstance(mask, fx.Node)
        if isinstance(mask, fx.Node) and _is_strided(mask.meta.get("val")):
            yield "mask_strided", True
    integers = {index: _count(_root(node)) for node, index in positions.items() if _is_arange(_root(node))}
    if integers:
        yield "integers", integers
    if site.op in _LAID_OUT and outside:
        layout = _is_channels_last(outside[0].meta.get("val"))
        if layout is not None:
            yield "channels_last", layout


def _operands(site: Site, covered: Sequence[fx.Node], positions: Mapping[fx.Node, int]) -> Iterator[tuple[str, Any]]:
    """Positions in ``inputs`` of the positional arguments; turned round for ``1 - x`` and the like."""
    node = covered[0]
    is_reversed = _spelling(node) in _REVERSED
    scalars = dict(site.attrs.get("scalars") or {})
    if len(covered) > 1 and not (is_reversed and len(positions) == len(scalars) == 1):
        return  # a call that torch.export took apart, as it does 1 / x
    layout = [positions.get(argument) if isinstance(argument, fx.Node) else None for argument in node.args]
    if len(layout) == 1 and 1 in scalars:
        layout.append(None)  # the number was given by name, or stands in a later node
    stored = {
        place: str(name)
        for place, argument in enumerate(node.args)
        if isinstance(argument, fx.Node) and layout[place] is None
        if (name := _root(argument).meta.get("amptune_stored"))
    }
    if is_reversed and len(layout) == 2:
        layout.reverse()
        stored = {1 - place: name for place, name in stored.items()}
        yield "scalars", {1 - place: value for place, value in scalars.items()}
    if stored:
        yield "operand_params", stored
    yield "operands", layout


def _is_in_place(node: fx.Node) -> bool:
    """Whether the call writes its first argument: ``x += y``, ``x.add_(y)``, ``x[i] = y``."""
    call = node.meta.get("amptune_call")
    name = str(getattr(call.function, "__name__", "")) if call else ""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _spelling(node: fx.Node) -> str:
    call = node.meta.get("amptune_call")
    target = call.function if call and call.function else node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.split(".")[0].strip("_")


def _explicit_cast(node: fx.Node) -> str | None:
    """The dtype that the user's code casts the tensor to on the way; ``None`` where it casts nothing.

    ``x.to(y.dtype)`` follows ``y`` under autocast, and shows here as a cast to what ``y`` was in the capture: its dtype
    is unknown, an empty string. So is that of ``torch.zeros(n, dtype=y.dtype)``.
    """
    for step in _walk(node):
        op = str(step.meta.get("amptune_op"))
        if op in _NAMED_CASTS:
            return _NAMED_CASTS[op]
        value = step.meta.get("val")
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            continue
        if op == "type_as":
            return UNKNOWN
        if _family(step) in (Family.CAST, Family.CREATE, Family.RANDOM) and _names_dtype(step):
            return str(value.dtype).removeprefix("torch.") if _LITERAL.search(_source(step)) else UNKNOWN
    return None


def _names_dtype(node: fx.Node) -> bool:
    """Whether a cast or creation is given a dtype, rather than a device alone."""
    call = node.meta.get("amptune_call")
    return call is not None and call.attrs.get("dtype") is not None


def _template(node: fx.Node) -> str | None:
    """The name of the node that ``zeros_like(y)`` and its kin take their dtype from."""
    root = _root(node)
    op = str(root.meta.get("amptune_op"))
    follows = op.endswith("_like") or op.startswith("new_")
    if follows and root.all_input_nodes and not any(isinstance(v, torch.dtype) for v in root.kwargs.values()):
        return str(_root(root.all_input_nodes[0]).name)
    return None


def _source(node: fx.Node) -> str:
    """The text of the call that a node stands for."""
    place = getattr(node.meta.get("amptune_call"), "place", None)
    spot = getattr(place, "origin", None)
    if spot is None:
        return ""
    lines = [linecache.getline(spot.filename, number) for number in range(spot.line, spot.end_line + 1)]
    if not lines:
        return ""
    lines[-1] = lines[-1].encode()[: spot.end_column].decode(errors="ignore")
    lines[0] = lines[0].encode()[spot.column :].decode(errors="ignore")
    text = "".join(lines)
    # Of a chain such as a.float().mean() only the last call is this node's.
    return text[text.rfind(".to(") :] if ".to(" in text else text


def _is_arange(node: fx.Node) -> bool:
    return node.meta.get("amptune_op") == "arange"


def _count(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0


def _is_strided(value: Any) -> bool:
    """Whether neighbours in the last dimension lie apart in memory."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.stride(-1) != 1


def _is_channels_last(value: Any) -> bool | None:
    """Whether an image is laid out so; ``None`` where its strides fit both layouts."""
    if not isinstance(value, torch.Tensor) or value.dim() != 4:
        return None
    last = value.is_contiguous(memory_format=torch.channels_last)
    first = value.is_contiguous()
    return None if last and first else last

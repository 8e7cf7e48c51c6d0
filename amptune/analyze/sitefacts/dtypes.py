"""The dtype in which a tensor reaches a site, where the user's code says so: casts, named dtypes, dtypes of others."""

from __future__ import annotations

import ast
import functools
import linecache
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx

from amptune.capture.dtypereads import STORED
from amptune.capture.flow import picked
from amptune.core.autocast import UNKNOWN
from amptune.core.bounds.narrowing import NARROW, PLACES
from amptune.core.graph import INPUT
from amptune.core.ops import Family, op_named

_TRANSPARENT = (Family.VIEW, Family.CAST)
_NAMED_CASTS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16", "double": "float64"}
REVERSED = frozenset({"rsub", "rtruediv", "rdiv", "rpow", "rfloordiv", "rmod", "rmatmul"})
"""Operators that have their operands the other way round."""
LITERAL = re.compile(
    r"\.(float|half|bfloat16|double)\(\)|torch\.(float32|float16|bfloat16|float64|float|half|double)\b"
)


class Like(NamedTuple):
    """A site, or INPUT, whose dtype another tensor has."""

    site: str


class FollowedDtypes:
    """Casts and named dtypes on the way to a site, those that follow another tensor (``x.to(y.dtype)``) included.

    Args:
        nodes: all nodes of the captured graph.
        owners: name of a node -> id of the site that covers it.
    """

    def __init__(self, nodes: Iterable[fx.Node], owners: Mapping[str, str]) -> None:
        self._owners = owners
        self._made: dict[int, fx.Node] = {}
        for node in nodes:
            call = node.meta.get("amptune_call")
            if call is not None:
                self._made[call.number] = node

    def of_inputs(self, positions: Mapping[fx.Node, int]) -> Iterator[tuple[str, Any]]:
        """``casts`` and ``like`` of the inputs of a site."""
        casts: dict[int, str] = {}
        like: dict[int, str] = {}
        for node, index in positions.items():
            dtype, followed = self._of(node)
            if followed is not None:
                like[index] = followed
            elif dtype is not None:
                casts[index] = dtype
            elif (base := template(node)) is not None:
                known = self._of_template(base)
                if isinstance(known, Like):
                    like[index] = known.site
                else:
                    casts[index] = known
        if casts or like:
            yield "casts", casts  # in place of those that the capture saw, where every dtype is what it was in FP32
        if like:
            yield "like", like

    def named(self, node: fx.Node) -> tuple[str | None, str | None]:
        """The dtype that a tensor is cast to, and the site or INPUT whose dtype it follows; ``None`` for each."""
        return self._of(node)

    def of_stored(self, node: fx.Node) -> str | None:
        """The dtype that a parameter is cast to on the way; ``None`` where it stays what it is stored in."""
        dtype, followed = self._of(node)
        return None if followed == INPUT else UNKNOWN if followed is not None else dtype

    def _of(self, node: fx.Node, depth: int = 0) -> tuple[str | None, str | None]:
        """The dtype that a tensor is cast to, and the site or INPUT whose dtype it follows; ``None`` for each."""
        dtype = explicit_cast(node)
        step = next((each for each in _walk(node) if _follows(each)), None) if dtype == UNKNOWN else None
        if step is not None and step.meta.get("amptune_op") == "type_as" and depth <= _DEPTH:
            return self._like(step.all_input_nodes[-1], depth)
        number = step.meta["amptune_call"].dtype_of if step is not None else None
        if number is None:
            return dtype, None
        if number == STORED:
            return None, INPUT
        made = self._made.get(number)
        if made is None or depth > _DEPTH:
            return dtype, None
        return self._like(made, depth)

    def _like(self, node: fx.Node, depth: int) -> tuple[str | None, str | None]:
        """The dtype that a tensor has by a cast, and the site or INPUT that it has its dtype of."""
        inner, followed = self._of(node, depth + 1)
        if inner is not None or followed is not None:
            return inner, followed
        return None, self._owners.get(root(node).name, INPUT)

    def _of_template(self, node: fx.Node) -> str | Like:
        """What ``zeros_like`` and its kin take their dtype from: a site, INPUT, or a tensor whose dtype is known."""
        dtype, followed = self._of(node)
        if followed is not None:
            return Like(followed)
        if dtype is not None:
            return dtype
        base = root(node)
        if base.name in self._owners:
            return Like(self._owners[base.name])
        if base.op == "placeholder" or base.meta.get("amptune_stored") is not None:
            return Like(INPUT)
        if (inner := template(base)) is not None:
            return self._of_template(inner)
        value = base.meta.get("val")
        return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else UNKNOWN


_DEPTH = 8


def walk(node: fx.Node) -> Iterator[fx.Node]:
    """The node and those that it is a view or a cast of."""
    yield node
    while family(node) in _TRANSPARENT and node.all_input_nodes:
        node = next(iter(picked(node)), node.all_input_nodes[0])
        yield node


def passed(node: fx.Node) -> tuple[str, ...]:
    """The dtypes that change numbers in which a tensor is on its way from what made it, in order; PLACES for indices
    that come beside numbers."""
    *steps, made = walk(node)
    values = made.meta.get("val")
    several = isinstance(values, tuple | list)
    current = values[0] if isinstance(values, tuple | list) and values else values
    found: list[str] = []
    for step in reversed(steps):
        value = step.meta.get("val")
        if not isinstance(value, torch.Tensor) or not isinstance(current, torch.Tensor):
            continue
        name = str(value.dtype).removeprefix("torch.")
        if several and not found and current.is_floating_point() and not value.is_floating_point():
            found.append(PLACES)
        elif value.dtype != current.dtype and name in NARROW and not _holds_all(value.dtype, current.dtype):
            found.append(name)
        several, current = several and isinstance(value, tuple | list), value
    return tuple(found)


def _holds_all(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype has all numbers of another one."""
    if dtype.itemsize == 1 and dtype.is_floating_point:
        return False
    if other.itemsize == 1 and other.is_floating_point:
        return dtype.is_floating_point
    if dtype.is_floating_point and dtype.itemsize == 2 and not other.is_floating_point:
        return other == torch.bool
    return torch.promote_types(dtype, other) == dtype


def spelling(node: fx.Node) -> str:
    """How the user's code calls an op: ``rsub`` for ``1 - x``."""
    call = node.meta.get("amptune_call")
    target = call.function if call and call.function else node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.split(".")[0].strip("_")


def root(node: fx.Node) -> fx.Node:
    """What a node is a view or a cast of."""
    *_, last = walk(node)
    return last


def _walk(node: fx.Node) -> Iterator[fx.Node]:
    """As :func:`walk`, and through ``y.exponential_()``, which keeps the dtype of y."""
    for step in walk(node):
        yield step
    if _fills(step):
        yield from _walk(step.all_input_nodes[0])


def _fills(node: fx.Node) -> bool:
    """Whether a node writes random numbers over a tensor."""
    return family(node) is Family.RANDOM and is_in_place(node) and bool(node.all_input_nodes)


def is_in_place(node: fx.Node) -> bool:
    """Whether the call writes its first argument: ``x += y``, ``x.add_(y)``, ``x[i] = y``."""
    call = node.meta.get("amptune_call")
    name = str(getattr(call.function, "__name__", "")) if call else ""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
    return name.endswith("_")


def _made_or_cast(node: fx.Node) -> bool:
    """Whether the user's call makes or casts a tensor; export shows ``torch.tensor([])`` as a view of a constant."""
    call = node.meta.get("amptune_call")
    families = {family(node), op_named(call.op).family if call is not None else None}
    return not families.isdisjoint((Family.CAST, Family.CREATE, Family.RANDOM))


def family(node: fx.Node) -> Family | None:
    """The family of a node's op; ``None`` for a node without one."""
    op = node.meta.get("amptune_op")
    if op == "getitem":
        return Family.VIEW
    return op_named(str(op)).family if op else None


def explicit_cast(node: fx.Node) -> str | None:
    """The dtype that the user's code casts the tensor to on the way; ``None`` where it casts nothing.

    ``x.to(y.dtype)`` follows ``y`` under autocast, and shows here as a cast to what ``y`` was in the capture: its dtype
    is unknown, an empty string. So is that of ``torch.zeros(n, dtype=y.dtype)``.
    """
    for step in _walk(node):
        op = str(step.meta.get("amptune_op"))
        if op in _NAMED_CASTS:
            return _NAMED_CASTS[op]
        value = step.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex() and family(step) is Family.CAST:
            return str(value.dtype).removeprefix("torch.")
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            continue
        if op == "type_as":
            return UNKNOWN
        if _made_or_cast(step) and _names_dtype(step):
            return str(value.dtype).removeprefix("torch.") if names_literal(step) else UNKNOWN
    return None


def names_literal(node: fx.Node) -> bool:
    """Whether a call names the dtype itself: ``torch.bfloat16``, or what the top of its file calls so, as
    ``HALF = torch.bfloat16``, rather than the dtype of another tensor."""
    text = source(node)
    if LITERAL.search(text):
        return True
    place = getattr(node.meta.get("amptune_call"), "place", None)
    spot = getattr(place, "origin", None)
    if spot is None:
        return False
    return not _constants("".join(linecache.getlines(spot.filename))).isdisjoint(_BARE.findall(text))


_BARE = re.compile(r"(?<![.\w])[A-Za-z_]\w*")


@functools.lru_cache(maxsize=64)
def _constants(source: str) -> frozenset[str]:
    """Names that a file binds once, at its top level, to a dtype of torch."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return frozenset()
    bound = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    named = {
        target.id
        for statement in tree.body
        if isinstance(statement, ast.Assign) and LITERAL.fullmatch(ast.unparse(statement.value))
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return frozenset(name for name in named if bound.count(name) == 1)


def _follows(node: fx.Node) -> bool:
    return _names_dtype(node) or node.meta.get("amptune_op") == "type_as"


def _names_dtype(node: fx.Node) -> bool:
    """Whether a cast or creation is given a dtype, rather than a device alone."""
    call = node.meta.get("amptune_call")
    return call is not None and call.attrs.get("dtype") is not None


def template(node: fx.Node) -> fx.Node | None:
    """The node that ``zeros_like(y)`` and its kin take their dtype from."""
    *_, base = _walk(node)
    op = str(base.meta.get("amptune_op"))
    follows = op.endswith("_like") or op.startswith("new_")
    if follows and base.all_input_nodes and not any(isinstance(v, torch.dtype) for v in base.kwargs.values()):
        return base.all_input_nodes[0]
    return None


def source(node: fx.Node) -> str:
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

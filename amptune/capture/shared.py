"""Which tensors of a captured graph share memory, and what was written into one of them through another.

A write covers what it was called on: the tensor that it writes comes from the writer from there on. Whatever shares
memory with that, as the whole of which it is a part, holds numbers of the writer beside those that it had.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable, Iterator

import torch
from torch import fx

from amptune.core.ops import Family, op_named

UNSEEN = ""
"""Stands for the writer that is no site: random numbers that fill a tensor, arithmetic on integers."""
_MAY_SHARE = frozenset({"getitem", "contiguous", "unfold", "alias", "view_as_complex"})
_MAY_COPY = frozenset({"contiguous", "reshape", "flatten", "unflatten"})
"""Ops that give a view of a tensor whose numbers lie in their order, and else, perhaps, a copy."""
_REPEATABLE = frozenset({"copy", "fill", "zeros", "masked_fill", "clamp", "relu"})
"""Writes that may come to one place twice: the second time changes nothing, or gives one of the numbers again."""
_PARTS = frozenset({"split", "chunk", "unbind"})
_REARRANGES = frozenset({"view", "transpose", "permute", "t", "movedim", "squeeze", "unsqueeze", "detach", "alias"})
"""Views that hold all numbers of their tensor, each once, and never are a copy."""


@dataclasses.dataclass(frozen=True)
class _Write:
    writer: str
    parts: frozenset[tuple[fx.Node, int]]
    is_whole: bool


@dataclasses.dataclass
class _Memory:
    """What one storage holds: the node that made it, and what was written into it, in order."""

    made: fx.Node
    writes: list[_Write] = dataclasses.field(default_factory=list)


class SharedMemory:
    """Follows writes from node to node, in the order of the graph."""

    def __init__(self) -> None:
        self._memory: dict[fx.Node, _Memory] = {}
        self._seen: dict[fx.Node, int] = {}
        self._mixed: dict[fx.Node, tuple[str, ...]] = {}
        self._parts: dict[fx.Node, frozenset[tuple[fx.Node, int]]] = {}
        self._plain: dict[fx.Node, bool] = {}
        self._certain: dict[fx.Node, bool] = {}

    def made(self, node: fx.Node, *, is_site: bool, whole: Iterable[fx.Node] = ()) -> None:
        """A node comes next.

        Args:
            node: which.
            is_site: whether it is part of a site, whose operands are told what is written into them.
            whole: of a node that picks one of several results the tensor that this one is a view of.
        """
        base = next(iter(whole), None) or _shares_with(node)
        if base is None or base not in self._memory:
            read = [each for each in node.all_input_nodes if each in self._memory]
            self._memory[node], self._parts[node], self._plain[node] = _Memory(node), frozenset(), True
            self._certain[node] = True
            self._mixed[node] = tuple(dict.fromkeys(name for each in read for name in self.mixed(each)))
            self._seen[node] = 0
        else:
            self._memory[node] = self._memory[base]
            self._parts[node] = self._parts[base] | _picked_part(node)
            self._plain[node] = self._plain[base] and _op(node) in _REARRANGES
            self._certain[node] = self._certain[base] and not _may_copy(node, base)
            self._mixed[node], self._seen[node] = self._mixed[base], self._seen[base]
            if _op(node) == "as_strided":
                self._mixed[node], self._seen[node], self._parts[node] = (), 0, frozenset()
        if is_site:
            self._mixed[node], self._seen[node] = (), len(self._memory[node].writes)

    def maker(self, node: fx.Node) -> fx.Node:
        """What made the memory that a tensor lies in: ``as_strided`` sees all of it, whatever it is called on."""
        return self._memory[node].made

    def written(self, tensor: fx.Node, writer: fx.Node, name: str) -> None:
        """A node has written into the tensor of another; ``name`` is the site that it belongs to, or UNSEEN."""
        if _takes_other_memory(writer):
            self._moved(tensor, writer, name)
            return
        memory = self._memory[tensor]
        name = UNSEEN if _op(writer) not in _REPEATABLE and _overlaps_itself(tensor) else name
        is_whole = self._plain[tensor] and name != UNSEEN and 0 < _numel(memory.made) == _numel(tensor)
        memory.writes.append(_Write(name, self._parts[tensor], is_whole))
        for node in (tensor, writer):
            self._memory[node], self._parts[node] = memory, self._parts[tensor]
            self._plain[node], self._seen[node] = self._plain[tensor], len(memory.writes)
            self._certain[node] = self._certain[tensor]
            self._mixed[node] = () if name != UNSEEN else (UNSEEN,)

    def _moved(self, tensor: fx.Node, writer: fx.Node, name: str) -> None:
        """A tensor lies in the memory of another one from here on; its views stay where it was."""
        given = [each for each in writer.all_input_nodes if each is not tensor and each in self._memory]
        source = given[0] if given else None
        memory = _Memory(writer) if source is None else self._memory[source]
        parts, plain = (frozenset[tuple[fx.Node, int]](), True) if source is None else (
            self._parts[source], self._plain[source])  # fmt: skip
        for node in (tensor, writer):
            self._memory[node], self._parts[node], self._plain[node] = memory, parts, plain
            self._certain[node] = source is None or self._certain[source]
            self._seen[node], self._mixed[node] = len(memory.writes), () if name != UNSEEN else (UNSEEN,)

    def mixed(self, node: fx.Node) -> tuple[str, ...]:
        """Sites whose results are in parts of a tensor beside what made it, as far as the graph was followed."""
        return tuple(dict.fromkeys((*self._mixed[node], *(each.writer for each in self._since(node)))))

    def is_overwritten(self, node: fx.Node) -> bool:
        """Whether nothing is left in a tensor of what made it, though that is another tensor's writer."""
        return self._certain[node] and any(each.is_whole for each in self._since(node))

    def _since(self, node: fx.Node) -> list[_Write]:
        later = [each for each in self._memory[node].writes[self._seen[node] :] if not self._is_apart(node, each)]
        whole = [place for place, each in enumerate(later) if each.is_whole and self._certain[node]]
        return later[whole[-1] :] if whole else later

    def _is_apart(self, node: fx.Node, write: _Write) -> bool:
        """Whether a tensor and what was written are two parts of one split."""
        picked = dict(self._parts[node])
        return any(picked.get(whole, place) != place for whole, place in write.parts)


def _takes_other_memory(node: fx.Node) -> bool:
    """Whether a node that writes a tensor makes it look elsewhere: ``x.set_(y)`` and ``x.data = y``."""
    call = node.meta.get("amptune_call")
    names = (getattr(each, "__name__", "") for each in (getattr(call, "function", None), node.target))
    return any(str(name).partition(".")[0] in ("set_", "__set__") for name in names)


def changes_numbers(node: fx.Node) -> bool:
    """Whether a node that writes changes numbers, rather than the shape or the flags of a tensor: ``t_``, ``detach_``,
    but not ``x.data = y``."""
    call = node.meta.get("amptune_call")
    sets_data = getattr(getattr(call, "function", None), "__name__", "") == "__set__"
    return sets_data or op_named(_op(node)).family is not Family.VIEW


def _shares_with(node: fx.Node) -> fx.Node | None:
    """What a node may be a view of."""
    base = next(iter(node.all_input_nodes), None)
    op = _op(node)
    if base is None or (_takes_one_of_several(node) and _op(base) not in _PARTS):
        return None
    if op == "einsum":
        return base if _is_view_by_letters(node) else None
    family = op_named(op).family
    if family is Family.CAST:
        return base if _dtype(base) == _dtype(node) else None  # else it is a copy
    return base if family is Family.VIEW or op in _MAY_SHARE else None


def _may_copy(node: fx.Node, base: fx.Node) -> bool:
    """Whether what may be a view may as well be a copy: of numbers that do not lie in their order, or by a cast."""
    if op_named(_op(node)).family is Family.CAST or _op(node) == "unfold":
        return True
    return _op(node) in _MAY_COPY and not all(each.is_contiguous() for each in _tensors(base))


def _overlaps_itself(node: fx.Node) -> bool:
    """Whether two numbers of a tensor may lie in one place, as in windows of ``unfold``."""
    for each in _tensors(node):
        reach = 0
        for stride, extent in sorted(zip(each.stride(), each.shape, strict=True)):
            if extent > 1:
                if stride <= reach:
                    return True
                reach += stride * (extent - 1)
    return False


def _is_view_by_letters(node: fx.Node) -> bool:
    """Whether an einsum turns one operand round or takes its diagonal, as ``ii->i``, and adds up nothing."""
    operands: list[fx.Node] = []
    fx.node.map_arg(node.args, operands.append)
    if len(operands) != 1 or not isinstance(node.args[0], str):
        return len(operands) == 1
    before, arrow, after = node.args[0].replace(" ", "").replace(".", "").partition("->")
    return set(before) <= set(after) if arrow else len(set(before)) == len(before)


def _takes_one_of_several(node: fx.Node) -> bool:
    base = next(iter(node.all_input_nodes), None)
    return node.target is operator.getitem and base is not None and isinstance(base.meta.get("val"), tuple | list)


def _picked_part(node: fx.Node) -> frozenset[tuple[fx.Node, int]]:
    if not _takes_one_of_several(node) or not isinstance(place := node.args[1], int):
        return frozenset()
    return frozenset({(node.all_input_nodes[0], place)})


def _op(node: fx.Node) -> str:
    return str(node.meta.get("amptune_op") or "")


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    value = node.meta.get("val")
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, torch.Tensor):
            yield each


def _numel(node: fx.Node) -> int:
    found = list(_tensors(node))
    return found[0].numel() if len(found) == 1 else -1


def _dtype(node: fx.Node) -> torch.dtype | None:
    return next((each.dtype for each in _tensors(node)), None)

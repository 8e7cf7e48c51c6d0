"""Tensors that a forward makes and then writes into, as masks whose rows are closed one by one: all writes once more.

``mask = torch.ones(...); mask[:, 0] = False; mask &= kept`` is the same numbers for every reader that comes after the
last write. What is read between two writes is left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.calling import call_on
from amptune.analyze.sitefacts.dtypes import root
from amptune.core.ops import Family, op_named

_WRITES = frozenset({"index_put", "copy", "fill", "zero", "masked_fill", "bitwise", "index_fill", "scatter"})
"""Ops that put numbers in place of others, beside arithmetic in place."""
_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "maximum", "minimum", "clamp", "logical_and", "logical_or"})
_MADE = (Family.CREATE, Family.POINTWISE, Family.MEMORY)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The views of a tensor and the writes into it, in order."""

    steps: tuple[fx.Node, ...]
    given: tuple[fx.Node, ...]
    """What the steps read beside the tensor itself."""


class Rewritten:
    """The tensors of a graph that the forward writes into, and whose readers all come after the last write."""

    def __init__(self, graph: fx.Graph) -> None:
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._parts: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            writes = node.meta.get("amptune_writes", ())
            for base in {_base(each) for each in writes} or {_base(node)}:
                self._parts.setdefault(base, []).append(node)
        self._known: dict[fx.Node, _Steps | None] = {}

    def whole(self, write: fx.Node) -> fx.Node | None:
        """The tensor that a write gives back as a whole, where all writes into it can be made again."""
        base = write
        while (before := _given_back(base)) is not None:
            base = before
        return base if base is not write and self.given(base) is not None else None

    def given(self, base: fx.Node) -> tuple[fx.Node, ...] | None:
        """What the writes into a tensor read; ``None`` where they cannot be made again, or are read in between."""
        found = self._of(base)
        return found.given if found is not None else None

    def made(self, base: fx.Node, value: torch.Tensor, known: Callable[[fx.Node], Any]) -> torch.Tensor | None:
        """A tensor after all writes.

        Args:
            base: the node that made it, and ``value`` what it made: nothing is written into that.
            known: the value of each node that :meth:`given` names.
        """
        found = self._of(base)
        if found is None:
            return None
        values: dict[fx.Node, Any] = {each: known(each) for each in found.given}
        values[base] = own = value.clone()
        with torch._C.DisableTorchFunction(), torch.no_grad(), torch.device("cpu"):
            for step in found.steps:
                try:
                    values[step] = call_on(step, values.__getitem__)
                except Exception:  # an argument that only the capture could resolve
                    return None
        return own

    def _of(self, base: fx.Node) -> _Steps | None:
        if base not in self._known:
            self._known[base] = self._found(base)
        return self._known[base]

    def _found(self, base: fx.Node) -> _Steps | None:
        parts = [each for each in self._parts.get(base, []) if each is not base]
        writes = [each for each in parts if "amptune_writes" in each.meta]
        if base.op not in ("call_function", "call_method") or not writes or not all(map(_is_plain, writes)):
            return None
        if op_named(str(base.meta.get("amptune_op") or "")).family not in _MADE:
            return None
        own, last = {base, *parts}, max(self._place[each] for each in writes)
        if any(self._place[use] < last for each in own for use in each.users if use not in own):
            return None
        steps = [each for each in parts if self._place[each] <= last]
        if any(_may_copy(each, {base, *steps}) for each in steps):
            return None
        given = [each for step in steps for each in step.all_input_nodes if each not in own]
        return _Steps(tuple(steps), tuple(dict.fromkeys(given)))


def _given_back(write: fx.Node) -> fx.Node | None:
    """The tensor that a write gives back, as ``x.mul_(2)`` does; ``None`` for other nodes."""
    first = write.args[0] if write.args else None
    is_own = isinstance(first, fx.Node) and tuple(write.meta.get("amptune_writes", ())) == (first,)
    return first if isinstance(first, fx.Node) and is_own else None


def _base(node: fx.Node) -> fx.Node:
    """What a node is a view of, under any name that writes into that gave it."""
    made = root(node)
    while (before := _given_back(made)) is not None:
        made = root(before)
    return made


def _may_copy(step: fx.Node, steps: set[fx.Node]) -> bool:
    """Whether a view that stands before the last write is read after it: a copy would not have what comes later."""
    return "amptune_writes" not in step.meta and any(use not in steps for use in step.users)


def _is_plain(write: fx.Node) -> bool:
    op = str(write.meta.get("amptune_op") or "")
    return write.op in ("call_function", "call_method") and (op in _WRITES or op in _ARITHMETIC)

"""Tensors that a forward works out from constants alone, computed once more with real numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.calling import call_on
from amptune.analyze.sitefacts.rewritten import Rewritten
from amptune.core.ops import Family, op_named

LARGEST = 1 << 20
"""Elements up to which a constant is worked out: tables of numbers that someone wrote, not data."""
_FAMILIES = (
    Family.POINTWISE, Family.SENSITIVE, Family.REDUCTION, Family.VIEW, Family.CAST, Family.MEMORY, Family.CREATE,
    Family.GEMM, Family.CONV, Family.POOL,
)  # fmt: skip
_REARRANGED = ("getitem", "pixel_shuffle")
_UNWRITTEN = ("empty", "empty_like", "new_empty", "dropout", "alpha_dropout", "feature_dropout")
"""Ops whose numbers nobody chose."""
_LIKE = {"ones_like": 1, "zeros_like": 0, "new_ones": 1, "new_zeros": 0}
"""Ops that read the shape of a tensor and none of its numbers -> what they fill theirs with."""


class Folded:
    """The numbers of nodes of a graph that depend on no input, no parameter and no random number.

    Args:
        stored: the real tensor that a ``get_attr`` node or a placeholder reads; ``None`` for what is no constant.
        is_fixed: whether nothing in the forward writes to what a node made.
        rewritten: the tensors that the forward writes into, where those are to be worked out too.
    """

    def __init__(
        self,
        stored: Callable[[fx.Node], torch.Tensor | None],
        is_fixed: Callable[[fx.Node], bool],
        rewritten: Rewritten | None = None,
    ) -> None:
        self._stored = stored
        self._is_fixed = is_fixed
        self._rewritten = rewritten
        self._known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> torch.Tensor | None:
        """The real tensor of a node; ``None`` where it is not constant, large, or cannot be worked out."""
        found = self._value(node)
        return found if isinstance(found, torch.Tensor) else None

    def _value(self, node: fx.Node) -> Any:
        for step in self._unknown_before(node):
            self._known[step] = self._worked_out(step)
        return self._known[node]

    def _unknown_before(self, node: fx.Node) -> list[fx.Node]:
        """The node and all that it depends on, dependencies first, without what is known already."""
        order: dict[fx.Node, None] = {}
        waiting: list[tuple[fx.Node, bool]] = [(node, False)]
        while waiting:
            current, expanded = waiting.pop()
            if current in order or current in self._known:
                continue
            if expanded:
                order[current] = None
                continue
            waiting.append((current, True))
            waiting += [(each, False) for each in (*current.all_input_nodes, *self._read_by_writes(current))]
        return list(order)

    def _read_by_writes(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What is written into a tensor, where all of that is made again."""
        given = self._rewritten.given(node) if self._rewritten is not None and not self._is_fixed(node) else None
        return given or ()

    def _worked_out(self, node: fx.Node) -> Any:
        if node.op in ("get_attr", "placeholder"):
            value = self._stored(node)
            return value if value is not None and value.numel() <= LARGEST else None
        op = str(node.meta.get("amptune_op") or "")
        plain = op in _REARRANGED or (op_named(op).family in _FAMILIES and op not in _UNWRITTEN)
        if node.op not in ("call_function", "call_method") or not plain or _numel(node) > LARGEST:
            return None
        if op in _LIKE and self._is_fixed(node):
            return self._filled(node, _LIKE[op])
        if "amptune_writes" in node.meta:
            base = self._rewritten.whole(node) if self._rewritten is not None else None
            return self._known[base] if base is not None else None
        if not self._is_fixed(node):
            return self._written_again(node, op)
        return self._called(node)

    def _written_again(self, node: fx.Node, op: str) -> torch.Tensor | None:
        """A tensor with all that the forward writes into it."""
        given = self._rewritten.given(node) if self._rewritten is not None else None
        if self._rewritten is None or given is None or any(self._known.get(each) is None for each in given):
            return None
        made = self._filled(node, _LIKE[op]) if op in _LIKE else self._called(node)
        return self._rewritten.made(node, made, self._known.__getitem__) if isinstance(made, torch.Tensor) else None

    def _filled(self, node: fx.Node, number: int) -> torch.Tensor | None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return torch.full(tuple(value.shape), number, dtype=value.dtype)

    def _called(self, node: fx.Node) -> Any:
        if any(self._known[each] is None for each in node.all_input_nodes):
            return None
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad(), torch.device("cpu"):
                return call_on(node, self._known.__getitem__, left_out=("device",))
        except Exception:  # an argument that only the capture could resolve: the number stays unknown
            return None


def _numel(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return sum(each.numel() for each in values if isinstance(each, torch.Tensor))

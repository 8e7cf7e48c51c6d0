"""Numbers of a captured graph that are zero whatever the weights are: by constants, and by zeros of the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.calling import call_on
from amptune.analyze.sitefacts.closedrows import seen_as, view_of
from amptune.analyze.sitefacts.dtypes import REVERSED, root, spelling
from amptune.analyze.sitefacts.folding import LARGEST, Folded
from amptune.core.ops import Family, op_named

_DEPTH = 24
_KEEP = frozenset(
    {"neg", "abs", "square", "sin", "tan", "tanh", "asin", "atan", "log1p", "expm1", "clone", "contiguous"}
)
"""Ops that give zero for zero and let its gradient through, as relu does not."""
_ADD_UP = frozenset({"sum", "mean"})
_SPECTRA = frozenset({"fft", "ifft", "rfft", "irfft"})
"""Transforms along one axis."""
_POOLS = frozenset({"avg_pool1d", "avg_pool2d", "avg_pool3d"})
_PRODUCTS = frozenset({"matmul", "mm", "bmm"})


class Zeros:
    """Where the numbers of nodes are zero for certain.

    Args:
        folded: the nodes that constants and the batch alone decide.
    """

    def __init__(self, folded: Folded) -> None:
        self._folded = folded
        self._known: dict[fx.Node, torch.Tensor | None] = {}

    def count(self, node: Any) -> int:
        """How many numbers of a node are zero; those of a row that is zero as a whole count once."""
        places = self._read(node, _DEPTH) if isinstance(node, fx.Node) else None
        return int(places.sum()) if places is not None else 0

    def of(self, node: fx.Node, depth: int = _DEPTH) -> torch.Tensor | None:
        """Truth values that broadcast to the shape of a node; ``None`` where none is known to be zero."""
        if node not in self._known:
            value = node.meta.get("val")
            is_plain = (
                depth > 0 and isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
            )
            found = self._found(node, depth - 1) if is_plain else None
            self._known[node] = found if found is not None and bool(found.any()) else None
        return self._known[node]

    def _found(self, node: fx.Node, depth: int) -> torch.Tensor | None:
        value = self._folded.of(node)
        if value is not None:
            return value == 0
        op = str(node.meta.get("amptune_op") or "")
        operands = [each for each in node.args if isinstance(each, fx.Node)]
        if not operands or "amptune_writes" in node.meta:
            return None
        if op == "mul":
            return _either([self._read(each, depth) for each in operands])
        if op == "add" and len(operands) == 2:
            return _both([self._read(each, depth) for each in operands])
        if op == "sub" and len(operands) == 2 and not node.kwargs:
            return _either([_met_with_itself(*operands), _both([self._read(each, depth) for each in operands])])
        family = op_named(op).family
        if op in _KEEP or family is Family.CAST or (op == "div" and spelling(node) not in REVERSED):
            return self.of(operands[0], depth)
        if (op == "clamp" and _has_zero(node)) or (op == "pow" and _raises(node)):
            return self.of(operands[0], depth)
        if op in _ADD_UP:
            return self._of_sum(node, self.of(operands[0], depth))
        if spelling(node).removeprefix("fft_") in _SPECTRA:
            return _of_spectrum(node, self.of(operands[0], depth))
        if op in _POOLS:
            return _of_windows(node, self.of(operands[0], depth))
        if op in _PRODUCTS:
            places = self.of(operands[0], depth)
            rows = places is not None and places.dim() > 1 and places.shape[-1] > 0
            return places.all(-1, keepdim=True) if places is not None and rows else None
        if len(node.all_input_nodes) == 1 and family is Family.VIEW and op != "getitem":
            return seen_as(node, self.of(operands[0], depth))
        return None

    def _read(self, node: fx.Node, depth: int) -> torch.Tensor | None:
        """The same of an operand, which may be integers or truth values, as a mask is."""
        value = self._folded.of(node)
        return value == 0 if value is not None else self.of(node, depth)

    def _of_sum(self, node: fx.Node, places: torch.Tensor | None) -> torch.Tensor | None:
        """Where all terms of a sum are zero."""
        shape = tuple(node.args[0].meta["val"].shape) if isinstance(node.args[0], fx.Node) else ()
        if places is None or math.prod(shape) > LARGEST:
            return None
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        full = places.expand(shape)
        if dims is None:
            return full.all()
        for dim in sorted((each % len(shape) for each in ([dims] if isinstance(dims, int) else dims)), reverse=True):
            full = full.all(dim, keepdim=bool(keeps))
        return full


def _has_zero(node: fx.Node) -> bool:
    """Whether a clamp leaves zero as it is; at its very ends too, where the gradient still goes through."""
    low, high = (
        node.args[at] if len(node.args) > at else node.kwargs.get(name) for at, name in ((1, "min"), (2, "max"))
    )
    is_below = low is None or (isinstance(low, int | float) and low <= 0)
    return is_below and (high is None or (isinstance(high, int | float) and high >= 0))


def _raises(node: fx.Node) -> bool:
    """Whether a power is of its first operand, with a literal exponent above zero."""
    exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    return spelling(node) not in REVERSED and isinstance(exponent, int | float) and exponent > 0


def _of_spectrum(node: fx.Node, places: torch.Tensor | None) -> torch.Tensor | None:
    """Where a line that is transformed is zero throughout."""
    given, dim = (
        node.all_input_nodes[0].meta.get("val"),
        node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", -1),
    )
    if places is None or not isinstance(given, torch.Tensor) or not isinstance(dim, int):
        return None
    if math.prod(given.shape) > LARGEST:
        return None
    return places.expand(tuple(given.shape)).all(dim, keepdim=True)


def _of_windows(node: fx.Node, places: torch.Tensor | None) -> torch.Tensor | None:
    """Where all that a window of an average holds is zero."""
    given = node.all_input_nodes[0].meta.get("val")
    if places is None or not isinstance(given, torch.Tensor) or math.prod(given.shape) > LARGEST:
        return None
    left = (~places).expand(tuple(given.shape)).float()
    try:
        return torch.eq(call_on(node, lambda _: left), 0)
    except (RuntimeError, TypeError):  # a window that only the capture could resolve: the places stay unknown
        return None


def _met_with_itself(left: fx.Node, right: fx.Node) -> torch.Tensor | None:
    """Where two views of one tensor have the same number of it, as ``x[:, None] - x[None]`` has on its diagonal."""
    made = root(left)
    value = made.meta.get("val")
    if made is not root(right) or not isinstance(value, torch.Tensor) or not 0 < value.numel() <= LARGEST:
        return None
    numbers = torch.arange(value.numel()).view(value.shape)
    ours, theirs = (_seen(each, made, numbers) for each in (left, right))
    if ours is None or theirs is None or math.prod(torch.broadcast_shapes(ours.shape, theirs.shape)) > LARGEST:
        return None
    return ours == theirs


def _seen(node: fx.Node, made: fx.Node, numbers: torch.Tensor) -> torch.Tensor | None:
    """The places of a tensor that a view of it shows; ``None`` where that cannot be told."""
    if node is made:
        return numbers
    if len(node.all_input_nodes) != 1 or op_named(str(node.meta.get("amptune_op") or "")).family is not Family.VIEW:
        return None
    before = _seen(node.all_input_nodes[0], made, numbers)
    return view_of(node, before) if before is not None else None


def _either(places: list[torch.Tensor | None]) -> torch.Tensor | None:
    known = [each for each in places if each is not None]
    found = known[0] if known else None
    for each in known[1:]:
        found = found | each if found is not None else each
    return found


def _both(places: list[torch.Tensor | None]) -> torch.Tensor | None:
    left, right = places
    return left & right if left is not None and right is not None else None

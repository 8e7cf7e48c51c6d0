"""Products of zero and infinity: ``mask * float("-inf")`` is NaN wherever the mask is zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from amptune.analyze.sitefacts.closedrows import Closed
from amptune.analyze.sitefacts.dtypes import root, walk
from amptune.analyze.sitefacts.folding import Folded

UNTOLD = -1
"""In place of how many: the mask is worked out from what layers give, and is zero where its test fails."""
_DEPTH = 8
_CHOOSES = frozenset({"where", "masked_fill", "nan_to_num"})


_FILLS = frozenset({"masked_fill", "where", "full", "full_like", "new_full", "triu", "tril"})
"""Ops that infinities are written by, rather than come of: what comes of a division is told there."""


def zeros_times_infinity(node: fx.Node, folded: Folded) -> int:
    """How many numbers of a product are zero times infinity, by constants and the batch alone; :data:`UNTOLD` where one
    factor is infinite and the other is a test of what is not known; 0 for any other node."""
    factors = [each for each in node.args if isinstance(each, int | float | fx.Node)]
    if node.meta.get("amptune_op") != "mul" or len(factors) != 2 or len(node.args) != 2:
        return 0
    left, right = (_value(each, folded) for each in factors)
    written = [each for each, own in zip((left, right), factors, strict=True) if _is_written(own)]
    if not any(each is not None and bool(each.isinf().any()) for each in written) or _is_chosen_from(node):
        return 0
    if left is not None and right is not None:
        return int(((left * right).isnan() & ~left.isnan() & ~right.isnan()).sum())
    known, other = (right, factors[0]) if left is None else (left, factors[1])
    is_infinite = known is not None and bool(known.isinf().all())
    return UNTOLD if is_infinite and isinstance(other, fx.Node) and _is_test(other) else 0


def zeros_times_closed(node: fx.Node, folded: Folded, closed: Closed) -> int:
    """How many zeros of one factor, by constants and the batch alone, meet -inf of the other, which a mask closes in
    part whatever the layers give."""
    factors = [each for each in node.args if isinstance(each, fx.Node)]
    if node.meta.get("amptune_op") != "mul" or len(factors) != 2 or len(node.args) != 2 or _is_chosen_from(node):
        return 0
    for known, other in (factors, factors[::-1]):
        value = _value(known, folded)
        places = closed.of(other) if value is not None and folded.of(other) is None else None
        if value is not None and places is not None:
            return int((places & (value == 0)).sum())
    return 0


def _value(factor: Any, folded: Folded) -> torch.Tensor | None:
    found = folded.of(factor) if isinstance(factor, fx.Node) else torch.tensor(float(factor))
    return found if found is not None and not found.is_complex() else None


def _is_written(factor: Any) -> bool:
    """Whether a factor is a literal, a stored tensor, or one that numbers were filled into."""
    made = root(factor) if isinstance(factor, fx.Node) else None
    return made is None or made.op == "get_attr" or str(made.meta.get("amptune_op")) in _FILLS


def _is_chosen_from(node: fx.Node) -> bool:
    """Whether what reads a product chooses among its numbers, so that those that are NaN may be left out."""
    return any(str(use.meta.get("amptune_op")) in _CHOOSES for use in node.users)


def _is_test(node: fx.Node) -> bool:
    """Whether a tensor of numbers is yes or no of each place: a comparison, cast or not, or one less it."""
    for _ in range(_DEPTH):
        for step in walk(node):
            value = step.meta.get("val")
            if isinstance(value, torch.Tensor) and value.dtype is torch.bool:
                return True
        numbers = [abs(each) for each in step.args if isinstance(each, int | float)]
        if step.meta.get("amptune_op") != "sub" or len(step.all_input_nodes) != 1 or numbers != [1]:
            return False
        node = step.all_input_nodes[0]
    return False

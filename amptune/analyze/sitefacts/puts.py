"""What ops that write numbers over parts of a tensor leave in it: those that stay, and those that are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from amptune.analyze.sitefacts.dtypes import walk
from amptune.capture.names import spelling_of

_VALUES: Mapping[str, int] = {
    "setitem": 2, "copy": 1, "fill": 1, "index_put": 2, "index_fill": 3, "index_copy": 3, "slice_scatter": 1,
    "select_scatter": 1, "diagonal_scatter": 1, "fill_diagonal": 1, "zero": 0, "set": 1,
}  # fmt: skip
"""Spelling, without underscores -> which argument holds what is written."""
_NAMES = ("value", "values", "source", "src", "other", "fill_value")
_WHOLE = frozenset({"copy", "fill", "zero", "set"})
"""Spellings that leave nothing of what was there."""


def puts(
    covered: Sequence[fx.Node], positions: Mapping[fx.Node, int]
) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """What a result is made of: inputs, by their positions, and literals; ``None`` where the op writes otherwise.

    Args:
        covered: the nodes of one call; torch.export has ``x[0] = y`` as a view and a copy into that.
        positions: node outside of the call -> index among the inputs of the site.
    """
    writers = [node for node in covered if _spelling(node) in _VALUES and node.args]
    if len(writers) != 1 or _is_added(writer := writers[0]):
        return None
    base, value = writer.args[0], _value(writer)
    stays = () if _spelling(writer) in _WHOLE and base in positions else _place(base, positions)
    put = _place(value, positions) if isinstance(value, fx.Node) else ()
    if stays is None or put is None or not isinstance(value, fx.Node | int | float):
        return None
    return (*stays, *put), () if isinstance(value, fx.Node) else (float(value),)


def _place(value: Any, positions: Mapping[fx.Node, int]) -> tuple[int, ...] | None:
    """The input that a tensor is a view or a cast of; ``None`` for what is none."""
    if not isinstance(value, fx.Node):
        return None
    for step in walk(value):
        if step in positions:
            return (positions[step],)
    return _place(step.args[0], positions) if _spelling(step) == "lift_fresh_copy" else None  # of a literal


def _value(node: fx.Node) -> Any:
    place = _VALUES[_spelling(node)]
    if not place:
        return 0
    if place < len(node.args):
        return node.args[place]
    return next((node.kwargs[name] for name in _NAMES if name in node.kwargs), None)


def _is_added(node: fx.Node) -> bool:
    """Whether the numbers are added to those that are there."""
    accumulates = node.args[3:4] if _spelling(node) == "index_put" else ()
    return bool(node.kwargs.get("accumulate", accumulates and accumulates[0]))


def _spelling(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else spelling_of(node.target) if callable(node.target) else ""
    return target.strip("_")

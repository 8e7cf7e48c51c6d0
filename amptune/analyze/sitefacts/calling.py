"""Calling what a node of a captured graph calls, on other values than those of the capture."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import fx


def call_on(node: fx.Node, value_of: Callable[[fx.Node], Any], left_out: Collection[str] = ()) -> Any:
    """What a ``call_function`` or ``call_method`` node gives where the nodes that it reads have other values.

    Args:
        node: what is called.
        value_of: the value of each node among its arguments.
        left_out: keyword arguments that the call does without.

    Raises:
        Exception: whatever the call raises on these values.
    """
    args = fx.node.map_arg(node.args, value_of)
    kwargs = fx.node.map_arg({name: each for name, each in node.kwargs.items() if name not in left_out}, value_of)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]

"""Keyword arguments of calls, also those that reach a call through ``**`` of a dict in the same file."""

from __future__ import annotations

import ast
import dataclasses

from amptune.lint.source import SourceFile


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """One keyword argument. ``node`` is where it is written, ``in_call`` whether that is in the call itself."""

    name: str
    value: ast.expr
    node: ast.AST
    in_call: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Arguments:
    """Keyword arguments of a call by name. ``complete`` is False when others may come from what cannot be seen."""

    items: dict[str, Argument]
    complete: bool

    def get(self, name: str) -> Argument | None:
        """The argument, if it is written."""
        return self.items.get(name)


def keyword_arguments(source: SourceFile, call: ast.Call) -> Arguments:
    """The keyword arguments of a call; later ones win, as they do for a dict."""
    items: dict[str, Argument] = {}
    complete = True
    for keyword in call.keywords:
        if keyword.arg is not None:
            items[keyword.arg] = Argument(keyword.arg, keyword.value, keyword)
            continue
        held = dict_items(source, keyword.value)
        if held is None:
            complete = False
            continue
        items |= {name: Argument(name, value, node, in_call=False) for name, (node, value) in held.items()}
    return Arguments(items, complete)


def dict_items(source: SourceFile, node: ast.expr) -> dict[str, tuple[ast.expr, ast.expr]] | None:
    """Keys of the one dict that the expression is, each with its key node and value; None when it is not known.

    ``{"a": 1}`` and ``dict(a=1)``. For the latter the value stands for the key node.
    """
    leaves = source.values(node)
    if len(leaves) != 1:
        return None
    leaf = leaves[0]
    if isinstance(leaf, ast.Dict):
        size = len(leaf.keys)
    elif is_dict_call(source, leaf):
        assert isinstance(leaf, ast.Call)
        size = len(leaf.keywords)
    else:
        return None
    found = known_items(leaf)
    return {name: (key, value) for name, key, value in found} if len(found) == size else None


def is_dict_call(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is ``dict(a=1, ...)``."""
    return isinstance(node, ast.Call) and not node.args and source.qualified(node.func) == ("dict",)


def known_items(node: ast.expr) -> list[tuple[str, ast.expr, ast.expr]]:
    """Name, key node and value of the entries of a dict literal, or of dict(), that have constant names."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return [
            (key.value, key, value)
            for key, value in pairs
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        ]
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return [(keyword.arg, keyword.value, keyword.value) for keyword in keywords if keyword.arg is not None]

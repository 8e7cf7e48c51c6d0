"""The ways to a piece of code: which autocast regions it is entered through, and from which functions."""

from __future__ import annotations

import ast

from amptune.lint.index import FunctionNode
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._reach import callers

_Entries = tuple[FunctionNode | None, ...]


class _Known:
    """What is known of one file's functions."""

    def __init__(self, source: SourceFile) -> None:
        self.ways: dict[FunctionNode, tuple[Region | None, ...]] = {}
        self.entries: dict[FunctionNode, _Entries] = {}


def autocast_ways(source: SourceFile, node: ast.AST) -> tuple[Region | None, ...]:
    """The innermost autocast region on each way to the node, each once; None for a way that begins outside of any.

    As ``_reach.regions_reaching``, at any depth and worked out once for each function.
    """
    own = source.autocast(node)
    function = source.function_of(node)
    if own is not None or function is None:
        return (own,)
    return _function_ways(source, function)


def _function_ways(source: SourceFile, function: FunctionNode) -> tuple[Region | None, ...]:
    known = source.shared(_Known).ways
    if function not in known:
        known[function] = ()  # a function that calls itself has no other ways for it
        calls = callers(source, function)
        found = [region for call in calls for region in autocast_ways(source, call)]
        known[function] = tuple(dict.fromkeys(found)) or (None,)
    return known[function]


def entries(source: SourceFile, function: FunctionNode | None) -> _Entries:
    """The functions through which a file's code is entered on the way to this one: those that nobody there calls.

    None stands for module level.
    """
    if function is None:
        return (None,)
    known = source.shared(_Known).entries
    if function not in known:
        known[function] = ()
        outer = [source.function_of(call) for call in callers(source, function)]
        found = [entry for caller in outer for entry in entries(source, caller)]
        known[function] = tuple(dict.fromkeys(found)) or (function,)
    return known[function]

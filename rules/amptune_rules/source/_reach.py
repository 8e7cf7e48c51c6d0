"""Which autocast regions a piece of code runs in, and what its names are, also through callers in the same file."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.index import FUNCTIONS, FunctionNode
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile

_DEPTH = 4


def callers(source: SourceFile, function: FunctionNode) -> list[ast.Call]:
    """Calls that run the function, in its own file: by name, as a method, ``module(x)`` for ``forward``."""
    return source.shared(_calls_by_function).get(function, [])


def _calls_by_function(source: SourceFile) -> dict[FunctionNode, list[ast.Call]]:
    table: dict[FunctionNode, list[ast.Call]] = {}
    for call in source.nodes(ast.Call):
        target = callee(source, call)
        if target is not None:
            table.setdefault(target, []).append(call)
    return table


def callee(source: SourceFile, call: ast.Call) -> FunctionNode | None:
    """The function of this file that the call runs: ``__init__`` for a class, ``forward`` for an object of one."""
    func = call.func
    if not isinstance(func, ast.Name | ast.Attribute) or source.names.is_foreign(func):
        return None
    bindings = source.bindings(func)
    if len(bindings) == 1 and isinstance(bindings[0].node, ast.ClassDef):
        return source.names.method_of(func, "__init__")
    return source.definition(func) or source.names.method_of(func, "forward")


def regions_reaching(source: SourceFile, node: ast.AST) -> Iterator[Region | None]:
    """The innermost autocast region on each way to the node; None for a way that begins outside of any.

    A region of the node's own function hides those of its callers. A function that nobody in the file calls is one
    way, with None.
    """
    yield from _regions(source, node, 0, frozenset())


def _regions(source: SourceFile, node: ast.AST, depth: int, seen: frozenset[ast.AST]) -> Iterator[Region | None]:
    own = source.autocast(node)
    function = source.function_of(node)
    if own is not None or function is None or depth >= _DEPTH or function in seen:
        yield own
        return
    calls = callers(source, function)
    if not calls:
        yield None
    for call in calls:
        yield from _regions(source, call, depth + 1, seen | {function})


def values_through_callers(source: SourceFile, node: ast.expr, depth: int = 2) -> list[ast.expr]:
    """What the expression may be, as ``SourceFile.values``, with parameters followed to what callers hand over."""
    found: list[ast.expr] = []
    for leaf in source.values(node):
        handed = _handed_over(source, leaf) if depth else []
        if not handed:
            found.append(leaf)
        for value in handed:
            found += values_through_callers(source, value, depth - 1)
    return found


def _handed_over(source: SourceFile, leaf: ast.expr) -> list[ast.expr]:
    """The arguments of the file's calls for a name that is a parameter."""
    bindings = source.bindings(leaf) if isinstance(leaf, ast.Name) else []
    if len(bindings) != 1 or not isinstance(bindings[0].node, ast.arg):
        return []
    function = source.function_of(bindings[0].node)
    if function is None:
        return []
    arguments = [argument_for(source, call, function, bindings[0].name) for call in callers(source, function)]
    return [argument for argument in arguments if argument is not None]


def argument_for(source: SourceFile, call: ast.Call, function: FunctionNode, name: str) -> ast.expr | None:
    """The argument that a call of the function hands over for one of its parameters."""
    names = [item.arg for item in (*function.args.posonlyargs, *function.args.args)]
    if names and names[0] == source.scopes.self_name(function):
        names = names[1:]
    return source.argument(call, name, names.index(name) if name in names else None)


def returned(function: FunctionNode) -> list[ast.expr]:
    """What a function returns; a tuple's first item."""
    found: list[ast.expr] = []
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            first = node.value.elts[:1] if isinstance(node.value, ast.Tuple) else [node.value]
            found += first
        if not isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef, ast.expr)):
            stack.extend(ast.iter_child_nodes(node))
    return found

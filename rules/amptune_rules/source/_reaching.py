"""Which assignments of a local name reach a use of it, by the structure of the function."""

from __future__ import annotations

import ast

from amptune.lint.index import FUNCTIONS
from amptune.lint.scopes import Binding
from amptune.lint.source import SourceFile


def reaching(source: SourceFile, name: ast.Name) -> list[Binding]:
    """Bindings that the name may have at this place.

    Within a function: the last assignment on every way to the use hides those before it; those inside branches that
    end before the use are kept beside it. Assignments further down (of an earlier iteration of a loop) are left out
    when there is one above. For a name of another scope: all its bindings.
    """
    bindings = source.bindings(name)
    if len(bindings) < 2:
        return bindings
    scope = source.scopes.scope_of(name)
    if any(source.scopes.home(binding) is not scope for binding in bindings):
        return bindings
    statement = source.statement_of(name)
    chain = {statement, *source.ancestors(statement)}
    above = [binding for binding in bindings if _is_above(binding, statement, chain)]
    found: list[Binding] = []
    for binding in sorted(above, key=_position, reverse=True):
        if _excluded(source, binding, chain):
            continue
        found.append(binding)
        if binding.kind != "update" and _dominates(source, binding, chain):
            break
    return found or bindings


def _position(binding: Binding) -> tuple[int, int]:
    return (getattr(binding.node, "lineno", 0), getattr(binding.node, "col_offset", 0))


def _is_above(binding: Binding, statement: ast.stmt, chain: set[ast.AST]) -> bool:
    node = binding.node
    if isinstance(node, ast.arg):
        return True
    if node is statement:
        return binding.kind in ("loop", "with") and not isinstance(node, ast.Assign)
    if node in chain:
        return True  # the loop or with statement around the use
    return _position(binding) < (statement.lineno, statement.col_offset)


def _excluded(source: SourceFile, binding: Binding, chain: set[ast.AST]) -> bool:
    """Whether the binding stands in the other branch of an ``if`` that the use is in."""
    child: ast.AST = binding.node
    for ancestor in source.ancestors(binding.node):
        if isinstance(ancestor, ast.If) and ancestor in chain:
            mine = child in ancestor.body
            other = ancestor.orelse if mine else ancestor.body
            if (mine or child in ancestor.orelse) and any(item in chain for item in other):
                return True
        child = ancestor
    return False


def _dominates(source: SourceFile, binding: Binding, chain: set[ast.AST]) -> bool:
    """Whether every way to the use passes the binding: its block holds the use too."""
    node = binding.node
    if isinstance(node, ast.arg) or node in chain:
        return True
    statement = source.statement_of(node)
    for ancestor in source.ancestors(statement):
        if isinstance(ancestor, ast.With | ast.AsyncWith) and ancestor not in chain:
            continue  # a with block always runs
        if ancestor in chain:
            return _same_block(statement, ancestor, chain, source)
        if not isinstance(ancestor, ast.Module | ast.With | ast.AsyncWith):
            return False
    return False


def _same_block(statement: ast.stmt, ancestor: ast.AST, chain: set[ast.AST], source: SourceFile) -> bool:
    """Whether the statement, or the with block it is in, lies in the same list of statements as the use."""
    outer: ast.AST = statement
    while source.parent(outer) is not ancestor:
        parent = source.parent(outer)
        assert parent is not None
        outer = parent
    if isinstance(ancestor, (*FUNCTIONS, ast.Module, ast.ClassDef)):
        return True
    blocks = [getattr(ancestor, field, None) for field in ("body", "orelse", "finalbody")]
    return any(
        isinstance(block, list) and outer in block and any(item in chain for item in block) for block in blocks
    ) or isinstance(ancestor, ast.With | ast.AsyncWith)

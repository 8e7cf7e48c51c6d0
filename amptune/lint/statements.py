"""What a statement does besides its events: jumps, names it assigns, order of evaluation."""

from __future__ import annotations

import ast

from amptune.lint.index import FUNCTIONS, last_name
from amptune.lint.words import Words

JUMPS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_BLOCKS = (ast.stmt, ast.ExceptHandler, ast.match_case)
_COMPOUND = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def nested_statements(statement: ast.stmt) -> list[ast.AST]:
    """Statements inside a statement, nested functions and classes left out."""
    found: list[ast.AST] = []
    stack: list[ast.AST] = [statement]
    while stack:
        node = stack.pop()
        found.append(node)
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            stack.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, _BLOCKS))
    return found


def sets_flag(node: ast.AST) -> bool:
    """Whether a statement gives a name a truth value that a later test may ask for."""
    if not isinstance(node, ast.Assign):
        return False
    value = node.value
    if isinstance(value, ast.Constant):
        return value.value is None or isinstance(value.value, bool)
    return isinstance(value, ast.Call) and last_name(value.func).endswith("Scaler")


def evaluation_order(node: ast.AST) -> list[ast.AST]:
    """Children in the order Python evaluates them: the right side of an assignment first."""
    match node:
        case ast.Assign(targets=targets, value=value):
            return [value, *targets]
        case ast.AugAssign(target=target, value=value):
            return [target, value]
        case ast.AnnAssign(target=target, value=value):
            return [value, target] if value else []
    return list(ast.iter_child_nodes(node))


def target_names(target: ast.AST, words: Words) -> list[str]:
    """Texts of the names and attributes that an assignment target gives values to."""
    match target:
        case ast.Name() | ast.Attribute():
            return [] if words.is_alias(target) else [words.text(target)]
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return target_names(value, words)
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [name for item in items for name in target_names(item, words)]
    return []


def assigned_names(statement: ast.stmt, words: Words) -> list[str]:
    """Names and attributes that get new values anywhere in a statement."""
    found: list[str] = []
    for node in [statement] if not isinstance(statement, _COMPOUND) else nested_statements(statement):
        match node:
            case ast.Assign(targets=targets):
                found += [name for target in targets for name in target_names(target, words)]
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
                found += target_names(target, words)
            case ast.Delete(targets=targets):
                found += [name for target in targets for name in target_names(target, words)]
    return found

"""Numbers as they stand in source, found without following long chains of names."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from amptune.lint.source import SourceFile

_NAMES = 3
_BINDINGS = 6
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def number_of(source: SourceFile, node: ast.expr | None, names: int = _NAMES) -> float | None:
    """The constant that an expression is: literals, arithmetic of them, and names and attributes bound to them.

    As ``SourceFile.number``, for rules that ask it of every operand in a file: it gives up at the first part that is
    no number, and follows at most three names.
    """
    match node:
        case ast.Constant(value=value):
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=inner):
            found = number_of(source, inner, names)
            return found if found is None or isinstance(sign, ast.UAdd) else -found
        case ast.BinOp():
            return _binary(source, node, names)
        case ast.Call(args=[ast.Constant()]) | ast.Call(args=[ast.UnaryOp()]):
            return source.number(node) if source.qualified(node.func) in (("float",), ("int",)) else None
        case ast.Name() | ast.Attribute():
            return _named(source, node, names)
    return None


def _binary(source: SourceFile, node: ast.BinOp, names: int) -> float | None:
    left = number_of(source, node.left, names)
    right = number_of(source, node.right, names) if left is not None else None
    if left is None or right is None:
        return None
    if type(node.op) not in _BINARY:
        return source.number(node)  # powers and shifts, whose size has to be checked
    if isinstance(node.op, ast.Div) and right == 0:
        return None
    return _BINARY[type(node.op)](left, right)


def _named(source: SourceFile, node: ast.Name | ast.Attribute, names: int) -> float | None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
        return source.number(node) if source.qualified(node.value.func) == ("torch.finfo",) else None
    if any(name.startswith(("math.", "torch.", "numpy.")) for name in source.qualified(node)):
        return source.number(node)
    bindings = source.bindings(node) if names else []
    if not 0 < len(bindings) <= _BINDINGS or any(binding.kind != "assign" for binding in bindings):
        return None
    found = {number_of(source, binding.value, names - 1) for binding in bindings}
    return found.pop() if len(found) == 1 else None

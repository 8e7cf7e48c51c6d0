"""Which attribute the code assigns the result of a call to: ``self.steps = self.steps + 1``."""

from __future__ import annotations

import ast
import linecache

from torch import fx

from amptune.analyze.sitefacts.userfunctions import Function, functions_in

_KEEP = frozenset({"to", "clone", "detach", "contiguous", "type_as", "half", "bfloat16", "float"})
"""Methods that an assigned result may go through."""
_Span = tuple[int, int, int | None, int | None]


def assigned_to(node: fx.Node) -> frozenset[str]:
    """The attributes that the result of a node's call is assigned to as it is, by the source: of ``self.a.b = x + 1``
    ``b``, also by way of a local name."""
    spot = getattr(getattr(node.meta.get("amptune_call"), "place", None), "origin", None)
    if spot is None:
        return frozenset()
    source = "".join(linecache.getlines(spot.filename))
    span = (spot.line, spot.column, spot.end_line, spot.end_column)
    return frozenset(name for function in functions_in(source) for name in _attributes(function, span))


def _attributes(function: Function, span: _Span) -> list[str]:
    """Attributes that a function assigns the expression at a place to."""
    if not function.lineno <= span[0] <= (function.end_lineno or 0):
        return []
    found: list[str] = []
    locals_: set[str] = set()
    for target, value in _assignments(function):
        if _span(value) == span or (isinstance(value, ast.Name) and value.id in locals_):
            if isinstance(target, ast.Name):
                locals_.add(target.id)
            elif name := _attribute(target):
                found.append(name)
    return found


def _attribute(target: ast.expr) -> str:
    if isinstance(target, ast.Attribute) and target.attr == "data":
        target = target.value
    return target.attr if isinstance(target, ast.Attribute) else ""


def _assignments(function: Function) -> list[tuple[ast.expr, ast.expr]]:
    """Targets with what is assigned to them, in the order of the lines."""
    found: list[tuple[ast.expr, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found.append((node.target, _kept(node.value)))
        elif isinstance(node, ast.Assign):
            found += [pair for target in node.targets for pair in _paired(target, node.value)]
    return sorted(found, key=lambda each: each[1].lineno)


def _paired(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """One target and its value, or those of ``a, b = x, y``."""
    if not isinstance(target, ast.Tuple) or not isinstance(value, ast.Tuple) or len(target.elts) != len(value.elts):
        return [(target, _kept(value))]
    return [(each, _kept(own)) for each, own in zip(target.elts, value.elts, strict=True)]


def _kept(value: ast.expr) -> ast.expr:
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _KEEP:
        value = value.func.value
    return value


def _span(value: ast.expr) -> _Span:
    return value.lineno, value.col_offset, value.end_lineno, value.end_col_offset

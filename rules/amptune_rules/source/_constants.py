"""Numbers that float16 cannot hold, as they stand in source."""

from __future__ import annotations

import ast
import math

from amptune.core.formats import Format
from amptune.lint.fold import UNKNOWN
from amptune.lint.source import SourceFile
from amptune_rules.source._numbers import number_of
from amptune_rules.source._reach import argument_for, callers

FP16_MAX = Format.FP16.max  # 65504
FP16_TINY = 2.0**-24
"""The smallest positive float16, 5.96e-8; what is under half of it becomes 0."""


def number_or_default(source: SourceFile, node: ast.expr | None) -> float | None:
    """The number that an expression is; for a parameter, also one stored on self, its default.

    None when there is no such number, or a call in the file hands over another one.
    """
    found = number_of(source, node)
    if found is not None or node is None:
        return found
    for leaf in source.values(node):
        bindings = source.bindings(leaf) if isinstance(leaf, ast.Name) else []
        if len(bindings) == 1 and isinstance(bindings[0].node, ast.arg) and isinstance(bindings[0].value, ast.expr):
            return _default(source, bindings[0].node, bindings[0].value)
    return None


def overflows(source: SourceFile, node: ast.expr | None) -> float | None:
    """The finite number that an expression is, when it is too large for float16; looks into ``torch.tensor(-1e9)``."""
    if isinstance(node, ast.Call) and node.args and _makes_tensor(source, node):
        node = node.args[0]
    value = number_or_default(source, node)
    return value if value is not None and math.isfinite(value) and abs(value) > FP16_MAX else None


def shown(value: float) -> str:
    """A number as people write it: -1e9 rather than -1000000000.0."""
    return f"{value:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _makes_tensor(source: SourceFile, call: ast.Call) -> bool:
    names = ("torch.tensor", "torch.as_tensor", "torch.scalar_tensor")
    return not set(names).isdisjoint(source.qualified(call.func)) and source.argument(call, "dtype") is None


def _default(source: SourceFile, parameter: ast.arg, default: ast.expr) -> float | None:
    value = source.constant(default)
    if value is UNKNOWN or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    function = source.function_of(parameter)
    for call in callers(source, function) if function is not None else ():
        handed = argument_for(source, call, function, parameter.arg) if function is not None else None
        if handed is not None and number_of(source, handed) != value:
            return None
    return float(value)

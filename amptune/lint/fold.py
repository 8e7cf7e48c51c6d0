"""Constant folding: what value, or which torch dtypes, an expression can have."""

from __future__ import annotations

import ast
import enum
import math
import operator
from collections.abc import Callable
from typing import Any, Final

from amptune.core.formats import Format
from amptune.lint.names import Names


class Unknown(enum.Enum):
    """The answer of folding when an expression has no constant value; it is false and equals nothing else."""

    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        return False


UNKNOWN: Final = Unknown.UNKNOWN
UNKNOWN_DTYPE: Final = "?"

_DTYPES = {
    "float16": "float16", "half": "float16", "bfloat16": "bfloat16", "float32": "float32", "float": "float32",
    "float64": "float64", "double": "float64", "float8_e4m3fn": "float8_e4m3fn", "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz", "float8_e5m2fnuz": "float8_e5m2fnuz", "int8": "int8", "int16": "int16",
    "int32": "int32", "int": "int32", "int64": "int64", "long": "int64", "short": "int16", "uint8": "uint8",
    "bool": "bool", "complex64": "complex64", "complex128": "complex128",
}  # fmt: skip
_TEXT_DTYPES = {
    "fp16": "float16", "float16": "float16", "half": "float16", "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp32": "float32", "float32": "float32", "float": "float32",
}  # fmt: skip
_FINFO = {"float16": Format.FP16, "bfloat16": Format.BF16, "float32": Format.FP32}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_NAMED = {
    "math.inf": math.inf, "numpy.inf": math.inf, "torch.inf": math.inf, "math.nan": math.nan, "numpy.nan": math.nan,
    "torch.nan": math.nan, "math.pi": math.pi, "numpy.pi": math.pi, "torch.pi": math.pi, "math.e": math.e,
}  # fmt: skip
_DEPTH = 40
_MAX_EXPONENT = 1024


class Folder:
    """Folds expressions of one file."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._memo: dict[ast.expr, Any] = {}

    def constant(self, node: ast.expr | None, depth: int = 0) -> Any:
        """The value that the expression always has, or UNKNOWN. None (no expression) gives UNKNOWN as well."""
        if node is None or depth > _DEPTH:
            return UNKNOWN
        try:
            return self._fold(node, depth)
        except (ArithmeticError, TypeError, ValueError):
            return UNKNOWN

    def number(self, node: ast.expr | None) -> float | None:
        """The constant value of the expression as a float, if it is a real number (a bool is not one)."""
        value = self.constant(node)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf

    def dtypes(self, node: ast.expr | None) -> frozenset[str]:
        """The torch dtypes the expression may be, such as {"float16"}; "?" stands for one that is not known.

        Strings in the usual spellings ("fp16", "bfloat16") count, and ``None`` gives nothing.
        """
        return frozenset().union(*(self._dtype(leaf) for leaf in self._names.values(node))) if node else frozenset()

    def _dtype(self, leaf: ast.expr) -> frozenset[str]:
        if isinstance(leaf, ast.Constant):
            if leaf.value is None:
                return frozenset()
            known = _TEXT_DTYPES.get(leaf.value) if isinstance(leaf.value, str) else None
            return frozenset({known or UNKNOWN_DTYPE})
        if isinstance(leaf, ast.Call) and self._names.qualified(leaf.func) == ("getattr",):
            return self._getattr_dtype(leaf)
        found = set()
        for name in self._names.qualified(leaf):
            module, _, last = name.rpartition(".")
            found.add(_DTYPES.get(last, UNKNOWN_DTYPE) if module == "torch" else UNKNOWN_DTYPE)
        return frozenset(found or {UNKNOWN_DTYPE})

    def _getattr_dtype(self, call: ast.Call) -> frozenset[str]:
        name = self.constant(call.args[1]) if len(call.args) > 1 else UNKNOWN
        is_torch = bool(call.args) and "torch" in self._names.qualified(call.args[0])
        return frozenset({_DTYPES.get(name, UNKNOWN_DTYPE) if is_torch and isinstance(name, str) else UNKNOWN_DTYPE})

    def _fold(self, node: ast.expr, depth: int) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.UnaryOp(op=op, operand=operand):
                return _unary(op, self.constant(operand, depth + 1))
            case ast.BinOp():
                return self._binary(node, depth)
            case ast.BoolOp(op=op, values=parts):
                return self._boolean(op, parts, depth)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                a, b = self.constant(left, depth + 1), self.constant(right, depth + 1)
                known = a is not UNKNOWN and b is not UNKNOWN and type(op) in _COMPARE
                return _COMPARE[type(op)](a, b) if known else UNKNOWN
            case ast.Tuple(elts=items) | ast.List(elts=items):
                folded = tuple(self.constant(item, depth + 1) for item in items)
                return UNKNOWN if UNKNOWN in folded else folded
            case ast.Call():
                return self._call(node, depth)
            case ast.Name() | ast.Attribute() | ast.IfExp() | ast.Subscript() | ast.NamedExpr():
                return self._remembered(node, depth)
        return UNKNOWN

    def _remembered(self, node: ast.expr, depth: int) -> Any:
        if node not in self._memo:
            self._memo[node] = UNKNOWN  # what is defined by itself has no constant value
            try:
                self._memo[node] = self._followed(node, depth)
            except (ArithmeticError, TypeError, ValueError):
                return UNKNOWN
        return self._memo[node]

    def _binary(self, node: ast.BinOp, depth: int) -> Any:
        left = self.constant(node.left, depth + 1)
        if not _is_number(left):
            return UNKNOWN
        right = self.constant(node.right, depth + 1)
        if not _is_number(right):
            return UNKNOWN
        if isinstance(node.op, ast.Pow):
            return left**right if abs(right) <= _MAX_EXPONENT and abs(left) <= 1e9 else UNKNOWN
        if isinstance(node.op, ast.LShift):
            return left << right if isinstance(left, int) and isinstance(right, int) and right <= 64 else UNKNOWN
        return _BINARY[type(node.op)](left, right) if type(node.op) in _BINARY else UNKNOWN

    def _boolean(self, op: ast.boolop, parts: list[ast.expr], depth: int) -> Any:
        stop = isinstance(op, ast.Or)
        value: Any = UNKNOWN
        unknown = False
        for part in parts:
            value = self.constant(part, depth + 1)
            unknown |= value is UNKNOWN
            if value is not UNKNOWN and bool(value) is stop:
                return value  # False in an `and`, True in an `or`: the others cannot change the truth
        return UNKNOWN if unknown else value

    def _call(self, node: ast.Call, depth: int) -> Any:
        names = self._names.qualified(node.func)
        if names in (("float",), ("int",), ("bool",)) and len(node.args) == 1 and not node.keywords:
            value = self.constant(node.args[0], depth + 1)
            return {"float": float, "int": int, "bool": bool}[names[0]](value) if value is not UNKNOWN else UNKNOWN
        return self._followed(node, depth)

    def _followed(self, node: ast.expr, depth: int) -> Any:
        if isinstance(node, ast.Attribute) and (value := self._finfo(node)) is not None:
            return value
        for name in self._names.qualified(node):
            return _NAMED.get(name, UNKNOWN)
        leaves = self._names.values(node)
        if not leaves or leaves == [node]:
            return UNKNOWN
        first = self.constant(leaves[0], depth + 5)
        if first is UNKNOWN:
            return UNKNOWN
        values = (self.constant(leaf, depth + 5) for leaf in leaves[1:])
        same = all(type(value) is type(first) and value == first for value in values)
        return first if same else UNKNOWN

    def _finfo(self, node: ast.Attribute) -> float | None:
        """``torch.finfo(torch.float16).min`` and its siblings."""
        call = node.value
        if not isinstance(call, ast.Call) or not call.args or self._names.qualified(call.func) != ("torch.finfo",):
            return None
        dtypes = self.dtypes(call.args[0])
        number_format = _FINFO.get(next(iter(dtypes))) if len(dtypes) == 1 else None
        if number_format is None:
            return None
        known = {"max": number_format.max, "min": -number_format.max, "eps": number_format.epsilon,
                 "tiny": number_format.smallest_normal, "smallest_normal": number_format.smallest_normal}  # fmt: skip
        return known.get(node.attr)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unary(op: ast.unaryop, value: Any) -> Any:
    if value is UNKNOWN:
        return UNKNOWN
    if isinstance(op, ast.Not):
        return not value
    if not _is_number(value):
        return UNKNOWN
    return -value if isinstance(op, ast.USub) else +value if isinstance(op, ast.UAdd) else ~value

"""Expressions as text in the words of one function, so that the same object or condition has the same text."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping

from amptune.lint.index import FUNCTIONS, FunctionNode
from amptune.lint.names import Names
from amptune.lint.scopes import Binding, Scopes

_PURE_CALLS = frozenset({"isinstance", "hasattr", "len", "callable", "getattr", "bool", "int"})
# Methods that look a setting up by a name: ``config.get("fp16", True)``.
_LOOK_UPS = frozenset({"get", "getboolean", "getint", "has", "startswith", "endswith"})
_DEPTH = 8
_BINARY = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip
_COMPARE = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Is: "is",
    ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_OPPOSITE = {"!=": "==", "is not": "is", "not in": "in", ">=": "<", ">": "<="}


@dataclasses.dataclass(frozen=True)
class Atom:
    """A condition without and, or, not: its text, and whether the original is its negation.

    ``mentions`` are the dotted names it depends on; ``constant`` is its value when that is written in the code.
    """

    text: str
    positive: bool
    mentions: frozenset[str]
    constant: bool | None = None


class Words:
    """Gives texts inside one function, or inside one inlined call of a function.

    Args:
        scopes: bindings of the file.
        names: resolved names of the file.
        function: the function whose expressions are named; None for module level.
        mapping: texts for the parameters of an inlined call.
        suffix: makes the other local names of an inlined call differ from the caller's.
        caller: the words of the function that an inlined call is in; a function nested in that one shares its names.
    """

    def __init__(
        self,
        scopes: Scopes,
        names: Names,
        function: FunctionNode | None,
        mapping: Mapping[str, str] | None = None,
        suffix: str = "",
        caller: Words | None = None,
    ) -> None:
        self._scopes = scopes
        self._names = names
        self._function = function
        self._mapping = mapping or {}
        self._suffix = suffix
        self._caller = caller

    def text(self, node: ast.AST | None, depth: int = 0) -> str:
        """The expression in one canonical spelling; aliases such as ``scaler = self.scaler`` are written out."""
        if depth > 50:
            return "..."
        deeper = depth + 1
        match node:
            case None:
                return ""
            case ast.Name():
                return self._name(node, depth)
            case ast.Attribute(value=value, attr=attr):
                return f"{self.text(value, deeper)}.{attr}"
            case ast.Constant(value=constant):
                return repr(constant)
            case ast.Subscript(value=value, slice=item):
                return f"{self.text(value, deeper)}[{self.text(item, deeper)}]"
            case ast.Call(func=func, args=args, keywords=keywords):
                parts = [self.text(arg, deeper) for arg in args]
                parts += [f"{item.arg or '**'}={self.text(item.value, deeper)}" for item in keywords]
                return f"{self.text(func, deeper)}({', '.join(parts)})"
            case ast.BinOp(left=left, op=op, right=right):
                symbol = _BINARY.get(type(op), type(op).__name__)
                return f"({self.text(left, deeper)} {symbol} {self.text(right, deeper)})"
            case ast.Compare(left=left, ops=ops, comparators=others):
                pairs = zip(ops, others, strict=True)
                tail = "".join(f" {_COMPARE[type(op)]} {self.text(other, deeper)}" for op, other in pairs)
                return f"{self.text(left, deeper)}{tail}"
            case ast.UnaryOp(op=op, operand=operand):
                return f"{type(op).__name__}({self.text(operand, deeper)})"
            case ast.BoolOp(op=op, values=values):
                return f"{type(op).__name__}({', '.join(self.text(value, deeper) for value in values)})"
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return f"({', '.join(self.text(item, deeper) for item in items)})"
            case ast.Starred(value=value):
                return f"*{self.text(value, deeper)}"
        return ast.unparse(node)

    def _name(self, node: ast.Name, depth: int) -> str:
        bindings = self._scopes.lookup(node.id, node)
        home = self._scopes.home(bindings[0]) if bindings else None
        local = self._function is not None and home is self._function
        if local and node.id in self._mapping:
            return self._mapping[node.id]
        if depth < _DEPTH and (value := _aliased(node, bindings)):
            return self.text(value, depth + 1)
        if local and self._suffix:
            return node.id + self._suffix
        if isinstance(home, FUNCTIONS) and home is not self._function:
            outer = self._caller_of(home)
            return outer.text(node, depth + 1) if outer else f"{node.id}@{home.name}"
        return node.id

    def _caller_of(self, function: FunctionNode) -> Words | None:
        caller = self._caller
        while caller is not None and caller._function is not function:
            caller = caller._caller
        return caller

    def is_alias(self, node: ast.expr) -> bool:
        """Whether the name only stands for another name or attribute, in whose words it is written out."""
        return isinstance(node, ast.Name) and _aliased(node, self._names.bindings(node)) is not None

    def unfold(self, test: ast.expr) -> ast.expr:
        """Replace a name that is bound once to a condition by that condition.

        ``scaler`` after ``scaler = GradScaler() if amp else None`` is the condition ``amp``.
        """
        for _ in range(_DEPTH):
            value = self._sole_value(test)
            if isinstance(value, ast.Compare | ast.BoolOp | ast.Name | ast.Attribute) or (
                isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not)
            ):
                test = value
            elif isinstance(value, ast.IfExp) and _is_nothing(value.orelse) and not _is_nothing(value.body):
                test = value.test
            else:
                break
        return test

    def _sole_value(self, node: ast.expr) -> ast.expr | None:
        bindings = self._names.bindings(node)
        return bindings[0].value if len(bindings) == 1 and bindings[0].kind == "assign" else None

    def atom(self, test: ast.expr) -> Atom | None:
        """The condition as an atom; None when calls in it may answer differently each time."""
        positive = True
        while isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, positive = test.operand, not positive
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute) and test.func.attr == "is_enabled":
            test = test.func.value  # scaler.is_enabled() and a scaler that is not None guard the same things
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            return self._comparison(test, positive)
        if isinstance(test, ast.Constant):
            return Atom(repr(test.value), positive, frozenset(), bool(test.value))
        if not self._is_pure(test):
            return None
        return self._make(self.text(test), positive, test)

    def _comparison(self, test: ast.Compare, positive: bool) -> Atom | None:
        if not self._is_pure(test):
            return None
        symbol, right = _COMPARE[type(test.ops[0])], test.comparators[0]
        if symbol in _OPPOSITE:
            symbol, positive = _OPPOSITE[symbol], not positive
        if symbol in ("is", "==") and _is_nothing(right):
            return self._make(self.text(test.left), not positive, test.left)
        if symbol in ("is", "==") and isinstance(right, ast.Constant) and right.value is True:
            return self._make(self.text(test.left), positive, test.left)
        return self._make(f"{self.text(test.left)} {symbol} {self.text(right)}", positive, test)

    def _make(self, text: str, positive: bool, node: ast.expr) -> Atom:
        constant = {"None": False, "False": False, "True": True}.get(text)
        return Atom(text, positive, frozenset(self._mentions(node)), constant)

    def _mentions(self, node: ast.AST) -> list[str]:
        if isinstance(node, ast.Name | ast.Attribute):
            return [self.text(node)]
        return [name for child in ast.iter_child_nodes(node) for name in self._mentions(child)]

    def _is_pure(self, node: ast.expr) -> bool:
        for child in ast.walk(node):
            if isinstance(child, ast.Call):
                by_name = isinstance(child.func, ast.Name) and child.func.id in _PURE_CALLS
                plain_method = isinstance(child.func, ast.Attribute) and not child.args and not child.keywords
                if not by_name and not plain_method and not _is_look_up(child):
                    return False
            elif isinstance(child, ast.NamedExpr | ast.Await | ast.Yield):
                return False
        return True


def _aliased(node: ast.Name, bindings: list[Binding]) -> ast.expr | None:
    value = bindings[0].value if len(bindings) == 1 and bindings[0].kind == "assign" else None
    same = isinstance(value, ast.Name) and value.id == node.id
    return value if isinstance(value, ast.Name | ast.Attribute) and not same else None


def _is_look_up(call: ast.Call) -> bool:
    """Whether a method reads a setting, whose name is written in the call."""
    arguments = [*call.args, *(item.value for item in call.keywords)]
    named = bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    known = isinstance(call.func, ast.Attribute) and call.func.attr in _LOOK_UPS
    return known and named and all(isinstance(item, ast.Constant) for item in arguments)


def _is_nothing(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)

"""The way back from ``fp32(F.softmax)(x, -1)`` to ``F.softmax(x, -1)``, comments included."""

# ruff: noqa: N802  # leave_Call, visit_Call: libcst and ast find them by these names

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import libcst as cst

from amptune.core.opcodes import KEEP
from amptune.core.spellings import OPERATOR_FUNCTIONS, OPERATORS
from amptune.errors import InputError
from amptune.patch.merge import substituted
from amptune.patch.pins import MARK, needs_parentheses
from amptune.patch.text import parse

_COMMENT = re.compile(rf"^(.*?)(?:  )?{MARK}\b.*$")
_SPACE = cst.SimpleWhitespace(" ")
OPERATOR_MODULES = ("operator", "amptune_operator")
"""What Python's ``operator`` is called in a patched file; the second where the user has a name ``operator``."""
_SIGNS = {function: sign for sign, function in OPERATOR_FUNCTIONS.items()}
_CST_OPERATORS: dict[str, type[cst.BaseBinaryOp]] = {
    "@": cst.MatrixMultiply, "**": cst.Power, "/": cst.Divide, "*": cst.Multiply, "+": cst.Add, "-": cst.Subtract,
    "//": cst.FloorDivide, "%": cst.Modulo,
}  # fmt: skip
_AST_OPERATORS = {sign: operator for operator, (_, sign) in OPERATORS.items()}


def unpin(text: str, fp32: str, path: str) -> str:
    """``text`` with every call through the function named ``fp32`` as the user wrote it.

    Raises:
        InputError: a pinned call was edited so that its plain form would mean something else.
    """
    plain = cst.parse_module(text).visit(_Restorer(fp32)).code
    meant = _AstRestorer(fp32).visit(parse(text, path))
    if ast.dump(meant) != ast.dump(parse(plain, path)):
        raise InputError(
            f"{path}: a call of {fp32}(...) was edited so that it cannot be undone",
            hint="write the plain expression in its place, or start from the file before it was patched",
        )
    return plain


def without_mark(end: cst.TrailingWhitespace, mark: re.Pattern[str]) -> cst.TrailingWhitespace:
    """The end of a line without our comment; a comment of the user's before it stays."""
    found = mark.match(end.comment.value) if end.comment else None
    if found is None:
        return end
    if found[1]:
        return end.with_changes(comment=cst.Comment(found[1]))
    return end.with_changes(comment=None, whitespace=cst.SimpleWhitespace(end.whitespace.value[:-2]))


class _Restorer(cst.CSTTransformer):
    def __init__(self, fp32: str) -> None:
        super().__init__()
        self._fp32 = fp32

    def leave_TrailingWhitespace(
        self, original_node: cst.TrailingWhitespace, updated_node: cst.TrailingWhitespace
    ) -> cst.TrailingWhitespace:
        return without_mark(updated_node, _COMMENT)

    def leave_EmptyLine(
        self, original_node: cst.EmptyLine, updated_node: cst.EmptyLine
    ) -> cst.EmptyLine | cst.RemovalSentinel:
        found = _COMMENT.match(updated_node.comment.value) if updated_node.comment else None
        return cst.RemoveFromParent() if found and not found[1] else updated_node

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        pin = updated_node.func
        is_pin = isinstance(pin, cst.Call) and isinstance(pin.func, cst.Name) and pin.func.value == self._fp32
        if not is_pin or not isinstance(pin, cst.Call):
            return updated_node
        if not _is_plain_pin([part.keyword.value if part.keyword else None for part in pin.args]):
            return updated_node
        function: Any = pin.args[0].value
        if isinstance(function, cst.Lambda):
            given = _given([param.name.value for param in function.params.params], updated_node.args)
            return updated_node if given is None else substituted(function.body, given)
        owner = function.value if isinstance(function, cst.Attribute) else None
        if isinstance(owner, cst.Attribute) and owner.attr.value == "Tensor" and updated_node.args:
            return _as_method(updated_node, function.attr)
        is_operator = isinstance(owner, cst.Name) and owner.value in OPERATOR_MODULES and function.attr.value in _SIGNS
        if is_operator and len(updated_node.args) == 2:
            return _as_operator(updated_node, _CST_OPERATORS[_SIGNS[function.attr.value]])
        return updated_node.with_changes(func=function)


def _is_plain_pin(arguments: list[str | None]) -> bool:
    """Whether these are the arguments of a pin of ours, by their keywords: the function, and maybe ``keep``."""
    return arguments in ([None], [None, KEEP])


def _given(names: list[str], arguments: Sequence[cst.Arg]) -> dict[str, cst.BaseExpression] | None:
    """What each parameter of a merged expression stands for; None where the call is none of ours."""
    is_ours = len(names) == len(arguments) and all(
        isinstance(argument.value, (cst.Name, cst.Attribute)) and argument.keyword is None for argument in arguments
    )
    return {name: argument.value for name, argument in zip(names, arguments, strict=True)} if is_ours else None


def _as_method(call: cst.Call, name: cst.Name) -> cst.Call:
    receiver, *rest = call.args
    after_value = receiver.whitespace_after_arg
    if rest and isinstance(receiver.comma, cst.Comma):
        behind_comma = receiver.comma.whitespace_after
        at_space = isinstance(behind_comma, cst.SimpleWhitespace)
        dot = cst.Dot(cst.SimpleWhitespace("") if at_space else behind_comma, after_value)
    else:
        dot = cst.Dot(whitespace_before=after_value)
    value = receiver.value
    if needs_parentheses(value) and not value.lpar:
        value = value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return call.with_changes(func=cst.Attribute(value, name, dot=dot), args=rest)


def _as_operator(call: cst.Call, operator: type[cst.BaseBinaryOp]) -> cst.BinaryOperation:
    left, right = call.args
    before: cst.BaseParenthesizableWhitespace = _SPACE
    after: cst.BaseParenthesizableWhitespace = _SPACE
    if isinstance(left.comma, cst.Comma):
        before, after = left.comma.whitespace_before, left.comma.whitespace_after
    if isinstance(before, cst.SimpleWhitespace) and not before.value and after.deep_equals(_SPACE):
        before = _SPACE
    sign = operator(whitespace_before=before, whitespace_after=after)  # type: ignore[call-arg]
    return cst.BinaryOperation(left.value, sign, right.value, lpar=call.lpar, rpar=call.rpar)


class _AstRestorer(ast.NodeTransformer):
    """The same on the syntax tree, where no operator can bind wrongly: what the plain text has to mean."""

    def __init__(self, fp32: str) -> None:
        self._fp32 = fp32

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        pin = node.func
        if not (isinstance(pin, ast.Call) and isinstance(pin.func, ast.Name) and pin.func.id == self._fp32):
            return node
        if not _is_plain_pin([*(None for _ in pin.args), *(part.arg for part in pin.keywords)]):
            return node
        function = pin.args[0]
        if isinstance(function, ast.Lambda):
            names = [parameter.arg for parameter in function.args.args]
            if len(names) != len(node.args) or not all(isinstance(a, (ast.Name, ast.Attribute)) for a in node.args):
                return node
            return _AstSubstitution(dict(zip(names, node.args, strict=True))).visit(function.body)  # type: ignore[no-any-return]
        if not isinstance(function, ast.Attribute):
            return ast.Call(function, node.args, node.keywords)
        owner = function.value
        if isinstance(owner, ast.Attribute) and owner.attr == "Tensor" and node.args:
            return ast.Call(ast.Attribute(node.args[0], function.attr, ast.Load()), node.args[1:], node.keywords)
        is_operator = isinstance(owner, ast.Name) and owner.id in OPERATOR_MODULES and function.attr in _SIGNS
        if is_operator and len(node.args) == 2:
            return ast.BinOp(node.args[0], _AST_OPERATORS[_SIGNS[function.attr]](), node.args[1])
        return ast.Call(function, node.args, node.keywords)


class _AstSubstitution(ast.NodeTransformer):
    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self._given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._given.get(node.id, node)

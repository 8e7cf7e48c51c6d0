"""Send functional ops through a pinning function, in place: ``F.softmax(x, -1)`` -> ``fp32(F.softmax)(x, -1)``."""

# ruff: noqa: N802  # visit_If, leave_Call: libcst finds them by these names

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from amptune.core.opcodes import FunctionalOp, find_functional_ops
from amptune.core.spellings import OPERATOR_FUNCTIONS
from amptune.patch.merge import Merged, OpAt
from amptune.patch.text import split_lines

MARK = "# amptune: fp32"
_NARROW, _WIDE = 88, 120
_SPACE = cst.SimpleWhitespace(" ")
_NOTHING = cst.SimpleWhitespace("")
_LINES = (cst.SimpleStatementLine, cst.SimpleStatementSuite)
_LOOSE = (cst.BinaryOperation, cst.UnaryOperation, cst.BooleanOperation, cst.Comparison, cst.IfExp, cst.NamedExpr,
          cst.Lambda, cst.Await)  # fmt: skip
_HEADERS = (cst.If, cst.While, cst.For, cst.With)

Wrap = Callable[[FunctionalOp, cst.BaseExpression], cst.BaseExpression]
"""Puts the pinning call around the function of an op."""
Merge = Callable[[cst.BaseExpression, OpAt], tuple[Merged, cst.Call] | None]
"""The several ops of an expression with the one call that stands for it; None where they are pinned one by one."""


def rewrite_ops(
    text: str,
    reasons: Mapping[str, str | None],
    wrap: Wrap,
    merge: Merge = lambda node, op_at: None,
    *,
    torch: str = "torch",
    operator: str = "operator",
) -> tuple[cst.Module, list[str]]:
    """The module with the ops whose codes are the keys of ``reasons`` sent through a function, and the codes found.

    Every other character stays, and so does every line number.

    Args:
        text: Python source without byte order mark.
        reasons: code -> what the comment beside it says; None for no comment.
        wrap: puts the pinning call around the function of an op.
        merge: makes one pinning call of an expression of several ops.
        torch, operator: what these modules are called in the file.
    """
    rewriter = _OpRewriter(text, reasons, wrap, merge, torch, operator)
    return MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True).visit(rewriter), rewriter.done


class _OpRewriter(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(
        self, text: str, reasons: Mapping[str, str | None], wrap: Wrap, merge: Merge, torch: str, operator: str
    ) -> None:
        super().__init__()
        self.done: list[str] = []
        self._ops = {_span(op): op for op in find_functional_ops(text) if op.code in reasons and op.pinnable}
        self._reasons = reasons
        self._wrap = wrap
        self._merge = merge
        self._merged: dict[cst.CSTNode, tuple[Merged, cst.Call]] = {}
        self._tensor = cst.Attribute(cst.parse_expression(torch), cst.Name("Tensor"))
        self._operator = cst.Name(operator)
        self._lines = split_lines(text)
        self._width = min(max([_NARROW, *(len(line.rstrip()) for line in self._lines)]), _WIDE)
        # Reasons of the ops in the statement being visited, one list for each statement around it.
        self._open: list[list[str]] = [[]]

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        op = self._op_at(original_node)
        if op is None:
            return updated_node
        if op.spelling.startswith(".") and isinstance(updated_node.func, cst.Attribute):
            was = cst.ensure_type(original_node.func, cst.Attribute).value
            return self._finish(op, original_node, self._from_method(op, updated_node, updated_node.func, was))
        return self._finish(op, original_node, updated_node.with_changes(func=self._wrap(op, updated_node.func)))

    def leave_BinaryOperation(
        self, original_node: cst.BinaryOperation, updated_node: cst.BinaryOperation
    ) -> cst.BaseExpression:
        op = self._op_at(original_node)
        if op is None:
            return updated_node
        function = cst.Attribute(self._operator, cst.Name(OPERATOR_FUNCTIONS[op.spelling]))
        sign: Any = updated_node.operator
        before, after = sign.whitespace_before, sign.whitespace_after
        if _is(before, " ") and _is(after, " "):
            before = _NOTHING
        comma = cst.Comma(whitespace_before=before, whitespace_after=after)
        call = cst.Call(
            func=self._wrap(op, function),
            args=[cst.Arg(updated_node.left, comma=comma), cst.Arg(updated_node.right)],
            lpar=updated_node.lpar,
            rpar=updated_node.rpar,
        )
        return self._finish(op, original_node, call)

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, (*_LINES, *_HEADERS)):
            self._open.append([])
        if isinstance(node, (cst.Call, cst.BinaryOperation)) and not self._touches_a_word(node):
            found = self._merge(node, self._op_at)
            if found is not None:
                self._merged[node] = found
                return False
        return super().on_visit(node)

    def on_leave(self, original_node: cst.CSTNodeT, updated_node: cst.CSTNodeT) -> Any:
        if original_node in self._merged:
            return self._finish_merged(*self._merged[original_node])
        result = super().on_leave(original_node, updated_node)
        if isinstance(original_node, _LINES):
            return self._commented_line(original_node, result)
        return self._commented_header(result) if isinstance(original_node, _HEADERS) else result

    def _op_at(self, node: cst.CSTNode) -> FunctionalOp | None:
        place = self.get_metadata(PositionProvider, node)
        start, end = place.start, place.end
        return self._ops.get((start.line, start.column + 1, end.line, end.column + 1))

    def _from_method(
        self, op: FunctionalOp, call: cst.Call, method: cst.Attribute, was: cst.BaseExpression
    ) -> cst.Call:
        """``x.softmax(-1)`` as ``torch.Tensor.softmax(x, -1)``; a line break at the dot goes behind the comma."""
        value = _bare(method.value) if needs_parentheses(was) else method.value
        function = cst.Attribute(self._tensor, method.attr)
        before, after = method.dot.whitespace_before, method.dot.whitespace_after
        if call.args:
            behind_comma = _SPACE if _is(before, "") else before
            comma = cst.Comma(whitespace_after=behind_comma)
            receiver = cst.Arg(value, comma=comma, whitespace_after_arg=after)
        else:
            receiver = cst.Arg(value, whitespace_after_arg=after if _is(before, "") else before)
        return call.with_changes(func=self._wrap(op, function), args=[receiver, *map(_beside_another, call.args)])

    def _finish(self, op: FunctionalOp, original: cst.BaseExpression, call: cst.Call) -> cst.Call:
        self.done.append(op.code)
        reason = self._reasons[op.code]
        if reason is not None:
            self._open[-1].append(reason)
        if not call.lpar and self._touches_a_word(original):
            return call.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        return call

    def _finish_merged(self, function: Merged, call: cst.Call) -> cst.Call:
        self.done += [op.code for op in function.ops]
        self._open[-1] += [reason for op in function.ops if (reason := self._reasons[op.code]) is not None]
        return call

    def _touches_a_word(self, node: cst.BaseExpression) -> bool:
        """Whether a keyword stands right before the node, as in ``return(x)**2``."""
        start = self.get_metadata(PositionProvider, node).start
        before = self._lines[start.line - 1][: start.column]
        return before[-1:].isidentifier() or before[-1:].isdigit()

    def _commented_line(self, original: cst.CSTNode, node: Any) -> Any:
        """The statement with our comment at its end, or above it where the line would get too long."""
        comment = self._comment(self._open.pop())
        if not comment:
            return node
        lines = split_lines(cst.Module([]).code_for_node(node).rstrip("\r\n"))
        indent = self.get_metadata(PositionProvider, original).start.column if len(lines) == 1 else 0
        too_long = indent + len(lines[-1]) + len(comment) + 2 > self._width
        if too_long and isinstance(node, cst.SimpleStatementLine):
            return _with_line_above(node, comment)
        return node.with_changes(trailing_whitespace=with_comment(node.trailing_whitespace, comment))

    def _commented_header(self, node: Any) -> Any:
        comment = self._comment(self._open.pop())
        return _with_line_above(node, comment) if comment else node

    def _comment(self, reasons: list[str]) -> str:
        if not reasons:
            return ""
        return ", ".join([MARK, *[reason for reason in reasons if reason][:1]])


def with_comment(end: cst.TrailingWhitespace, comment: str) -> cst.TrailingWhitespace:
    """The end of a line with a comment of ours behind what stands there."""
    if end.comment is not None:
        return end.with_changes(comment=cst.Comment(f"{end.comment.value}  {comment}"))
    return end.with_changes(whitespace=cst.SimpleWhitespace(f"{end.whitespace.value}  "), comment=cst.Comment(comment))


def _with_line_above(node: Any, comment: str) -> Any:
    line = cst.EmptyLine(comment=cst.Comment(comment))
    return node.with_changes(leading_lines=[*node.leading_lines, line])


def _span(op: FunctionalOp) -> tuple[int, int, int, int]:
    return op.line, op.column, op.end_line, op.end_column


def needs_parentheses(node: cst.BaseExpression) -> bool:
    """Whether an expression has to stand in parentheses for a method to be called on it."""
    return isinstance(node, _LOOSE)


def _bare(node: cst.BaseExpression) -> cst.BaseExpression:
    """Without its one plain pair of parentheses, which an argument does not need."""
    plain = len(node.lpar) == 1 and _is(node.lpar[0].whitespace_after, "") and _is(node.rpar[0].whitespace_before, "")
    return node.with_changes(lpar=[], rpar=[]) if plain else node


def _beside_another(argument: cst.Arg) -> cst.Arg:
    """A generator that was the only argument needs parentheses when it no longer is."""
    if isinstance(argument.value, cst.GeneratorExp) and not argument.value.lpar:
        value = argument.value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        return argument.with_changes(value=value)
    return argument


def _is(space: cst.BaseParenthesizableWhitespace, text: str) -> bool:
    return isinstance(space, cst.SimpleWhitespace) and space.value == text

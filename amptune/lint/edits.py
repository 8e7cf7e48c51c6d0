"""Text edits on positions of the syntax tree: what fixes of source rules are made of."""

from __future__ import annotations

import ast
import dataclasses
import tokenize

from amptune.core.finding import Edit
from amptune.lint.source import SourceFile


def replace(source: SourceFile, node: ast.AST, text: str) -> Edit:
    """Replace a node's text. Parentheses around an expression are no part of it and stay."""
    span = source.span(node)
    return Edit(span.line, span.column, span.end_line, span.end_column, text)


def wrap(source: SourceFile, node: ast.AST, before: str, after: str) -> Edit:
    """Put text around an expression: ``wrap(source, x, "", ".float()")``. Adds parentheses where they are needed."""
    text = source.segment(node)
    if after.startswith(".") and not isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        text = f"({text})"
    return replace(source, node, f"{before}{text}{after}")


def insert(line: int, column: int, text: str) -> Edit:
    """Insert text at a place."""
    return Edit(line, column, line, column, text)


def insert_before(source: SourceFile, statement: ast.stmt, code: str) -> Edit:
    """Insert statements on lines of their own before a statement, at its indentation (decorators counted)."""
    line = min([statement.lineno, *(item.lineno for item in getattr(statement, "decorator_list", []))])
    column = source.span(statement).column
    if not _starts_line(source, line, column):
        return insert(line, column, "; ".join(code.splitlines()) + "; ")
    return insert(line, 1, _block(source, code, line, column))


def insert_after(source: SourceFile, statement: ast.stmt, code: str) -> Edit:
    """Insert statements on lines of their own after a statement, at its indentation."""
    span = source.span(statement)
    simple = not hasattr(statement, "body")
    if simple and (
        not _starts_line(source, span.line, span.column) or _more_on_line(source, span.end_line, span.end_column)
    ):
        return insert(span.end_line, span.end_column, "; " + "; ".join(code.splitlines()))
    text = _block(source, code, span.line, span.column)
    if span.end_line < len(source.lines):
        return insert(span.end_line + 1, 1, text)
    end = len(source.lines[-1]) + 1
    return insert(span.end_line, end, source.newline + text.removesuffix(source.newline))


def delete_statement(source: SourceFile, statement: ast.stmt) -> Edit:
    """Delete a statement with its line; a lone statement of a block becomes ``pass``."""
    span = source.span(statement)
    parent = source.parent(statement)
    blocks = [getattr(parent, name, None) for name in ("body", "orelse", "finalbody")]
    alone = any(isinstance(block, list) and block == [statement] for block in blocks)
    on_own_line = _starts_line(source, span.line, span.column) and not _more_on_line(
        source, span.end_line, span.end_column
    )
    if alone and not isinstance(parent, ast.Module):
        return replace(source, statement, "pass")
    if not on_own_line:
        rest = source.lines[span.end_line - 1][span.end_column - 1 :]
        skip = len(rest) - len(rest.lstrip("; ")) if rest.lstrip().startswith(";") else 0
        return Edit(span.line, span.column, span.end_line, span.end_column + skip, "")
    if span.end_line < len(source.lines):
        return Edit(span.line, 1, span.end_line + 1, 1, "")
    return Edit(span.line, 1, span.end_line, len(source.lines[-1]) + 1, "")


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One written argument of a call with the commas around it: (line, column) pairs, columns 0-based."""

    start: tuple[int, int]
    end: tuple[int, int]
    comma: tuple[int, int] | None  # end of the comma after it


def delete_argument(source: SourceFile, call: ast.Call, argument: ast.expr | str) -> Edit:
    """Delete an argument, given as its node or its keyword, with one comma.

    Raises:
        ValueError: the call has no such argument.
    """
    position = _position(call, argument)
    slots = _slots(source, call)
    slot = slots[position]
    if position + 1 < len(slots):
        return _span_edit(slot.start, slots[position + 1].start, "")
    if position:
        return _span_edit(slots[position - 1].end, slot.end, "")
    return _span_edit(slot.start, slot.comma or slot.end, "")


def add_argument(source: SourceFile, call: ast.Call, text: str, *, first: bool = False) -> Edit:
    """Add an argument: ``text`` such as ``"cuda"`` or ``enabled=False``, at the end or as the first one.

    A trailing comma and the layout of a call over several lines are kept.
    """
    slots = _slots(source, call)
    if not slots:
        span = source.span(call)
        return insert(span.end_line, span.end_column - 1, text)
    if first:
        return insert(slots[0].start[0], slots[0].start[1] + 1, f"{text}, ")
    last = slots[-1]
    if last.comma is None:
        return insert(last.end[0], last.end[1] + 1, f", {text}")
    own_line = not source.lines[last.start[0] - 1][: last.start[1]].strip()
    glue = source.newline + source.lines[last.start[0] - 1][: last.start[1]] if own_line else " "
    return insert(last.comma[0], last.comma[1] + 1, f"{glue}{text},")


def dedent_tail(source: SourceFile, block: ast.With | ast.AsyncWith, first: ast.stmt) -> Edit | None:
    """Move a statement of a ``with`` body, and all that follow it there, out of the block.

    None when it is the first of the body, or shares a line with others, or the with has several items.
    """
    if first not in block.body or first is block.body[0] or len(block.items) != 1:
        return None
    start, end = block.body[block.body.index(first) - 1].end_lineno, block.body[-1].end_lineno
    assert start is not None
    assert end is not None
    if start >= first.lineno:
        return None
    indent = source.lines[first.lineno - 1][: first.col_offset]
    target = source.lines[block.lineno - 1][: block.col_offset]
    if indent.strip() or target.strip() or not indent.startswith(target):
        return None
    inside = _string_lines(source)
    moved = [
        target + line[len(indent) :] if number not in inside and line.startswith(indent) else line
        for number, line in enumerate(source.lines[start:end], start + 1)
    ]
    return Edit(start + 1, 1, end, len(source.lines[end - 1]) + 1, source.newline.join(moved))


def _block(source: SourceFile, code: str, line: int, column: int) -> str:
    indent = source.lines[line - 1][: column - 1]
    indent = indent if not indent.strip() else " " * (column - 1)
    return "".join(f"{indent}{item}{source.newline}" if item else source.newline for item in code.splitlines())


def _starts_line(source: SourceFile, line: int, column: int) -> bool:
    return not source.lines[line - 1][: column - 1].strip()


def _more_on_line(source: SourceFile, line: int, column: int) -> bool:
    rest = source.lines[line - 1][column - 1 :].strip()
    return bool(rest) and not rest.startswith("#") and rest != ";"


def _string_lines(source: SourceFile) -> set[int]:
    """Lines that begin inside a string, whose indentation is content."""
    found: set[int] = set()
    for token in source.tokens:
        if token.type == tokenize.STRING or token.string.startswith(('"""', "'''")):
            found.update(range(token.start[0] + 1, token.end[0] + 1))
    for node in source.nodes(ast.JoinedStr):
        found.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    return found


def _position(call: ast.Call, argument: ast.expr | str) -> int:
    written: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
    written.sort(key=lambda item: (item.lineno, item.col_offset))
    for position, item in enumerate(written):
        value = item.value if isinstance(item, ast.keyword) else item
        if value is argument or (isinstance(item, ast.keyword) and item.arg == argument):
            return position
    raise ValueError(f"the call has no argument {argument!r}")


def _slots(source: SourceFile, call: ast.Call) -> list[_Slot]:
    """The written arguments of a call, found by commas at its own depth."""
    span, func_end = source.span(call), source.span(call.func)
    begin, end = (func_end.end_line, func_end.end_column - 1), (span.end_line, span.end_column - 1)
    slots: list[_Slot] = []
    depth = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None
    for token in source.tokens:
        if token.start < begin or token.end > end or token.type in _LAYOUT:
            continue
        if token.string in "([{" and token.type == tokenize.OP:
            depth += 1
            if depth == 1:
                continue
        if token.string in ")]}" and token.type == tokenize.OP:
            depth -= 1
            if depth <= 0:  # of the call itself; a ) before it closes parentheses around the callee
                depth = 0
                continue
        if depth == 1 and token.string == "," and first and last:
            slots.append(_Slot(first, last, token.end))
            first = last = None
        elif depth >= 1:
            first, last = first or token.start, token.end
    if first and last:
        slots.append(_Slot(first, last, None))
    return slots


_LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def _span_edit(start: tuple[int, int], end: tuple[int, int], text: str) -> Edit:
    return Edit(start[0], start[1] + 1, end[0], end[1] + 1, text)

"""Applies fixes to text: edits that do not overlap, missing imports, and proof that the result still parses."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from amptune.core.finding import Edit, Finding, Fix, Safety
from amptune.lint.check import TextReport
from amptune.lint.notebook import is_inside_cells, read_notebook, write_notebook
from amptune.lint.settings_file import SUFFIXES, SettingsFile
from amptune.lint.source import SourceFile

_NEWLINE = re.compile(r"\r\n|\r|\n")
_MAX_ROUNDS = 10


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made.

    Raises:
        ValueError: two edits overlap, or one lies outside of the text.
    """
    starts = [0, *(match.end() for match in _NEWLINE.finditer(text))]

    def offset(line: int, column: int) -> int:
        if not 1 <= line <= len(starts):
            raise ValueError(f"edit at line {line} of a text with {len(starts)} lines")
        return starts[line - 1] + column - 1

    spans = sorted(
        (offset(edit.line, edit.column), offset(edit.end_line, edit.end_column), edit.text) for edit in set(edits)
    )
    pieces: list[str] = []
    position = 0
    for start, end, replacement in spans:
        if start < position or end < start:
            raise ValueError("edits overlap")
        pieces += [text[position:start], replacement]
        position = end
    return "".join([*pieces, text[position:]])


def choose_fixes(findings: Sequence[Finding], unsafe: bool) -> list[Fix]:
    """Fixes that can be made together, first come first served; the same fix on several findings is one."""
    chosen: list[Fix] = []
    taken: set[Edit] = set()
    for finding in sorted(findings, key=lambda item: item.sort_key):
        fix = finding.fix
        if fix is None or fix in chosen or (fix.safety is Safety.UNSAFE and not unsafe):
            continue
        if not any(_overlap(edit, other) for edit in fix.edits for other in taken):
            chosen.append(fix)
            taken.update(fix.edits)
    return chosen


def _overlap(a: Edit, b: Edit) -> bool:
    if a == b:
        return False  # both ask for the same: made once
    a_start, a_end, b_start, b_end = (
        (a.line, a.column), (a.end_line, a.end_column), (b.line, b.column), (b.end_line, b.end_column)
    )  # fmt: skip
    return a_start <= b_end and b_start <= a_end


def apply_fixes(text: str, fixes: Sequence[Fix]) -> str:
    """The text with the fixes made and the imports they need added."""
    edited = apply_edits(text, [edit for fix in fixes for edit in fix.edits])
    for line in dict.fromkeys(line for fix in fixes for line in fix.imports):
        edited = add_import(edited, line)
    return edited


def add_import(text: str, line: str) -> str:
    """The text with an import line, after its last import at the top, unless it is there already."""
    tree = ast.parse(text)
    wanted = ast.dump(ast.parse(line).body[0])
    if any(ast.dump(node) == wanted for node in tree.body):
        return text
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = tree.body[0] if tree.body else None
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    anchor = imports[-1] if imports else first if is_docstring else None
    newline = match.group() if (match := _NEWLINE.search(text)) else "\n"
    row = (anchor.end_lineno or 0) + 1 if anchor else 1
    lines = _NEWLINE.split(text)
    if row > len(lines):
        return f"{text}{newline}{line}{newline}"
    return apply_edits(text, [Edit(row, 1, row, 1, line + newline)])


@dataclasses.dataclass(frozen=True)
class FixedText:
    """A text after its fixes: how many were made, and what is left to report."""

    text: str
    made: int
    left: TextReport


def fix_until_stable(path: str, text: str, lint: Callable[[str], TextReport], unsafe: bool) -> FixedText:
    """Fix, lint again, and repeat until no fix is left or ten rounds are done.

    A round whose result cannot be read any more, or that a rule then fails on, is dropped: the text before it stays.
    """
    report = lint(text)
    made = 0
    for _ in range(_MAX_ROUNDS):
        chosen = choose_fixes(report.findings, unsafe)
        fixed = _fixed(path, text, chosen) if chosen else text
        if fixed == text:
            break
        after = lint(fixed)
        if len(after.errors) > len(report.errors):
            break
        text, report, made = fixed, after, made + len(chosen)
    return FixedText(text, made, report)


def unified_diff(path: str, before: str, after: str) -> str:
    """The change as a unified diff, with the a/ and b/ prefixes that ``git apply`` expects."""
    import difflib

    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _fixed(path: str, text: str, fixes: Sequence[Fix]) -> str:
    """The text with the fixes, or as it was when the result would not parse."""
    if path.endswith(".ipynb"):
        notebook = read_notebook(path, text)
        inside = [fix for fix in fixes if is_inside_cells(notebook, fix)]
        return write_notebook(text, notebook, inside) or text
    if path.endswith(SUFFIXES):
        fixed = apply_edits(text, [edit for fix in fixes for edit in fix.edits])
        return fixed if _reads_as_settings(path, fixed) else text
    fixed = apply_fixes(text, fixes)
    try:
        SourceFile(path, fixed)
    except SyntaxError:
        return text
    return fixed


def _reads_as_settings(path: str, text: str) -> bool:
    try:
        SettingsFile(path, text)
    except ValueError:
        return False
    return True

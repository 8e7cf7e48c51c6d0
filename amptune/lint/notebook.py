"""Jupyter notebooks: code cells as one Python text, and the way back to cell and line."""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from amptune.core.finding import Edit, FileError, Finding, Fix

_MAGIC_LINE = re.compile(r"^(\s*)(?:[%!?]|[\w, ]+=\s*[%!]|.*\?\s*$)")
_LINE = re.compile(r"\bline (\d+)\b")  # how messages name another line
_PYTHON_CELL_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun", "%%python", "%%python3", "%%memit", "%%snakeviz")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One code cell: its 1-based number among all cells, and the lines it has in the joined text."""

    number: int
    first_line: int
    text: str


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A notebook's code.

    Attributes:
        text: all code cells, each followed by a line end; magics are blanked so that lines keep their numbers.
        cells: where each cell lies in it.
        errors: cells that are no Python, which are left out of ``text``.
    """

    path: str
    text: str
    cells: tuple[Cell, ...]
    errors: tuple[FileError, ...]

    def cell_of(self, line: int) -> Cell:
        """The cell that a line of the joined text belongs to."""
        return max((cell for cell in self.cells if cell.first_line <= line), key=lambda cell: cell.first_line)

    def place(self, finding: Finding) -> Finding:
        """The finding with the lines of its cell, and the cell's number in its evidence."""
        cell = self.cell_of(finding.location.line)
        shift = cell.first_line - 1
        location = dataclasses.replace(
            finding.location, line=finding.location.line - shift, end_line=finding.location.end_line - shift
        )
        message = _LINE.sub(lambda found: self._line_of(int(found[1]), cell), finding.message)
        evidence = {**finding.evidence, "cell": cell.number}
        return dataclasses.replace(finding, location=location, message=message, evidence=evidence)

    def _line_of(self, line: int, home: Cell) -> str:
        """A line of the joined text as a message in one cell names it."""
        cell = self.cell_of(line)
        return f"line {line - cell.first_line + 1}" + ("" if cell is home else f" of cell {cell.number}")


def with_local_edits(notebook: Notebook, findings: Sequence[Finding]) -> list[Finding]:
    """The placed findings with the edits of their fixes in lines of the cell too; fixes over several cells go."""
    cells = {cell.number: cell for cell in notebook.cells}
    found = []
    for finding in findings:
        cell = cells.get(finding.evidence.get("cell", 0))
        fix = finding.fix
        if fix is not None and cell is not None:
            local = all(notebook.cell_of(edit.line) is cell for edit in fix.edits) and is_inside_cells(notebook, fix)
            edits = tuple(_shifted(edit, cell) for edit in fix.edits)
            finding = dataclasses.replace(finding, fix=dataclasses.replace(fix, edits=edits) if local else None)
        found.append(finding)
    return found


def _shifted(edit: Edit, cell: Cell) -> Edit:
    shift = cell.first_line - 1
    return dataclasses.replace(edit, line=edit.line - shift, end_line=edit.end_line - shift)


def read_notebook(path: str, text: str) -> Notebook:
    """The Python code of a notebook; a notebook of another language has none.

    Raises:
        ValueError: the text is no notebook.
    """
    cells = _code_cells(_load(text))
    joined: list[str] = []
    placed: list[Cell] = []
    errors: list[FileError] = []
    line = 1
    for number, source in cells:
        code = _without_magics(source)
        problem = _syntax_problem(code)
        if problem:
            errors.append(FileError(path, f"cell {number}, {problem}"))
            code = "\n" * source.count("\n")
        placed.append(Cell(number, line, source))
        joined.append(code)
        line += code.count("\n") + 1
    return Notebook(path, "".join(f"{code}\n" for code in joined), tuple(placed), tuple(errors))


def write_notebook(text: str, notebook: Notebook, fixes: Sequence[Fix]) -> str | None:
    """The notebook's JSON with fixes made in its cells; None when its layout could not be kept.

    A fix whose edits touch a line without code (a magic) or reach over a cell's end is left out by the caller.
    """
    from amptune.lint.fixing import apply_edits

    data = _load(text)
    layout = _layout(text, data)
    if layout is None:
        return None
    by_cell: dict[int, list[Edit]] = {}
    for fix in fixes:
        for edit in fix.edits:
            cell = notebook.cell_of(edit.line)
            by_cell.setdefault(cell.number, []).append(_shifted(edit, cell))
    for cell in notebook.cells:
        if cell.number in by_cell:
            fixed = apply_edits(cell.text, by_cell[cell.number])
            holder = data["cells"][cell.number - 1]
            holder["source"] = fixed.splitlines(keepends=True) if isinstance(holder["source"], list) else fixed
    return layout(data)


def is_inside_cells(notebook: Notebook, fix: Fix) -> bool:
    """Whether every edit of the fix lies in one cell, and the fix needs no import."""
    if fix.imports:
        return False
    for edit in fix.edits:
        cell = notebook.cell_of(edit.line)
        if edit.end_line >= cell.first_line + cell.text.count("\n") + 1:
            return False
    return True


def _load(text: str) -> Any:
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply for a notebook") from None
    except ValueError as error:
        raise ValueError(f"not a notebook: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        raise ValueError("not a notebook of format 4: it has no list of cells")
    return data


def _code_cells(data: dict[str, Any]) -> list[tuple[int, str]]:
    metadata = data.get("metadata")
    info = metadata.get("language_info") if isinstance(metadata, dict) else None
    language = info.get("name", "python") if isinstance(info, dict) else "python"
    if language not in ("python", "ipython"):
        return []
    found = []
    for number, cell in enumerate(data["cells"], 1):
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source", "")
            if isinstance(source, list):
                source = "".join(item for item in source if isinstance(item, str))
            if isinstance(source, str):
                found.append((number, source.replace("\r\n", "\n").replace("\r", "\n")))
    return found


def _without_magics(source: str) -> str:
    if _syntax_problem(source) is None:
        return source
    first = source.lstrip("\n").partition("\n")[0]
    if first.startswith("%%") and not first.startswith(_PYTHON_CELL_MAGICS):
        return "\n" * source.count("\n")
    lines = []
    for line in source.split("\n"):
        magic = _MAGIC_LINE.match(line)
        lines.append(f"{magic.group(1)}pass" if magic else line)
    return "\n".join(lines)


def _syntax_problem(code: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except SyntaxError as error:
            return f"line {error.lineno or 1}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            return f"line 1: {error or type(error).__name__}"
    return None


def _layout(text: str, data: Any) -> Callable[[Any], str] | None:
    """A function that writes data the way the text is written; None when no usual way gives the same text."""
    end = "\n" if text.endswith("\n") else ""
    for indent, separators in ((1, None), (2, None), (4, None), (None, None), (None, (",", ":"))):
        for ascii_only in (False, True):
            write = functools.partial(json.dumps, indent=indent, separators=separators, ensure_ascii=ascii_only)
            if write(data) + end == text:
                return lambda value, write=write: write(value) + end  # type: ignore[misc]
    return None

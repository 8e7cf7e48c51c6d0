"""Notebooks: cells, magics, positions, fixes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from amptune.core.finding import Finding, Location, Severity
from amptune.lint.check import TextReport, report_text
from amptune.lint.fixing import fix_until_stable
from amptune.lint.notebook import read_notebook, with_local_edits
from amptune.testing import source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code in ("AMP401", "AMP201")]


def notebook_text(*sources: str, language: str = "python") -> str:
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "metadata": {}, "source": ["# torch.cuda.amp"]}]
    for source in sources:
        lines = source.splitlines(keepends=True)
        cells.append({"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": [], "source": lines})
    data = {"cells": cells, "metadata": {"language_info": {"name": language}}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def report(text: str) -> TextReport:
    return report_text("a.ipynb", text, RULES)


def test_a_finding_names_cell_and_line() -> None:
    text = notebook_text("import torch\nx = 'é'", "y = 1\n\nscaler = torch.cuda.amp.GradScaler()")
    (finding,) = report(text).findings
    assert (finding.location.line, finding.location.column, finding.evidence["cell"]) == (3, 10, 3)


@pytest.mark.parametrize(
    "magic",
    [
        "%matplotlib inline",
        "!pip install torch",
        "files = !ls",
        "%time f()",
        "torch.ones?",
        "    %timeit g()\nif x:\n    !ls",
    ],
)
def test_magics_are_tolerated(magic: str) -> None:
    code = magic.lstrip() if not magic.startswith("    ") else f"if y:\n{magic}"
    result = report(notebook_text("import torch", f"{code}\ns = torch.cuda.amp.GradScaler()"))
    assert result.errors == ()
    assert len(result.findings) == 1


@pytest.mark.parametrize(
    ("magic", "linted"), [("%%bash", False), ("%%html", False), ("%%time", True), ("%%capture out", True)]
)
def test_cell_magics(magic: str, linted: bool) -> None:
    result = report(notebook_text("import torch", f"{magic}\ns = torch.cuda.amp.GradScaler()"))
    assert result.errors == ()
    assert bool(result.findings) is linted


def test_one_broken_cell_does_not_hide_the_others() -> None:
    result = report(notebook_text("import torch", "def broken(:", "s = torch.cuda.amp.GradScaler()"))
    assert [error.message for error in result.errors] == ["cell 3, line 1: invalid syntax"]
    assert [finding.evidence["cell"] for finding in result.findings] == [4]


def test_other_languages_are_left_alone() -> None:
    assert report(notebook_text("torch.cuda.amp <- function(x) {", language="R")) == TextReport()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"cells": 3, "x": "cuda.amp"}',
        '["cuda.amp"]',
        '{"worksheets": [], "x": "cuda.amp"}',
        "[" * 9999 + '"cuda.amp"',
    ],
)
def test_broken_notebooks_give_one_error(text: str) -> None:
    result = report_text("a.ipynb", text + " cuda.amp" * (text == "{"), RULES)
    assert len(result.errors) == 1
    assert "notebook" in result.errors[0].message


@pytest.mark.parametrize("cell", [None, 3, {}, {"cell_type": "raw"}, {"cell_type": "code", "source": 3}])
def test_odd_cells_are_skipped(cell: Any) -> None:
    data = {"cells": [cell], "metadata": "cuda.amp"}
    assert read_notebook("a.ipynb", json.dumps(data)).cells == ()


def test_suppression_comments_work_in_cells() -> None:
    text = notebook_text("import torch", "s = torch.cuda.amp.GradScaler()  # amptune: ignore[AMP401] old torch")
    assert report(text) == TextReport()


def test_fixes_keep_the_layout_of_the_file() -> None:
    text = notebook_text("%pip install x\nimport torch", "é = 1\ns = torch.cuda.amp.GradScaler()\n")
    fixed = fix_until_stable("a.ipynb", text, report, unsafe=False)
    assert fixed.text == text.replace("torch.cuda.amp.GradScaler()", 'torch.amp.GradScaler(\\"cuda\\")')
    assert fixed.left == TextReport()


def test_a_notebook_of_unusual_layout_is_not_rewritten() -> None:
    text = notebook_text("import torch\ns = torch.cuda.amp.GradScaler()").replace('"nbformat": 4', '"nbformat":   4')
    assert fix_until_stable("a.ipynb", text, report, unsafe=False).text == text


def test_reported_edits_are_in_lines_of_the_cell() -> None:
    text = notebook_text("import torch\nx = 1", "y = 2\ns = torch.cuda.amp.GradScaler()")
    (finding,) = with_local_edits(read_notebook("a.ipynb", text), report(text).findings)
    assert finding.fix is not None
    assert {edit.line for edit in finding.fix.edits} == {2}
    over_cells = notebook_text("from torch.cuda.amp import GradScaler", "s = GradScaler()")
    (finding,) = with_local_edits(read_notebook("a.ipynb", over_cells), report(over_cells).findings)
    assert finding.fix is None


def test_messages_name_lines_of_the_cell() -> None:
    text = notebook_text(
        "import torch\nscaler = torch.amp.GradScaler()",
        "with torch.autocast('cuda', torch.float16):\n    loss = model(x)\n    scaler.scale(loss).backward()",
    )
    (finding,) = report(text).findings
    assert finding.rule == "AMP201"
    assert (finding.evidence["cell"], finding.location.line) == (3, 3)
    assert "of line 1:" in finding.message


def test_a_line_of_another_cell_is_named_with_it() -> None:
    notebook = read_notebook("a.ipynb", notebook_text("a = 1\nb = 2", "c = 3"))
    place = Location("a.ipynb", 3, 1, 3, 2)
    finding = notebook.place(Finding("A001", "x", Severity.INFO, "after line 2, in line 3, online 2", place))
    assert finding.message == "after line 2 of cell 2, in line 1, online 2"


def test_findings_are_in_the_order_of_cells() -> None:
    text = notebook_text("\n\nimport torch.cuda.amp as a\ns = a.GradScaler()", "t = a.GradScaler()")
    assert [finding.evidence["cell"] for finding in sorted(report(text).findings, key=lambda f: f.sort_key)] == [2, 3]

"""Whole scripts and settings with known bugs, each with its corrected twin, in the files of ``fixtures/cases``.

A case is ``### case: name`` (with ``[file name]`` where the text is no Python file), the text with every bug marked on
its line, ``### fixed``, and the corrected text. Rules must find each marked bug, and say nothing serious beyond it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from amptune.core.finding import Finding, Severity
from amptune.lint.check import check_text
from amptune.testing import read_marks, source_rules

FIXTURES = Path(__file__).parent / "fixtures" / "cases"
RULES = [rule() for rule in source_rules(["amptune_rules"])]
_HEAD = re.compile(r"^### case: (?P<name>.+?)(?: \[(?P<path>\S+)\])?$", re.MULTILINE)
_CELL = "# %%\n"


@dataclasses.dataclass(frozen=True)
class Case:
    """One bug, or a few in one text, and the text without them."""

    name: str
    path: str
    buggy: str
    fixed: str

    def __str__(self) -> str:
        return self.name


def read_cases() -> list[Case]:
    """All cases, in the order of the files."""
    cases = []
    for file in sorted(FIXTURES.glob("*.txt")):
        parts = _HEAD.split(file.read_text(encoding="utf-8"))
        for name, path, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            buggy, _, fixed = text.lstrip("\n").partition("### fixed\n")
            cases.append(Case(name, path or "train.py", buggy, fixed))
    return cases


CASES = read_cases()


def findings(path: str, text: str) -> list[Finding]:
    """Findings of all rules; in a notebook the lines are those of the text with its cell marks."""
    if not path.endswith(".ipynb"):
        return check_text(path, text, RULES)
    cells = [{"cell_type": "code", "source": cell} for cell in text.split(_CELL)[1:]]
    return check_text(path, json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}), RULES)


def place(case: Case, finding: Finding, text: str) -> tuple[int, str]:
    """Line in the text and rule of a finding."""
    line = finding.location.line
    cell = finding.evidence.get("cell")
    if cell is not None:
        before = _CELL.join(text.split(_CELL)[:cell])
        line += before.count("\n") + 1
    return line, finding.rule


def serious(found: list[Finding]) -> list[Finding]:
    """Errors and warnings."""
    return [finding for finding in found if finding.severity is not Severity.INFO]


def test_there_are_many_cases_of_many_rules() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({mark.code for case in CASES for mark in read_marks(case.buggy)[1]}) >= 50


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_bug_is_found_and_nothing_serious_beyond(case: Case) -> None:
    text, marks = read_marks(case.buggy)
    assert marks
    assert case.fixed
    found = findings(case.path, text)
    places = {place(case, finding, text) for finding in found}
    expected = {(mark.line, mark.code) for mark in marks}
    assert expected <= places, [str(finding) for finding in found]
    assert {place(case, finding, text) for finding in serious(found)} <= expected


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_corrected_text_is_clean(case: Case) -> None:
    found = findings(case.path, case.fixed)
    codes = {mark.code for mark in read_marks(case.buggy)[1]}
    assert [str(finding) for finding in found if finding in serious(found) or finding.rule in codes] == []

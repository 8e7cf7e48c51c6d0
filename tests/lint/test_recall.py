"""Whole training scripts: each with one kind of defect, marked on its line, and scripts of the same kinds without."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.core.finding import Severity
from amptune.lint.check import check_text
from amptune.testing import read_marks, source_rules

FIXTURES = Path(__file__).parent / "fixtures"
RULES = [rule() for rule in source_rules(["amptune_rules"])]
BUGGY = sorted(FIXTURES.glob("buggy/*.py"))
CLEAN = sorted(FIXTURES.glob("clean/*.py"))


def test_the_corpus_is_there() -> None:
    assert len(BUGGY) >= 25
    assert len(CLEAN) >= 15
    codes = {mark.code for path in BUGGY for mark in read_marks(path.read_text())[1]}
    assert len(codes) >= 20


@pytest.mark.parametrize("path", BUGGY, ids=lambda path: path.stem)
def test_the_defect_is_found_and_nothing_else(path: Path) -> None:
    text, marks = read_marks(path.read_text())
    assert marks
    found = check_text(path.name, text, RULES)
    places = {(item.location.line, item.rule) for item in found}
    expected = {(mark.line, mark.code) for mark in marks}
    assert expected <= places
    others = [str(item) for item in found if (item.location.line, item.rule) not in expected]
    serious = [item for item in found if item.severity is not Severity.INFO]
    assert {(item.location.line, item.rule) for item in serious} <= expected, others


@pytest.mark.parametrize("path", CLEAN, ids=lambda path: path.stem)
def test_a_clean_script_has_no_error_and_no_warning(path: Path) -> None:
    found = check_text(path.name, path.read_text(), RULES)
    assert [str(item) for item in found if item.severity is not Severity.INFO] == []

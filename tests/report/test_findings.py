"""The four forms of a report of findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from amptune import __version__
from amptune.core.finding import Edit, FileError, Finding, Fix, Location, Safety, Severity
from amptune.core.registry import load_rules
from amptune.core.rule import SourceRule
from amptune.report import github, sarif, text
from amptune.report import json as json_report

# OASIS SARIF 2.1.0, errata 01, whole and unchanged; its "id" says where it is published.
SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0.json").read_text())
FIX = Fix("insert it", (Edit(2, 1, 2, 1, "scaler.unscale_(optimizer)\n"),))


def finding(
    line: int = 2, column: int = 5, end_line: int = 2, end_column: int = 9, severity: Severity = Severity.ERROR,
    path: str = "dir/a b.py", fix: Fix | None = None, evidence: dict[str, Any] | None = None, site: str | None = None,
) -> Finding:  # fmt: skip
    place = Location(path, line, column, end_line, end_column)
    return Finding("AMP101", "clip-without-unscale", severity, "50% wrong: a, b", place, site, evidence or {}, fix)


def lines_of(*lines: str) -> text.Lines:
    return lambda path: lines


def test_text_shows_the_line_with_a_caret() -> None:
    shown = text.render([finding(fix=FIX)], lines=lines_of("first", "    clip(x)"), files=1)
    assert shown == (
        "dir/a b.py:2:5: error AMP101: 50% wrong: a, b [clip-without-unscale]\n"
        "  2 |     clip(x)\n"
        "    |     ^^^^\n"
        "  = fix (--fix): insert it\n"
        "1 error in 1 file; 1 fixable with --fix\n"
    )


@pytest.mark.parametrize(
    ("line", "column", "end_column", "caret"),
    [
        ("\t\tclip(x)", 3, 7, "    | \t\t^^^^"),
        ("é = clip", 5, 9, "    |     ^^^^"),
        ("clip", 5, 9, "    |     ^"),
        ("clip(", 1, 1, "    | ^"),
    ],
)
def test_carets(line: str, column: int, end_column: int, caret: str) -> None:
    shown = text.render([finding(column=column, end_column=end_column)], lines=lines_of("", line))
    assert shown.split("\n")[2] == caret


def test_carets_of_spans_over_lines_and_of_long_lines() -> None:
    shown = text.render([finding(end_line=3, end_column=2)], lines=lines_of("", "    clip(", ")"))
    assert shown.split("\n")[2] == "    |     ^^^^^"
    shown = text.render([finding(column=5001, end_column=5005)], lines=lines_of("", " " * 5000 + "clip" + " " * 5000))
    excerpt, caret = shown.split("\n")[1:3]
    assert excerpt.index("clip") == caret.index("^^^^")
    assert len(excerpt) < 200


def test_text_without_source_lines() -> None:
    assert text.render([finding(line=9, end_line=9)], lines=lines_of("one")).count("\n") == 1
    cell = finding(evidence={"cell": 3}, path="a.ipynb")
    assert text.render([cell], lines=lines_of("", "x")).startswith("a.ipynb:cell 3:2:5: error")
    assert text.render([], files=4) == "no findings in 4 files\n"
    assert text.render([]) == ""


def test_text_names_errors_sites_and_unsafe_fixes() -> None:
    unsafe = Fix("drop it", (), Safety.UNSAFE)
    shown = text.render([finding(fix=unsafe, site="blocks.0")], [FileError("x.py", "does not parse", 3)], files=2)
    assert "at blocks.0:" in shown
    assert "= fix (--unsafe-fixes): drop it" in shown
    assert "x.py:3: cannot be linted: does not parse\n" in shown
    assert shown.endswith("1 error, 1 file not linted in 2 files\n")
    shown = text.render([], [FileError("x.py", "does not parse", 3)], files=0)
    assert shown.endswith("\n1 file not linted\n"), "nothing is said of files that were not read"


def test_text_in_colour() -> None:
    assert "\x1b[31merror\x1b[0m" in text.render([finding()], color=True)
    assert "\x1b" not in text.render([finding()])


def test_statistics() -> None:
    found = [finding(), finding(line=5, fix=FIX), finding(severity=Severity.INFO)]
    assert text.render_statistics(found) == (
        "     2  AMP101   error    [*] clip-without-unscale\n     1  AMP101   info     [*] clip-without-unscale\n"
    )
    data = json.loads(json_report.render_statistics(found))
    assert [row["count"] for row in data["statistics"]] == [2, 1]


def test_json_is_the_documented_form() -> None:
    data = json.loads(json_report.render([finding(fix=FIX, evidence={"n": 1})], [FileError("x.py", "bad", 3)]))
    assert data == {
        "version": 1,
        "tool": f"amptune {__version__}",
        "findings": [
            {
                "rule": "AMP101", "name": "clip-without-unscale", "severity": "error", "message": "50% wrong: a, b",
                "path": "dir/a b.py", "line": 2, "column": 5, "end_line": 2, "end_column": 9, "site": None,
                "evidence": {"n": 1},
                "fix": {
                    "message": "insert it", "safety": "safe", "imports": [],
                    "edits": [{"line": 2, "column": 1, "end_line": 2, "end_column": 1,
                               "text": "scaler.unscale_(optimizer)\n"}],
                },
            }
        ],
        "errors": [{"path": "x.py", "message": "bad", "line": 3}],
    }  # fmt: skip
    assert Finding.from_json(data["findings"][0]).to_json() == data["findings"][0]


def test_json_takes_further_fields() -> None:
    assert json.loads(json_report.render([], extra={"capture": {"sites": 3}}))["capture"] == {"sites": 3}


def test_github_annotations() -> None:
    first = (
        "::error file=dir/a b.py,line=2,endLine=2,col=5,endColumn=8,title=AMP101 (clip-without-unscale)"
        "::50%25 wrong: a, b"
    )
    shown = github.render([finding(), finding(end_line=4, severity=Severity.INFO)], [FileError("x,y.py", "bad\nfile")])
    assert shown.split("\n") == [
        first,
        "::notice file=dir/a b.py,line=2,endLine=4,title=AMP101 (clip-without-unscale)::50%25 wrong: a, b",
        "::error file=x%2Cy.py,title=amptune::bad%0Afile",
        "",
    ]
    cell = github.render([finding(evidence={"cell": 3}, path="a.ipynb")])
    assert cell.startswith("::error file=a.ipynb,title=AMP101 (clip-without-unscale)::cell 3, line 2: ")


def test_sarif_is_valid() -> None:
    rules = load_rules(SourceRule, ["amptune_rules"])
    found = [
        finding(fix=FIX),
        finding(line=7, end_line=8, end_column=0, severity=Severity.INFO),
        finding(path="/abs/é.py", severity=Severity.WARNING),
        finding(path="a.ipynb", evidence={"cell": 2}),
        finding(site="blocks.0"),
    ]
    data = json.loads(sarif.render(found, [FileError("x.py", "bad", 3), FileError("y.py", "bad")], rules=rules))
    jsonschema.validate(data, SCHEMA)
    run = data["runs"][0]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert [result["level"] for result in run["results"]] == ["error", "note", "warning", "error", "error"]
    assert all(rules[result["ruleIndex"]].code == "AMP101" for result in run["results"])
    locations = [result["locations"][0] for result in run["results"]]
    assert locations[0]["physicalLocation"]["artifactLocation"] == {"uri": "dir/a%20b.py", "uriBaseId": "SRCROOT"}
    assert locations[0]["physicalLocation"]["region"] == {
        "startLine": 2,
        "startColumn": 5,
        "endLine": 2,
        "endColumn": 9,
    }
    assert locations[2]["physicalLocation"]["artifactLocation"] == {"uri": "file:///abs/%C3%A9.py"}
    assert "region" not in locations[3]["physicalLocation"]
    assert locations[4]["logicalLocations"] == [{"fullyQualifiedName": "blocks.0"}]
    prints = [result["partialFingerprints"]["amptune/v1"] for result in run["results"]]
    assert len(set(prints)) == len(prints)


def test_the_schema_does_refuse_mistakes() -> None:
    good = json.loads(sarif.render([finding()]))
    for break_it in (
        lambda data: data.pop("version"),
        lambda data: data["runs"][0]["results"][0].pop("message"),
        lambda data: data["runs"][0]["results"][0].update(level="fatal"),
        lambda data: data["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"].update(startLine=0),
        lambda data: data["runs"][0].update(unknown=1),
    ):
        bad = json.loads(json.dumps(good))
        break_it(bad)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, SCHEMA)


def test_empty_sarif_is_valid() -> None:
    data = json.loads(sarif.render([]))
    jsonschema.validate(data, SCHEMA)
    assert data["runs"][0]["results"] == []

"""For authors of rules: examples become tests.

In a test module of a rule pack::

    import pytest
    from amptune.testing import check_case, check_documentation, rule_cases, source_rules

    @pytest.mark.parametrize("case", rule_cases(["my_pack"]), ids=str)
    def test_examples(case):
        check_case(case)

    @pytest.mark.parametrize("rule", source_rules(["my_pack"]), ids=lambda rule: rule.code)
    def test_documentation(rule):
        check_documentation(rule)

In an example, ``# <- ABC101`` at the end of a line says that this line must be flagged; ``# <- ABC101, AMP301@9``
names two rules and, after ``@``, a column. Lines without a mark must stay clean under every installed rule.
In JSON examples the mark is ``// <- ABC101``. Marks are cut off before the text is linted.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from amptune.core.files import write_atomic
from amptune.core.finding import Finding
from amptune.core.registry import load_rules
from amptune.core.rule import Example, GraphRule, Rule, SourceRule
from amptune.lint.check import TextReport, check_text, report_text
from amptune.lint.fixing import fix_until_stable

SECTIONS = ("What it does", "Why is this bad", "Example", "Use instead", "Fix safety", "References")
_MARK = re.compile(r"[ \t]*(?:#|//) <- ((?:[A-Z]{1,8}\d{3}(?:@\d+)?(?:, )?)+)[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_FENCE_PATHS = {"python": "example.py", "json": "example.json", "yaml": "example.yaml", "ipynb": "example.ipynb"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One example of one rule."""

    rule: type[SourceRule]
    example: Example
    valid: bool

    def __str__(self) -> str:
        return f"{self.rule.code}-{'valid' if self.valid else 'invalid'}-{self.example.name.replace(' ', '_')}"


@dataclasses.dataclass(frozen=True)
class Mark:
    """An expectation written in an example; column 0 means that any column will do."""

    line: int
    code: str
    column: int = 0


def source_rules(packs: Sequence[str] | None = None) -> list[type[SourceRule]]:
    """The source rules of some packs (default: all that are installed)."""
    return [loaded.cls for loaded in load_rules(SourceRule, packs) if issubclass(loaded.cls, SourceRule)]


def rule_cases(packs: Sequence[str] | None = None) -> list[Case]:
    """Every example of every source rule of some packs, for ``pytest.mark.parametrize(..., ids=str)``."""
    return [
        Case(rule, example, valid)
        for rule in source_rules(packs)
        for valid, examples in ((False, rule.INVALID), (True, rule.VALID))
        for example in examples
    ]


def read_marks(text: str) -> tuple[str, list[Mark]]:
    """The text without its marks, and the marks."""
    marks = []
    for number, line in enumerate(text.split("\n"), 1):
        found = _MARK.search(line)
        for item in found.group(1).split(", ") if found else ():
            code, _, column = item.partition("@")
            marks.append(Mark(number, code, int(column or 0)))
    return _MARK.sub("", text), marks


def check_case(case: Case) -> None:
    """Assert that exactly the marked lines are flagged, by all rules together, and that the fix gives ``fixed``."""
    text, marks = read_marks(case.example.source)
    own = [mark for mark in marks if mark.code == case.rule.code]
    assert bool(own) is not case.valid, f"{case}: a valid example is marked, or an invalid one is not"
    findings = check_text(case.example.path, text, _all_rules())
    _compare(case, text, marks, findings)
    if not case.valid:
        _check_fix(case, text, [finding for finding in findings if finding.rule == case.rule.code])


@cache
def _all_rules() -> tuple[SourceRule, ...]:
    return tuple(rule() for rule in source_rules())


def _compare(case: Case, text: str, marks: Sequence[Mark], findings: Sequence[Finding]) -> None:
    wanted = Counter((mark.line, mark.code) for mark in marks)
    got = Counter((finding.location.line, finding.rule) for finding in findings)
    shown = "\n".join(f"{number:4} {line}" for number, line in enumerate(text.split("\n"), 1))
    assert got == wanted, f"{case}\nmissing: {sorted((wanted - got).elements())}\nunexpected: " + (
        f"{sorted((got - wanted).elements())}\n{shown}\n"
        + "\n".join(f"{f.location} {f.rule} {f.message}" for f in findings)
    )
    places = {(finding.location.line, finding.rule, finding.location.column) for finding in findings}
    for mark in marks:
        if mark.column:
            assert (mark.line, mark.code, mark.column) in places, f"{case}: wrong column, wanted {mark}, got {places}"


def _check_fix(case: Case, text: str, findings: Sequence[Finding]) -> None:
    example = case.example
    fixable = any(finding.fix for finding in findings)
    assert fixable is (example.fixed is not None), f"{case}: a fix without `fixed=`, or `fixed=` without a fix"
    if example.fixed is None:
        return

    def lint(current: str) -> TextReport:
        report = report_text(example.path, current, _all_rules())
        own = tuple(finding for finding in report.findings if finding.rule == case.rule.code)
        return TextReport(own, report.errors)

    fixed = fix_until_stable(example.path, text, lint, unsafe=True)
    wanted, left = read_marks(example.fixed)
    assert fixed.text == wanted, f"{case}: fixed text differs:\n{fixed.text}"
    lines = [finding.location.line for finding in fixed.left.findings]
    assert lines == [mark.line for mark in left], f"{case}: still flagged after the fix, lines {lines}"
    again = fix_until_stable(example.path, fixed.text, lint, unsafe=True)
    assert again.text == fixed.text, f"{case}: a second fix changes the text again"


def sections(rule: type[SourceRule]) -> dict[str, str]:
    """The sections of a rule's docstring, by heading; the text before the first one under ""."""
    parts = re.split(r"^## (.+)$", inspect.getdoc(rule) or "", flags=re.MULTILINE)
    return {"": parts[0].strip(), **{h.strip(): body.strip() for h, body in zip(parts[1::2], parts[2::2], strict=True)}}


def check_documentation(rule: type[SourceRule]) -> None:
    """Assert what a published rule needs: all sections, a flagged example, a clean counterpart, enough near misses."""
    found = sections(rule)
    assert tuple(found)[1:] == SECTIONS, f"{rule.code}: sections are {tuple(found)[1:]}, wanted {SECTIONS}"
    assert all(found.values()), f"{rule.code}: an empty section or no summary line"
    assert rule.INVALID, f"{rule.code}: no invalid example"
    assert len(rule.VALID) >= len(rule.INVALID), f"{rule.code}: fewer near misses than hits"
    names = [example.name for example in (*rule.INVALID, *rule.VALID)]
    assert len(set(names)) == len(names), f"{rule.code}: two examples share a name"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name), f"{rule.code}: name {rule.name!r} is not kebab-case"
    _check_snippet(rule, found["Example"], flagged=True)
    _check_snippet(rule, found["Use instead"], flagged=False)


def _check_snippet(rule: type[SourceRule], section: str, flagged: bool) -> None:
    fences = _FENCE.findall(section)
    assert fences, f"{rule.code}: a documentation section without a ``` block"
    for language, body in fences:
        findings = check_text(_FENCE_PATHS[language], textwrap.dedent(body), [rule()])
        assert bool(findings) is flagged, f"{rule.code}: documentation example: wanted flagged={flagged}\n{body}"


def rule_index() -> str:
    """rules/README.md: every built-in rule with its name, severity, fix and summary."""
    rows = {
        kind: [_index_row(loaded.cls) for loaded in load_rules(kind, ["amptune_rules"])]
        for kind in (SourceRule, GraphRule)
    }
    parts = ["# Rules", "", "Generated by `python -m amptune.testing --write-index`; `amptune explain CODE` says more."]
    for kind, title in ((SourceRule, "Source rules (`amptune lint`)"), (GraphRule, "Graph rules (`amptune analyze`)")):
        parts += [
            "",
            f"## {title}",
            "",
            "| code | name | severity | fix | what it finds |",
            "| --- | --- | --- | --- | --- |",
        ]
        parts += rows[kind]
    return "\n".join(parts) + "\n"


def _index_row(cls: type[Rule]) -> str:
    summary = (cls.__doc__ or "").strip().partition("\n")[0].replace("|", "\\|")
    default = "" if cls.default_enabled else " (off by default)"
    return f"| {cls.code} | {cls.name} | {cls.severity}{default} | {'yes' if cls.has_fix() else ''} | {summary} |"


def _main(arguments: Sequence[str]) -> int:
    if list(arguments) != ["--write-index"]:
        print("usage: python -m amptune.testing --write-index", file=sys.stderr)
        return 2
    import amptune

    root = Path(amptune.__file__).parents[1] / "rules"
    if not root.is_dir():
        print("amptune.testing: the index belongs to a checkout, and this is an installed package", file=sys.stderr)
        return 2
    write_atomic(root / "README.md", rule_index())
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))

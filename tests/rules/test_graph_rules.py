"""Every example of every graph rule, captured and judged; and the documentation of the rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amptune.analyze.assumed.evidence import gather
from amptune.analyze.runner import Analysis, Question, analyze
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.evidence import Evidence
from amptune.core.hardware import gpus_named
from amptune.core.recipes import STOCK, recipe_named
from amptune.core.registry import load_rules
from amptune.core.rule import Example, GraphRule, Rule

RULES = [loaded.cls for loaded in load_rules(GraphRule)]
SECTIONS = ["What it does", "Why is this bad", "Example", "Use instead", "Fix safety", "References"]
MARK = re.compile(r"#\s*<-\s*(?P<codes>.+)$")


def judge(example: Example, folder: Path, rule: type[Rule]) -> Analysis:
    file = folder / "example.py"
    file.write_text(example.source)
    options = dict(example.options)
    train = bool(options.get("train", True))
    target = load_target(TargetSpec(str(file)))
    captured = capture(target, train=train)
    question = Question(
        gpus=gpus_named(options.get("gpus", ("h100",))),
        recipes=tuple(recipe_named(name) for name in options["recipes"]) if "recipes" in options else STOCK,
        recipes_named="recipes" in options,
        mode=options.get("mode", "eager"),
        train=train,
        path=str(file),
        evidence=gather(target, captured) if options.get("evidence") else Evidence(),
        select=(rule.code,),
    )
    return analyze(captured, question)


def marked_lines(source: str, code: str) -> set[int]:
    lines = enumerate(source.splitlines(), start=1)
    return {number for number, line in lines if (mark := MARK.search(line)) and code in mark["codes"].split()}


def examples(kind: str) -> list[object]:
    return [
        pytest.param(rule, example, id=f"{rule.code}-{example.name.replace(' ', '_')}")
        for rule in RULES
        for example in getattr(rule, kind)
    ]


@pytest.mark.parametrize(("rule", "example"), examples("INVALID"))
def test_invalid_example_is_flagged_on_the_marked_lines(
    rule: type[Rule], example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = marked_lines(example.source, rule.code)
    assert expected, "an invalid example needs a mark"
    findings = judge(example, tmp_path, rule).findings
    assert {finding.location.line for finding in findings} == expected, [str(f) for f in findings]


@pytest.mark.parametrize(("rule", "example"), examples("VALID"))
def test_valid_example_is_not_flagged(
    rule: type[Rule], example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not marked_lines(example.source, rule.code)
    assert not judge(example, tmp_path, rule).findings


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_rule_is_documented(rule: type[Rule]) -> None:
    assert rule.__doc__
    assert re.findall(r"^ {4}## (.+)$", rule.__doc__, flags=re.MULTILINE) == SECTIONS
    assert rule.INVALID
    assert rule.VALID
    assert Path(rule.__module__.rpartition(".")[2]).name.startswith(rule.code.lower())

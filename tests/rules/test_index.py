"""What is generated from the rules, and what holds for all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from amptune.core.rule import SourceRule
from amptune.testing import read_marks, rule_index, source_rules

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "rules/amptune_rules/source"


def test_the_index_is_up_to_date() -> None:
    assert (ROOT / "rules/README.md").read_text() == rule_index(), "run: python -m amptune.testing --write-index"


@pytest.mark.parametrize("rule", source_rules(["amptune_rules"]), ids=lambda rule: rule.code)
def test_the_file_is_named_after_the_rule(rule: type[SourceRule]) -> None:
    module = rule.__module__.rpartition(".")[2]
    assert module == f"{rule.code.lower()}_{rule.name.replace('-', '_')}"
    assert rule.__name__.lower() == rule.name.replace("-", "")


def test_one_rule_a_file() -> None:
    for path in FOLDER.glob("amp*.py"):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        rules = [cls for cls in classes if any(isinstance(b, ast.Name) and b.id == "SourceRule" for b in cls.bases)]
        assert len(rules) == 1, path.name


@pytest.mark.parametrize("rule", source_rules(["amptune_rules"]), ids=lambda rule: rule.code)
def test_every_invalid_example_passes_the_prefilter(rule: type[SourceRule]) -> None:
    for example in rule.INVALID:
        data = read_marks(example.source)[0].encode()
        assert any(keyword in data for keyword in rule.keywords), example.name
        assert all(keyword in data for keyword in rule.requires), example.name

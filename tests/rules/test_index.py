"""What is generated from the rules, and what holds for all of them."""

from __future__ import annotations

import ast
import time
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
        for required in rule.requires:
            assert any(word in data for word in ([required] if isinstance(required, bytes) else required)), example.name
        assert rule().may_concern(data), example.name


HOSTILE = (
    b"a", b"a ", b"a:", b"a=", b"a+", b"1", b"1.", b"1e", b"(", b"exp(", b"where(", b"clamp(", b"sum(", b"class A(",
    b"* ", b"] = ", b"0.", b"max(,\n-", b"x = (1e9 ", b"max(1e-9\n", b"arange(", b"((", b"a.", b"\\", b"'", b'"""',
)  # fmt: skip


@pytest.mark.parametrize("rule", source_rules(["amptune_rules"]), ids=lambda rule: rule.code)
def test_the_prefilter_takes_no_time_for_odd_files(rule: type[SourceRule]) -> None:
    """They take milliseconds; what is quadratic in the file would take minutes."""
    asked = rule()
    if type(asked).may_concern is SourceRule.may_concern:
        return
    for part in HOSTILE:
        data = b"exp(x) 1e9 1e-9 torch.half pow( / .log( softmax arange(\n" + part * (60_000 // len(part))
        start = time.process_time()
        asked.may_concern(data)
        assert time.process_time() - start < 1, part

"""Examples of every built-in source rule, run against all source rules."""

from __future__ import annotations

import pytest

from amptune.core.rule import SourceRule
from amptune.testing import Case, check_case, check_documentation, rule_cases, source_rules


@pytest.mark.parametrize("case", rule_cases(["amptune_rules"]), ids=str)
def test_examples(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize("rule", source_rules(["amptune_rules"]), ids=lambda rule: rule.code)
def test_documentation(rule: type[SourceRule]) -> None:
    check_documentation(rule)

"""Which rules are asked."""

from __future__ import annotations

from amptune.core.finding import Severity
from amptune.core.rule import SourceRule
from amptune.lint.prefilter import Prefilter


def rule(code: str, keywords: tuple[bytes, ...], requires: tuple[bytes, ...] = ()) -> SourceRule:
    fields = {"code": code, "name": "x", "severity": Severity.INFO, "keywords": keywords, "requires": requires}
    made: SourceRule = type(code, (SourceRule,), fields)()
    return made


def test_keywords_are_alternatives_and_requirements_are_not() -> None:
    rules = [
        rule("A001", (b"fp16", b"bf16")),
        rule("A002", (b"1e-8", b"1e-12"), (b"torch",)),
        rule("A003", (b"no_grad",), (b"torch", b"autocast")),
        rule("A004", (b"fp16_opt_level",)),
    ]
    prefilter = Prefilter(rules)

    def asked(text: bytes) -> list[str]:
        codes = [rule.code for rule in prefilter.asked(text)]
        assert prefilter.passes(text) is bool(codes)
        return codes

    assert asked(b"x = 1") == []
    assert asked(b"bf16") == ["A001"]
    assert asked(b"1e-8") == []
    assert asked(b"torch 1e-12") == ["A002"]
    assert asked(b"torch no_grad") == []
    assert asked(b"torch autocast no_grad") == ["A003"]
    assert asked(b"fp16_opt_level") == ["A001", "A004"]


def test_no_rules_ask_nothing() -> None:
    assert not Prefilter([]).passes(b"anything")


def test_a_closer_look_decides_for_its_own_rule_alone() -> None:
    class Closer(SourceRule):
        code, name, severity = "A001", "x", Severity.INFO
        keywords, requires = (b"arange(",), (b"torch",)

        def may_concern(self, data: bytes) -> bool:
            assert b"torch" in data
            assert b"arange(" in data
            return b"bfloat16" in data

    prefilter = Prefilter([Closer(), rule("A002", (b"arange(",), (b"jax",))])
    assert [found.code for found in prefilter.asked(b"torch.arange( bfloat16")] == ["A001"]
    assert prefilter.passes(b"torch.arange( bfloat16")
    assert not prefilter.passes(b"torch.arange(")
    assert [found.code for found in prefilter.asked(b"jax torch arange(")] == ["A002"]
    assert prefilter.passes(b"jax torch arange(")
    assert not prefilter.passes(b"bfloat16")

"""Which rules are asked."""

from __future__ import annotations

import pytest

from amptune.core.finding import Severity
from amptune.core.rule import SourceRule
from amptune.lint.prefilter import Prefilter


def rule(code: str, keywords: tuple[bytes, ...], requires: tuple[bytes | tuple[bytes, ...], ...] = ()) -> SourceRule:
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
        return [rule.code for rule in prefilter.asked(text)]

    assert asked(b"x = 1") == []
    assert asked(b"bf16") == ["A001"]
    assert asked(b"1e-8") == []
    assert asked(b"torch 1e-12") == ["A002"]
    assert asked(b"torch no_grad") == []
    assert asked(b"torch autocast no_grad") == ["A003"]
    assert asked(b"fp16_opt_level") == ["A001", "A004"]


def test_no_rules_ask_nothing() -> None:
    assert not Prefilter([]).asked(b"anything")


def test_a_tuple_among_the_requirements_is_any_one_of_its_items() -> None:
    prefilter = Prefilter([rule("A001", (b"mean",), (b"torch", (b"fp16", b".half(")))])
    assert not prefilter.asked(b"torch.mean(x)")
    assert not prefilter.asked(b"torch.mean(half(x))")
    assert not prefilter.asked(b"np.mean(x.half())")
    assert prefilter.asked(b"torch.mean(x.half())")
    assert prefilter.asked(b"torch.mean(x_fp16)")


def test_keywords_are_found_inside_words_and_across_them() -> None:
    rules = [rule("A001", (b"caler",)), rule("A002", (b"fp16:\n",)), rule("A003", (b"2 ** ",)), rule("A004", (b"T5",))]
    prefilter = Prefilter(rules)

    def asked(text: bytes) -> list[str]:
        return [rule.code for rule in prefilter.asked(text)]

    assert asked(b"self.my_scalers.step()") == ["A001"]
    assert asked("größe_scaler = 1".encode()) == ["A001"]
    assert asked(b"fp16: 1") == []
    assert asked(b"fp16:\n  x") == ["A002"]
    assert asked(b"x = 2 ** 3") == ["A003"]
    assert asked(b"MT5Model") == ["A004"]
    assert asked(b"scal er T 5 fp 16:\n 2  **") == []
    assert asked(b"self.my_scalers.step()") == ["A001"]  # a word that was seen before


def test_what_is_known_of_words_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amptune.lint.prefilter._MAX_KNOWN", 100)
    prefilter = Prefilter([rule("A001", (b"scaler",))])
    for number in range(300):
        text = f"word{number} scaler{number} other{number}".encode()
        assert prefilter.asked(text)
        assert prefilter.asked(b"scaler0")
        assert not prefilter.asked(f"word{number}".encode())


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
    assert not prefilter.asked(b"torch.arange(")
    assert [found.code for found in prefilter.asked(b"jax torch arange(")] == ["A002"]
    assert not prefilter.asked(b"bfloat16")

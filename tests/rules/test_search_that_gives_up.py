"""A search for paths that ends before it is done is no ground for a finding."""

from __future__ import annotations

from textwrap import dedent, indent
from typing import Any

import pytest

from amptune.core.finding import Severity
from amptune.lint.check import check_text
from amptune.lint.flow import Flow
from amptune.testing import read_marks, rule_cases, source_rules

PACKS = ["amptune_rules"]
RULES = [rule() for rule in source_rules(PACKS)]
ASKING = ("AMP1", "AMP506")  # the rules that ask for paths
HEAD = """\
import torch
from torch.nn.utils import clip_grad_norm_

def unscaled(scaler, grads):
    inverse = 1.0 / scaler.get_scale()
    return [grad * inverse for grad in grads]

def train(model, loader, opt, opt_b, optimizers, is_late):
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        opt.zero_grad()
"""
# Code that one path keeps clean, beside the examples of the rules.
CLEAN = {
    "some of the optimizers are unscaled": """
        scaler.scale(model(x)).backward()
        for item in optimizers:
            if item is opt_b:
                continue
            scaler.unscale_(item)
        clip_grad_norm_(model.parameters(), 1.0)
        for item in optimizers:
            scaler.step(item)
        scaler.update()
        """,
    "stepped before the first update too": """
        scaler.scale(model(x)).backward()
        scaler.step(opt)
        scaler.step(opt_b)
        scaler.update()
        scaler.scale(model(y)).backward()
        scaler.step(opt_b)
        scaler.update()
        """,
    "unscaled between two updates": """
        scaler.scale(model(x)).backward()
        scaler.step(opt)
        scaler.update()
        scaler.scale(model(y)).backward()
        scaler.unscale_(opt)
        scaler.update()
        """,
    "scaled by hand": """
        model(x).sum().backward()
        for p in model.parameters():
            p.grad = p.grad * 1024
        scaler.step(opt)
        scaler.update()
        """,
    "one optimizer has no scaler": """
        scaler.scale(model(x)).backward()
        model(y).sum().backward()
        if is_late:
            opt_b.step()
        scaler.step(opt)
        scaler.update()
        """,
    "a helper divides by the scale": """
        loss = model(x)
        grads = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
        penalty = sum(grad.pow(2).sum() for grad in unscaled(scaler, grads))
        scaler.scale(loss + penalty).backward()
        scaler.step(opt)
        scaler.update()
        """,
}
TEXTS = {
    str(case): read_marks(case.example.source)[0]
    for case in rule_cases(PACKS)
    if case.rule.code.startswith(ASKING) and case.example.path.endswith(".py")
}
TEXTS |= {name: HEAD + indent(dedent(body), " " * 8) for name, body in CLEAN.items()}
LIMITS = [("flow._BUDGET", 0), ("flow._BUDGET", 40), ("flow._MAX_STATES", 1), ("flow._MAX_STATES", 10)]
LIMITS += [("cfg.MAX_NODES", 0), ("cfg.MAX_NODES", 12)]


def spoken(text: str) -> set[tuple[int, str]]:
    """Line and rule of each error and warning."""
    findings = check_text("a.py", text, RULES)
    return {(found.location.line, found.rule) for found in findings if found.severity is not Severity.INFO}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_code_is_clean(name: str) -> None:
    assert spoken(TEXTS[name]) == set()


@pytest.mark.parametrize(("limit", "value"), LIMITS)
def test_less_search_never_finds_more(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    whole = {name: spoken(text) for name, text in TEXTS.items()}
    monkeypatch.setattr(f"amptune.lint.{limit}", value)
    assert {name: more for name, text in TEXTS.items() if (more := spoken(text) - whole[name])} == {}


def test_one_search_that_gives_up_never_finds_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question of each text in turn is the one that is left without an answer."""
    find = Flow._find
    questions, refused = 0, -1

    def find_or_give_up(flow: Flow, *question: Any) -> Any:
        nonlocal questions
        questions += 1
        return (None, False) if questions == refused else find(flow, *question)

    def lint(text: str, give_up_at: int) -> set[tuple[int, str]]:
        nonlocal questions, refused
        questions, refused = 0, give_up_at
        return spoken(text)

    monkeypatch.setattr(Flow, "_find", find_or_give_up)
    invented = {}
    for name, text in TEXTS.items():
        whole = lint(text, -1)
        for number in range(1, questions + 1):
            if more := lint(text, number) - whole:
                invented[name] = more
    assert invented == {}

"""Mutated and generated sources: no crash, no failing rule, no fix that breaks a file."""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amptune.lint.check import report_text
from amptune.lint.fixing import fix_until_stable
from amptune.testing import read_marks, source_rules

RULES = [rule() for rule in source_rules(["amptune_rules"])]
SNIPPETS = (
    "scaler = torch.amp.GradScaler('cuda')", "scaler.scale(loss).backward()", "scaler.unscale_(optimizer)",
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)", "scaler.step(optimizer)", "scaler.update()",
    "optimizer.zero_grad()", "optimizer.step()", "loss.backward()", "with torch.autocast('cuda'):",
    "with torch.cuda.amp.autocast(enabled=use_amp):", "if use_amp:", "else:", "for i, x in enumerate(loader):",
    "continue", "return", "try:", "except RuntimeError:", "def step(self, scaler, loss):", "x = x.half()",
    "model.to(torch.bfloat16)", "y = F.softmax(x, -1).log()", "z = x.masked_fill(mask, -1e9)",
    "from torch.cuda.amp import autocast, GradScaler", "lambda: scaler.step(optimizer)", "while True:", "match x:",
    "    case _:", "# amptune: ignore[AMP101]", "'''", "(", ")",
)  # fmt: skip
TESTS = ("use_amp", "not x", "i % n == 0")


@cache
def corpus() -> tuple[tuple[str, str], ...]:
    """Path and text of real sources: the rules' examples, and training code of transformers."""
    examples = [
        (example.path, read_marks(example.source)[0])
        for rule in source_rules(["amptune_rules"])
        for example in (*rule.INVALID, *rule.VALID)
    ]
    root = Path(transformers.__file__).parent
    names = ("trainer.py", "training_args.py", "models/t5/modeling_t5.py", "models/llama/modeling_llama.py",
             "integrations/deepspeed.py", "data/data_collator.py")  # fmt: skip
    real = [piece for name in names for piece in pieces((root / name).read_text())]
    return (*examples, *(("a.py", piece) for piece in real))


def pieces(text: str) -> Iterator[str]:
    """Each class or function of a module with its imports: a whole module is too slow to mutate by the thousand."""
    lines = text.split("\n")
    body = ast.parse(text).body
    head = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    imports = "\n".join("\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in head)
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield imports + "\n" + "\n".join(lines[node.lineno - 1 : node.end_lineno])


def mutate(text: str, chance: random.Random) -> str:
    """The text with one to six changes of lines or characters; most that would not parse are taken back."""
    for _ in range(chance.randint(1, 6)):
        changed = change(text, chance)
        if chance.random() < 0.05 or parses(changed):
            text = changed
    return text


def change(text: str, chance: random.Random) -> str:
    """The text with one change of a line or character."""
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    line = lines[at]
    indent = line[: len(line) - len(line.lstrip())]
    match chance.randrange(9):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[chance.randrange(len(lines))])
        case 2:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], line
        case 3 | 4 | 5:
            lines.insert(at, indent + chance.choice(SNIPPETS))
        case 6:
            lines[at] = chance.choice(["    ", "\t", ""]) + line.lstrip()
        case 7:
            place = chance.randrange(len(line) + 1)
            lines[at] = line[:place] + chance.choice("()[]{}:,.'\"\\#\t\x00\x0cé\u2028=@*0") + line[place + 1 :]
        case 8:
            lines[at] = f"{indent}if {chance.choice(['use_amp', 'not x', 'i % n == 0'])}:\n{indent}    {line.lstrip()}"
    return "\n".join(lines)


def parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            return False
    return True


def check(path: str, text: str) -> None:
    """Lint and fix one text; a rule that fails, or a fix that breaks the text, is an assertion."""
    report = report_text(path, text, RULES)
    failed = [error.message for error in report.errors if error.message.startswith("rule ")]
    assert not failed, f"{failed}\n{text}"
    if not report.findings or report.errors:
        return
    fixed = fix_until_stable(path, text, lambda current: report_text(path, current, RULES), unsafe=True)
    assert not fixed.left.errors, f"{fixed.left.errors}\n{fixed.text}"
    if path.endswith(".py"):
        assert parses(fixed.text), fixed.text


def mutants(seed: int, number: int) -> Iterator[tuple[str, str]]:
    chance = random.Random(seed)
    sources = corpus()
    for _ in range(number):
        path, text = chance.choice(sources)
        yield path, mutate(text, chance)


def test_mutated_sources() -> None:
    for path, text in mutants(seed=0, number=300):
        check(path, text)


def test_a_name_whose_only_value_is_made_of_itself() -> None:
    check("net.py", "import torch.nn.functional as F\ny = F.softmax(x, -1).log()\nx = x.half()\n")


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 21))
def test_ten_thousand_mutated_sources(seed: int) -> None:
    for path, text in mutants(seed, number=500):
        check(path, text)


SIMPLE = st.sampled_from(
    ["scaler.scale(loss).backward()", "loss.backward()", "scaler.unscale_(opt)", "scaler.step(opt)", "scaler.update()",
     "opt.step()", "opt.zero_grad()", "torch.nn.utils.clip_grad_norm_(p, 1.0)", "loss = loss / n", "flag = not flag",
     "continue", "break", "return loss", "helper(scaler, opt)", "scaler = None", "raise ValueError", "p.grad.mul_(2)",
     "total = p.grad.norm()", "sched.step()"]
)  # fmt: skip
HEADS = st.sampled_from(
    ["if flag:", "if not flag:", "if scaler is not None:", "if (i + 1) % n == 0:", "for i in range(n):", "while flag:",
     "with torch.autocast('cuda'):", "with torch.no_grad():", "if flag and i > 2 or not scaler:"]
)  # fmt: skip


def indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def compound(block: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    joined = st.lists(block, min_size=1, max_size=4).map(lambda blocks: [line for lines in blocks for line in lines])
    plain = st.builds(lambda head, body: [head, *indented(body)], HEADS, joined)
    both = st.builds(lambda a, b: ["if flag:", *indented(a), "else:", *indented(b)], joined, joined)
    guarded = st.builds(
        lambda a, b: ["try:", *indented(a), "except RuntimeError:", *indented(b), "finally:", "    scaler.update()"],
        joined,
        joined,
    )
    return plain | both | guarded


PROGRAMS = st.lists(st.recursive(SIMPLE.map(lambda line: [line]), compound, max_leaves=25), min_size=1, max_size=6)


def program(blocks: list[list[str]]) -> str:
    body = [line for block in blocks for line in block]
    head = ["import torch", "def helper(scaler, opt):", "    scaler.step(opt)", "    scaler.update()"]
    loop = ["def train(scaler, loss, opt, n, flag, p, sched):", "    for i in range(n):", *indented(indented(body))]
    return "\n".join([*head, *loop, "train(torch.amp.GradScaler('cuda'), 1, 2, 3, 4, 5, 6)", ""])


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(PROGRAMS)
def test_generated_training_loops(blocks: list[list[str]]) -> None:
    text = program(blocks)
    assert parses(text)
    check("a.py", text)

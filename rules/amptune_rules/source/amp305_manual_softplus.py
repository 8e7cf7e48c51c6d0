"""AMP305: softplus or logsigmoid is written out with exp and log."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from typing import Literal

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import calls_exponential_or_sigmoid, calls_logarithm
from amptune_rules.source._constants import number_or_default
from amptune_rules.source._formula import (
    functional_name,
    is_bounded_above,
    is_bounded_below,
    is_fixed_name,
    is_inference,
    negated,
    op_name,
    op_operand,
    operand,
    origin,
    resolved,
)
from amptune_rules.source._numbers import number_of

_Form = Literal["log(1 + exp(x))", "log(sigmoid(x))", "log(1 - sigmoid(x))"]


@dataclasses.dataclass(frozen=True)
class _Formula:
    """One logarithm: what it computes, of what x, and whether an eps was added.

    ``x`` is None where the sigmoid is the end of a model.
    """

    form: _Form
    x: ast.expr | None
    eps: bool = False


class ManualSoftplus(SourceRule):
    """Softplus or logsigmoid is written out with exp, sigmoid and log.

    ## What it does
    Flags `log(1 + exp(x))`, `log1p(exp(x))`, `log(sigmoid(x))` and `log(1 - sigmoid(x))`, also through variables and
    through functions and modules of the same file that end in a sigmoid. With an eps inside the logarithm, in a
    `torch.where` that picks another value for large x, or without gradients, it is info.

    ## Why is this bad
    exp(x) overflows for x over 88.7 in float32 and over 11.1 in float16, and the result is inf. sigmoid(x) is 1 in
    float32 for x over 17 and 0 for x under -89 (in float16 over 8.4 and under -17.4), so the logarithms are -inf and
    the gradient NaN. `softplus`, `logsigmoid` and the losses with logits are exact everywhere.

    ## Example
    ```python
    import torch
    loss = torch.log(1 + torch.exp(-margin)).mean()
    ```

    ## Use instead
    ```python
    import torch
    loss = torch.nn.functional.softplus(-margin).mean()
    ```

    ## Fix safety
    Safe: the same value wherever both are finite. Offered where x stands in the formula, or is a name bound once.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.softplus.html
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.logsigmoid.html
    """

    code = "AMP305"
    name = "manual-softplus"
    severity = Severity.WARNING
    keywords = (b"igmoid", b"exp(")
    requires = (b".log",)

    INVALID = (
        Example(
            "softplus in its spellings",
            """\
import torch
import torch.nn.functional as F

def losses(x, y):
    e = torch.exp(x)
    a = torch.log(1 + torch.exp(-y * x))  # <- AMP305@9
    b = torch.log1p(x.exp()) + (e + 1.0).log()  # <- AMP305, AMP305
    return a + b
""",
            fixed="""\
import torch
import torch.nn.functional as F

def losses(x, y):
    e = torch.exp(x)
    a = F.softplus(-y * x)
    b = F.softplus(x) + F.softplus(x)
    return a + b
""",
        ),
        Example(
            "binary cross entropy by hand",
            """\
import torch

def loss_of(logits, y):
    p = torch.sigmoid(logits)
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()  # <- AMP305@18, AMP305@43
""",
            fixed="""\
import torch

def loss_of(logits, y):
    p = torch.sigmoid(logits)
    return -(y * torch.nn.functional.logsigmoid(logits) + (1 - y) * torch.nn.functional.logsigmoid(-logits)).mean()
""",
        ),
        Example(
            "discriminator that ends in a sigmoid",
            """\
import torch
from torch import nn

class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid())

    def forward(self, x):
        return self.net(x)

critic = Discriminator()

def losses(real, fake):
    score = critic(real)
    return -torch.log(score).mean() - torch.log(1 - critic(fake)).mean()  # <- AMP305@13, AMP305@39
""",
        ),
        Example(
            "an eps, at severity info",
            """\
import torch

def loss_of(x, y):
    return torch.log(torch.sigmoid(x) + 1e-6) + torch.log(1 - y.sigmoid() + 1e-6)  # <- AMP305, AMP305
""",
        ),
    )
    VALID = (
        Example(
            "the stable ops",
            """\
import torch
import torch.nn.functional as F

def losses(x):
    return F.softplus(x) + F.logsigmoid(x) + torch.sigmoid(x) + torch.exp(x)
""",
        ),
        Example(
            "bounded by hand",
            """\
import torch

def loss_of(x, y):
    n = -x.abs()
    stable = x.clamp(min=0) - x * y + torch.log(1 + n.exp()) + torch.log1p(torch.exp(-torch.abs(x)))
    return stable + torch.log(1 + torch.exp(torch.tanh(x))) + torch.log1p(torch.exp(-(x**2)))
""",
        ),
        Example(
            "clamped sigmoid",
            """\
import torch

def loss_of(x):
    p = torch.sigmoid(x).clamp(1e-6, 1 - 1e-6)
    return torch.log(p) + torch.log(torch.sigmoid(torch.clamp(x, -10, 10)))
""",
        ),
        Example(
            "other logarithms",
            """\
import math
import torch

def odd(x, y):
    return torch.log(1 + x) + torch.log(2 + torch.exp(x)) + math.log(1 + math.exp(1.0)) + torch.log(1 - y)
""",
        ),
        Example(
            "the name is bound again",
            """\
import torch

def gate(x):
    p = torch.sigmoid(x)
    y = p * x
    p = y.abs() + 1.0
    return torch.log(p)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return calls_logarithm(data) and calls_exponential_or_sigmoid(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Logarithms of 1 + exp, of a sigmoid, and of 1 - sigmoid."""
        for call in source.method_calls("log", "log1p"):
            name = op_name(source, call)
            argument = operand(source, call) if name in ("log", "log1p") else None
            if argument is None:
                continue
            formula = _formula(source, resolved(source, argument), name == "log1p")
            if formula is None or _is_bounded(source, formula):
                continue
            severity = Severity.INFO if formula.eps or _is_chosen(source, call) or is_inference(source, call) else None
            fix = None if formula.eps else _fix(source, call, argument, formula)
            yield source.finding(self, call, _message(formula), severity=severity, fix=fix)


def _message(formula: _Formula) -> str:
    better = "softplus(x)" if "exp" in formula.form else "logsigmoid(-x)" if "-" in formula.form else "logsigmoid(x)"
    if formula.eps:
        return f"{formula.form} with an eps cuts the value off at log(eps): use {better}, or a loss with logits"
    limits = {
        "log(1 + exp(x))": "is inf for x over 88 (over 11 in float16)",
        "log(sigmoid(x))": "is -inf for x under -88 (under -17 in float16)",
        "log(1 - sigmoid(x))": "is -inf for x over 17 (over 8 in float16)",
    }
    return f"{formula.form} {limits[formula.form]}: use {better}" + (
        "" if formula.x is not None else " on the value before the sigmoid, or a loss with logits"
    )


def _formula(source: SourceFile, argument: ast.expr, is_log1p: bool, eps: bool = False) -> _Formula | None:
    """What ``log(argument)`` or ``log1p(argument)`` computes."""
    if is_log1p:
        exponent = op_operand(source, resolved(source, argument), "exp")
        if exponent is not None:
            return _Formula("log(1 + exp(x))", exponent)
        if isinstance(argument, ast.UnaryOp) and isinstance(argument.op, ast.USub):
            return _sigmoid(source, argument.operand, "log(1 - sigmoid(x))", eps)
        return None
    if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Add):
        return _sum(source, argument)
    if isinstance(argument, ast.BinOp) and isinstance(argument.op, ast.Sub) and number_of(source, argument.left) == 1:
        return _sigmoid(source, argument.right, "log(1 - sigmoid(x))", eps)
    return _sigmoid(source, argument, "log(sigmoid(x))", eps)


def _sum(source: SourceFile, argument: ast.BinOp) -> _Formula | None:
    """``1 + exp(x)``, and a sigmoid with an eps."""
    for number, term in ((argument.left, argument.right), (argument.right, argument.left)):
        value = number_of(source, number)
        if value == 1:
            exponent = op_operand(source, resolved(source, term), "exp")
            return _Formula("log(1 + exp(x))", exponent) if exponent is not None else None
        value = number_or_default(source, number)
        if value is not None and 0 < value < 1e-2:
            return _formula(source, resolved(source, term), is_log1p=False, eps=True)
    return None


def _sigmoid(source: SourceFile, argument: ast.expr, form: _Form, eps: bool) -> _Formula | None:
    direct = resolved(source, argument)
    x = op_operand(source, direct, "sigmoid")
    if x is not None:
        return _Formula(form, x, eps)
    made = origin(source, argument)
    return _Formula(form, None, eps) if op_name(source, made) == "sigmoid" else None


def _is_bounded(source: SourceFile, formula: _Formula) -> bool:
    """Whether x is kept from the side on which the formula breaks."""
    if formula.x is None:
        return False
    if formula.form == "log(sigmoid(x))":
        return is_bounded_below(source, formula.x)
    return is_bounded_above(source, formula.x)


def _is_chosen(source: SourceFile, call: ast.Call) -> bool:
    """Whether ``torch.where`` picks another value for large x; the gradient can still be NaN."""
    parent = source.enclosing(call, ast.Call, ast.stmt)
    if isinstance(parent, ast.Call) and source.qualified(parent.func) == ("torch.where",):
        return True
    statement = source.statement_of(call)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return isinstance(target, ast.Name) and any(
        _replaces_inf(source, choice, target.id)
        for choice in source.calls("torch.where", "torch.nan_to_num")
        if source.function_of(choice) is source.function_of(call)
    )


def _replaces_inf(source: SourceFile, call: ast.Call, name: str) -> bool:
    """Whether the value of this name is kept but for where it is infinite: ``torch.where(y == inf, x, y)``."""
    tested = call.args[0] if call.args else None
    words = {part.id for part in ast.walk(tested) if isinstance(part, ast.Name)} if tested is not None else set()
    asks = source.qualified(call.func) == ("torch.nan_to_num",) or (
        tested is not None and "inf" in source.segment(tested).lower()
    )
    return asks and name in words


def _fix(source: SourceFile, call: ast.Call, argument: ast.expr, formula: _Formula) -> Fix | None:
    x = formula.x
    if x is None or any(name.startswith(("tensorflow", "jax")) for name in source.qualified(call.func)):
        return None
    is_written_here = source.index.is_inside(x, argument)
    if not is_written_here and not is_fixed_name(source, x):
        return None
    name = "softplus" if "exp" in formula.form else "logsigmoid"
    text = negated(source, x) if formula.form == "log(1 - sigmoid(x))" else source.segment(x)
    head = functional_name(source)
    imports = ("import torch",) if head.startswith("torch.") else ()
    return Fix(f"use {name}", (edits.replace(source, call, f"{head}.{name}({text})"),), imports=imports)

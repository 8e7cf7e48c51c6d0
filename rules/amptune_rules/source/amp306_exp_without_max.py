"""AMP306: a softmax or logsumexp is written out with exp, without the maximum taken off."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import divides_by_exponentials
from amptune_rules.source._constants import number_or_default
from amptune_rules.source._formula import is_bounded_above, is_fixed_name, names_in, op_operand, resolved
from amptune_rules.source._half_risk import Chance, half_risk

_LOGITS = re.compile(r"logit|score|energ|attn|attention|(?:^|_)out(?:put)?s?(?:$|_)|pred", re.IGNORECASE)
_NORMALISED = re.compile(r"normali[sz]e|cosine|\.norm\(|temperature|tau\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class _Sum:
    """A sum of exponentials: ``x`` of ``exp(x)``, the call of the sum, and the number added to it."""

    x: ast.expr
    call: ast.Call
    eps: bool


class ExpWithoutMax(SourceRule):
    """A softmax or logsumexp is written out with exp, and the maximum is not taken off first.

    ## What it does
    Flags `exp(x) / exp(x).sum()` and `log(exp(x).sum())`, also through variables, unless x is bounded above by what can
    be seen: minus a maximum, a clamp, a tanh, a negative square. A warning where x is float16 or is called a logit or
    score, else info.

    ## Why is this bad
    exp(x) is inf for x over 88.7 in float32 and over 11.1 in float16; inf / inf is NaN, and log(inf) an infinite
    loss. `softmax` and `logsumexp` take the largest x off before, which changes nothing in exact arithmetic and keeps
    every exponential at or below 1.

    ## Example
    ```python
    import torch
    weights = torch.exp(scores) / torch.exp(scores).sum(dim=-1, keepdim=True)
    ```

    ## Use instead
    ```python
    import torch
    weights = torch.softmax(scores, dim=-1)
    ```

    ## Fix safety
    Safe: the same value wherever both are finite. Offered where the sum names its dim, keeps it for a softmax, and
    adds no eps.

    ## References
    - https://github.com/pytorch-labs/torchfix
    - https://docs.pytorch.org/docs/stable/generated/torch.logsumexp.html
    """

    code = "AMP306"
    name = "exp-without-max"
    severity = Severity.WARNING
    keywords = (b"exp(",)
    requires = (b"sum", (b"/", b".log"))

    INVALID = (
        Example(
            "softmax by hand",
            """\
import torch

def attend(scores, mask):
    e = torch.exp(scores)
    a = e / e.sum(dim=-1, keepdim=True)  # <- AMP306@9
    logits = scores + mask
    return a, logits.exp() / torch.sum(logits.exp(), dim=1, keepdim=True)  # <- AMP306@15
""",
            fixed="""\
import torch

def attend(scores, mask):
    e = torch.exp(scores)
    a = torch.softmax(scores, dim=-1)
    logits = scores + mask
    return a, torch.softmax(logits, dim=1)
""",
        ),
        Example(
            "logsumexp by hand",
            """\
import torch

def partition(logits, x):
    a = torch.log(torch.exp(logits).sum(1))  # <- AMP306@9
    b = torch.log(torch.sum(torch.exp(logits), dim=1, keepdim=True))  # <- AMP306@9
    return a + b + x.exp().sum().log()  # <- AMP306@20
""",
            fixed="""\
import torch

def partition(logits, x):
    a = torch.logsumexp(logits, dim=1)
    b = torch.logsumexp(logits, dim=1, keepdim=True)
    return a + b + x.exp().sum().log()  # <- AMP306@20
""",
        ),
        Example(
            "an eps under the fraction",
            """\
import torch

def attend(x):
    e = torch.exp(x)
    return e / (torch.sum(e, dim=1, keepdim=True) + 1e-5)  # <- AMP306
""",
        ),
    )
    VALID = (
        Example(
            "the maximum is taken off",
            """\
import torch

def attend(scores):
    e = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    shifted = scores - torch.amax(scores, -1, keepdim=True)
    return e / e.sum(dim=-1, keepdim=True) + torch.log(shifted.exp().sum(-1))
""",
        ),
        Example(
            "the ops",
            """\
import torch

def attend(scores):
    return torch.softmax(scores, dim=-1), torch.logsumexp(scores, dim=-1)
""",
        ),
        Example(
            "bounded above",
            """\
import torch

def kernel(x, y):
    k = torch.exp(-((x - y) ** 2))
    t = torch.exp(torch.tanh(x))
    c = torch.exp(x.clamp(max=10))
    return k / k.sum(dim=1, keepdim=True), t / t.sum(dim=1, keepdim=True), torch.log(c.sum(dim=1))
""",
        ),
        Example(
            "other quotients",
            """\
import torch

def ratio(new, old, x):
    r = torch.exp(new - old)
    return r / x.sum(dim=1), torch.exp(x) / x.sum(), torch.log(x.sum(dim=1))
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return divides_by_exponentials(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Quotients and logarithms of sums of exponentials."""
        for quotient in source.nodes(ast.BinOp):
            if isinstance(quotient.op, ast.Div):
                yield from self._softmax(source, quotient)
        for call in source.method_calls("log"):
            argument = op_operand(source, call, "log")
            total = _sum_of_exp(source, argument) if argument is not None else None
            if total is not None and not is_bounded_above(source, total.x):
                message = "log of a sum of exp is inf where one x is over 88 (over 11 in float16): use torch.logsumexp"
                fix = _logsumexp_fix(source, call, total)
                yield source.finding(self, call, message, severity=_severity(source, total), fix=fix)

    def _softmax(self, source: SourceFile, quotient: ast.BinOp) -> Iterator[Finding]:
        top = op_operand(source, resolved(source, quotient.left), "exp")
        total = _sum_of_exp(source, quotient.right) if top is not None else None
        if top is None or total is None or source.segment(top) != source.segment(total.x):
            return
        if not is_bounded_above(source, total.x):
            message = "exp(x) / sum of exp(x) is NaN where one x is over 88 (over 11 in float16): use torch.softmax"
            fix = _softmax_fix(source, quotient, total)
            yield source.finding(self, quotient, message, severity=_severity(source, total), fix=fix)


def _sum_of_exp(source: SourceFile, node: ast.expr) -> _Sum | None:
    """``exp(x).sum(...)``, with an eps perhaps."""
    node = resolved(source, node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for number, term in ((node.left, node.right), (node.right, node.left)):
            value = number_or_default(source, number)
            inner = _sum_of_exp(source, term) if value is not None and value < 1e-2 else None
            if inner is not None:
                return dataclasses.replace(inner, eps=True)
        return None
    summed = op_operand(source, node, "sum")
    x = op_operand(source, resolved(source, summed), "exp") if summed is not None else None
    return _Sum(x, node, False) if x is not None and isinstance(node, ast.Call) else None


def _severity(source: SourceFile, total: _Sum) -> Severity:
    """Warning where x may well be large: float16, or unscaled logits by its name."""
    risk = half_risk(source, total.x)
    if risk is not None and risk.chance >= Chance.LIKELY:
        return Severity.WARNING
    function = source.function_of(total.call)
    text = source.segment(function) if function is not None else source.text
    is_logits = any(_LOGITS.search(name) for name in names_in(total.x))
    return Severity.WARNING if is_logits and not _NORMALISED.search(text) else Severity.INFO


def _dim(source: SourceFile, call: ast.Call) -> ast.expr | None:
    return source.argument(call, "dim", 1 if source.qualified(call.func) else 0)


def _keeps(source: SourceFile, call: ast.Call) -> bool:
    position = 2 if source.qualified(call.func) else 1
    return source.constant(source.argument(call, "keepdim", position)) is True


def _is_usable(source: SourceFile, total: _Sum, place: ast.AST) -> bool:
    """Whether x can be written at the place of the formula with the same meaning."""
    is_torch = not any(name.startswith(("tensorflow", "jax")) for name in source.qualified(total.call.func))
    is_same = source.index.is_inside(total.x, place) or is_fixed_name(source, total.x)
    return not total.eps and is_torch and is_same and source.argument(total.call, "dtype") is None


def _softmax_fix(source: SourceFile, quotient: ast.BinOp, total: _Sum) -> Fix | None:
    dim = _dim(source, total.call)
    is_one = dim is not None and isinstance(source.constant(dim), int)
    if dim is None or not is_one or not _keeps(source, total.call) or not _is_usable(source, total, quotient):
        return None
    text = f"torch.softmax({source.segment(total.x)}, dim={source.segment(dim)})"
    return Fix("use torch.softmax", (edits.replace(source, quotient, text),), imports=("import torch",))


def _logsumexp_fix(source: SourceFile, call: ast.Call, total: _Sum) -> Fix | None:
    dim = _dim(source, total.call)
    if dim is None or not _is_usable(source, total, call):
        return None
    keep = ", keepdim=True" if _keeps(source, total.call) else ""
    text = f"torch.logsumexp({source.segment(total.x)}, dim={source.segment(dim)}{keep})"
    return Fix("use torch.logsumexp", (edits.replace(source, call, text),), imports=("import torch",))

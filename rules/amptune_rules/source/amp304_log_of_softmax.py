"""AMP304: the logarithm of a softmax is taken in two steps."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import calls_logarithm, calls_softmax
from amptune_rules.source._constants import number_or_default, shown
from amptune_rules.source._formula import (
    is_fixed_name,
    is_inference,
    op_name,
    op_operand,
    operand,
    origin,
    resolved,
)
from amptune_rules.source._models import last_word

_PICKS = frozenset({"multinomial", "sample", "argmax", "topk", "max", "categorical"})
_SMALLEST_SAFE_EPS = 1e-7


class LogOfSoftmax(SourceRule):
    """The logarithm of a softmax is taken in two steps.

    ## What it does
    Flags `log` of a softmax: of the function, the method or an `nn.Softmax` object, directly, through a variable, an
    index, or a function or module of the same file that ends in a softmax. With an eps added before the logarithm, or
    without gradients, it is info.

    ## Why is this bad
    A softmax term more than 104 below the largest logit is 0 in float32, 18 below it in float16 already, and log(0)
    is -inf: the loss becomes infinite and its gradient NaN. `log_softmax` subtracts the logarithm of the sum instead
    and is exact over the whole range. An eps avoids the infinity, but cuts the loss off at -log(eps), and its gradient
    with it.

    ## Example
    ```python
    import torch
    probability = torch.softmax(logits, dim=-1)
    loss = -(target * torch.log(probability)).sum()
    ```

    ## Use instead
    ```python
    import torch
    loss = -(target * torch.log_softmax(logits, dim=-1)).sum()
    ```

    ## Fix safety
    Safe: the value is the same wherever both are finite. Offered where the softmax is called by name and its input
    still has the same value at the logarithm.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    """

    code = "AMP304"
    name = "log-of-softmax"
    severity = Severity.WARNING
    keywords = (b".log(",)
    requires = (b"oftmax",)

    INVALID = (
        Example(
            "function, method and module",
            """\
import torch
import torch.nn.functional as F
from torch import nn

softmax = nn.Softmax(dim=1)

def losses(logits, y, target):
    a = torch.log(F.softmax(logits, dim=-1))  # <- AMP304@9
    b = logits.softmax(-1).log()  # <- AMP304@9
    c = torch.log(softmax(logits))  # <- AMP304@9
    return a + b + c + torch.log(nn.Softmax(dim=1)(logits)[y])  # <- AMP304@24
""",
            fixed="""\
import torch
import torch.nn.functional as F
from torch import nn

softmax = nn.Softmax(dim=1)

def losses(logits, y, target):
    a = F.log_softmax(logits, dim=-1)
    b = logits.log_softmax(-1)
    c = torch.log(softmax(logits))  # <- AMP304@9
    return a + b + c + torch.log(nn.Softmax(dim=1)(logits)[y])  # <- AMP304@24
""",
        ),
        Example(
            "through a variable",
            """\
import torch

def entropy(logits):
    p = torch.softmax(logits, dim=1)
    return -(p * torch.log(p)).sum(1)  # <- AMP304@18
""",
            fixed="""\
import torch

def entropy(logits):
    p = torch.softmax(logits, dim=1)
    return -(p * torch.log_softmax(logits, dim=1)).sum(1)
""",
        ),
        Example(
            "the model ends in a softmax",
            """\
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return F.softmax(self.fc(x), dim=1)

model = Net()

def loss_of(x, y):
    return F.nll_loss(torch.log(model(x)), y)  # <- AMP304@23
""",
        ),
        Example(
            "an eps, at severity info",
            """\
import torch

def entropy(logits, eps=1e-7):
    p = logits.softmax(dim=1)
    return -(p * torch.log(p + eps)).sum(1)  # <- AMP304
""",
        ),
    )
    VALID = (
        Example(
            "log_softmax, and probabilities that are needed as well",
            """\
import torch

def entropy(logits):
    log_p = torch.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(1)
""",
        ),
        Example(
            "clamped probabilities",
            """\
import torch

def entropy(logits):
    p = torch.softmax(logits, dim=1).clamp(min=1e-6)
    return -(p * torch.log(p)).sum(1)
""",
        ),
        Example(
            "the name means something else by then",
            """\
import torch

def stretch(x):
    p = torch.softmax(x, dim=1)
    y = p @ x
    p = x.abs() + 1
    return y, torch.log(p)
""",
        ),
        Example(
            "logging, and logarithms of numbers",
            """\
import math
import wandb

def report(logits, step):
    p = logits.softmax(-1)
    wandb.log({"p": p})
    return math.log(step), p
""",
        ),
        Example(
            "log of a sum of probabilities",
            """\
import torch

def event(logits, groups):
    p = torch.softmax(logits, dim=1)
    return torch.log(1 + p @ groups)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return calls_logarithm(data) and calls_softmax(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Logarithms of values that a softmax makes."""
        for call in source.method_calls("log"):
            argument = op_operand(source, call, "log")
            if argument is None:
                continue
            eps = _eps(source, argument)
            made = origin(source, eps[0] if eps else argument)
            if op_name(source, made) != "softmax" or _is_of_picked(source, argument):
                continue
            yield source.finding(
                self, call, _message(eps), severity=Severity.INFO if eps or is_inference(source, call) else None,
                fix=None if eps else _fix(source, call, argument),
            )  # fmt: skip


def _message(eps: tuple[ast.expr, float] | None) -> str:
    if eps is None:
        return "log of a softmax is -inf where a probability rounds to 0: use log_softmax on the logits"
    value = eps[1]
    cut = "" if value >= _SMALLEST_SAFE_EPS else ", and is 0 in float16"
    return f"log(softmax + {shown(value)}) cuts the loss off at the eps{cut}: use log_softmax on the logits"


def _eps(source: SourceFile, argument: ast.expr) -> tuple[ast.expr, float] | None:
    """The other term and the number of ``p + eps``."""
    node = resolved(source, argument)
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    for term, number in ((node.left, node.right), (node.right, node.left)):
        value = number_or_default(source, number)
        if value is not None and 0 < value < 1e-2:
            return term, value
    return None


def _is_of_picked(source: SourceFile, argument: ast.expr) -> bool:
    """Whether the probabilities are those of sampled or best items, which cannot be 0."""
    node, seen = resolved(source, argument), set[ast.expr]()
    while isinstance(node, ast.Subscript | ast.Call) and node not in seen:
        seen.add(node)  # `x = x.half()` leads back to itself
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "gather":
            index = source.argument(node, "index", 2 if source.qualified(node.func) else 1)
            made = [part for leaf in (source.values(index) if index else ()) for part in ast.walk(leaf)]
            return any(isinstance(part, ast.Call) and last_word(part.func) in _PICKS for part in made)
        inner = node.value if isinstance(node, ast.Subscript) else operand(source, node)
        if inner is None:
            return False
        node = resolved(source, inner)
    return False


def _fix(source: SourceFile, call: ast.Call, argument: ast.expr) -> Fix | None:
    """Replace the logarithm by the softmax call with its name changed."""
    made = resolved(source, argument)
    if not isinstance(made, ast.Call):
        return None
    logits = op_operand(source, made, "softmax")
    func = made.func
    if logits is None or not isinstance(func, ast.Attribute) or func.attr != "softmax":
        return None
    if not source.qualified(func) and func.value is not logits:
        return None
    names = [item for item in ast.walk(made) if isinstance(item, ast.Name) and not source.qualified(item)]
    if made is not argument and not all(is_fixed_name(source, item) for item in names):
        return None
    text, head = source.segment(made), source.segment(func)
    new = f"{head.removesuffix('softmax')}log_softmax{text.removeprefix(head)}"
    return Fix("use log_softmax", (edits.replace(source, call, new),))

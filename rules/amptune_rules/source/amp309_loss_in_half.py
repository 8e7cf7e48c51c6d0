"""AMP309: a loss is computed on float16 values."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import makes_half
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import is_cast_up, is_guarded
from amptune_rules.source._losses import loss_calls, may_be_own_loss
from amptune_rules.source._precision import precision

_OTHERS = ("cross_entropy", "binary_cross_entropy")  # AMP307 and AMP203 speak of these


class LossInHalf(SourceRule):
    """A loss is computed on float16 values, outside autocast.

    ## What it does
    Flags losses of torch, functions and module objects, whose values are float16 for certain: after `.half()`, of a
    model with float16 weights, of a float16 constructor. CUDA autocast runs losses in float32. (For cross entropy see
    AMP307.)

    ## Why is this bad
    Squared errors overflow where a difference passes 255, a sum over a batch where it passes 65504, and the loss
    is inf. Small errors are lost the other way: the square of 1.7e-4 is 0, and its gradient with it.

    ## Example
    ```python
    import torch.nn.functional as F
    loss = F.mse_loss(prediction.half(), target.half(), reduction="sum")
    ```

    ## Use instead
    ```python
    import torch.nn.functional as F
    loss = F.mse_loss(prediction.float(), target.float(), reduction="sum")
    ```

    ## Fix safety
    Safe: the values are cast to float32 for the loss; gradients come back in float16 as before.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float32
    """

    code = "AMP309"
    name = "loss-in-half"
    severity = Severity.WARNING
    keywords = (b".half(", b"torch.float16", b"torch.half", b"import float16", b"import half")
    requires = (b"torch", (b"loss", b"Loss", b"cross_entropy", b"kl_div"))

    INVALID = (
        Example(
            "half values",
            """\
import torch
import torch.nn.functional as F

def losses(model, x, y):
    p = model(x).half()
    a = F.mse_loss(p, y.half())  # <- AMP309@9
    return a + F.binary_cross_entropy_with_logits(p - 1, y, reduction="sum")  # <- AMP309@16
""",
            fixed="""\
import torch
import torch.nn.functional as F

def losses(model, x, y):
    p = model(x).half()
    a = F.mse_loss(p.float(), y.half().float())
    return a + F.binary_cross_entropy_with_logits((p - 1).float(), y, reduction="sum")
""",
        ),
        Example(
            "a model with float16 weights and a loss object",
            """\
import torch
from torch import nn

class Trainer:
    def __init__(self, model):
        self.model = nn.Linear(4, 4)
        self.model.half()
        self.criterion = nn.SmoothL1Loss()

    def loss(self, x, y):
        return self.criterion(self.model(x), y)  # <- AMP309
""",
            fixed="""\
import torch
from torch import nn

class Trainer:
    def __init__(self, model):
        self.model = nn.Linear(4, 4)
        self.model.half()
        self.criterion = nn.SmoothL1Loss()

    def loss(self, x, y):
        return self.criterion(self.model(x).float(), y)
""",
        ),
    )
    VALID = (
        Example(
            "float32 for the loss",
            """\
import torch.nn.functional as F

def losses(model, x, y):
    p = model(x.half())
    return F.mse_loss(p.float(), y) + F.l1_loss(p.half(), y.float())
""",
        ),
        Example(
            "CUDA autocast casts",
            """\
import torch
import torch.nn.functional as F

def losses(x, w, y):
    with torch.autocast("cuda", dtype=torch.float16):
        return F.mse_loss(x @ w, y)
""",
        ),
        Example(
            "bfloat16, and a precision that is chosen",
            """\
import torch
import torch.nn.functional as F

def losses(x, y, dtype, fp16):
    a = F.mse_loss(x.bfloat16(), y.bfloat16()) + F.mse_loss(x.to(dtype), y)
    if fp16:
        x = x.half()
    return a + F.mse_loss(x, y)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return makes_half(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Losses whose values are float16."""
        for call, name, values in loss_calls(source):
            facts = [precision(source, value) for value in values]
            if name in _OTHERS or facts[0] is not Fact.HALF or Fact.WIDE in facts:
                continue
            if is_cast_up(source, call) or is_guarded(source, call) or may_be_own_loss(source, call):
                continue
            message = (
                f"{name} of float16 values overflows beyond 65504 and loses errors below 3e-8: compute it in float32"
            )
            severity = Severity.INFO if source.no_grad(call) else None
            yield source.finding(self, call, message, severity=severity, fix=_fix(source, values, facts))


def _fix(source: SourceFile, values: list[ast.expr], facts: list[Fact]) -> Fix:
    halves = [value for value, fact in zip(values, facts, strict=True) if fact is Fact.HALF]
    casts = tuple(edits.wrap(source, value, "", ".float()") for value in halves)
    return Fix("compute the loss in float32", casts)

"""AMP307: a softmax or cross entropy is computed on float16 values."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import makes_half
from amptune_rules.source._facts import Fact
from amptune_rules.source._formula import op_name, operand
from amptune_rules.source._half_risk import is_cast_up, is_guarded
from amptune_rules.source._losses import loss_calls, may_be_own_loss
from amptune_rules.source._precision import precision

_SOFTMAX = ("softmax", "log_softmax")


class HalfSoftmax(SourceRule):
    """A softmax, log_softmax or cross entropy is computed on float16 values, outside autocast.

    ## What it does
    Flags `softmax`, `log_softmax` (functions, methods and module objects) and `cross_entropy` on values that are
    float16 for certain: after `.half()`, of a model with float16 weights, of a float16 constructor. Autocast runs
    them in float32, and so does `dtype=torch.float32`. Without gradients it is info.

    ## Why is this bad
    A probability below 3e-8 becomes 0, so tokens 18 below the largest logit vanish, and their gradients with them. The
    loss has 11 bits: near 10 its step is 0.008. Sums over a vocabulary of 50,000 terms add to the error.

    ## Example
    ```python
    import torch
    loss = torch.nn.functional.cross_entropy(model(x).half(), target)
    ```

    ## Use instead
    ```python
    import torch
    loss = torch.nn.functional.cross_entropy(model(x).float(), target)
    ```

    ## Fix safety
    Safe: the op is computed in float32; a softmax is rounded back to float16, so that its result keeps its dtype.

    ## References
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html
    - https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-autocast-to-float32
    """

    code = "AMP307"
    name = "half-softmax"
    severity = Severity.WARNING
    keywords = (b".half(", b"torch.float16", b"torch.half", b"import float16", b"import half")
    requires = (b"torch", (b"oftmax", b"cross_entropy", b"CrossEntropy"))

    INVALID = (
        Example(
            "scores cast to half",
            """\
import torch
import torch.nn.functional as F
from torch import nn

normalise = nn.LogSoftmax(dim=-1)

def attend(query, key, value):
    scores = (query @ key.mT).half()
    weights = F.softmax(scores, dim=-1)  # <- AMP307@15
    log_p = scores.log_softmax(-1)  # <- AMP307@13
    return weights @ value, log_p, normalise(scores)  # <- AMP307@36
""",
            fixed="""\
import torch
import torch.nn.functional as F
from torch import nn

normalise = nn.LogSoftmax(dim=-1)

def attend(query, key, value):
    scores = (query @ key.mT).half()
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).half()
    log_p = scores.log_softmax(-1, dtype=torch.float32).half()
    return weights @ value, log_p, normalise(scores)  # <- AMP307@36
""",
        ),
        Example(
            "cross entropy of a model with float16 weights",
            """\
import torch
from torch import nn

model = nn.Linear(8, 3).cuda().half()
criterion = nn.CrossEntropyLoss()

def step(x, y):
    return criterion(model(x), y)  # <- AMP307
""",
            fixed="""\
import torch
from torch import nn

model = nn.Linear(8, 3).cuda().half()
criterion = nn.CrossEntropyLoss()

def step(x, y):
    return criterion(model(x).float(), y)
""",
        ),
        Example(
            "sampling, at severity info",
            """\
import torch

@torch.no_grad()
def sample(logits):
    return torch.multinomial(torch.softmax(logits.to(torch.float16), dim=-1), 1)  # <- AMP307@30
""",
            fixed="""\
import torch

@torch.no_grad()
def sample(logits):
    return torch.multinomial(torch.softmax(logits.to(torch.float16), dim=-1, dtype=torch.float32).half(), 1)
""",
        ),
    )
    VALID = (
        Example(
            "half weights have a loss of their own",
            """\
import torch
from ours import SafeCrossEntropy

class Agent:
    def __init__(self, net, fp16):
        self.net = net.half() if fp16 else net
        if fp16:
            self.criterion = SafeCrossEntropy()
        else:
            self.criterion = torch.nn.CrossEntropyLoss()

    def loss(self, x, y):
        return self.criterion(self.net(x), y)
""",
        ),
        Example(
            "computed in float32",
            """\
import torch
import torch.nn.functional as F

def attend(query, key, value):
    scores = (query @ key.mT).half()
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value + F.softmax(scores.float(), -1)
""",
        ),
        Example(
            "autocast",
            """\
import torch
import torch.nn.functional as F

def loss_of(x, w, y):
    with torch.autocast("cuda", dtype=torch.float16):
        scores = x @ w
        return F.cross_entropy(scores, y) + torch.softmax(scores, dim=-1).mean()
""",
        ),
        Example(
            "precision of the caller",
            """\
import torch

def attend(scores, value, use_half):
    scores = scores.to(value.dtype)
    if use_half:
        value = value.half()
    return torch.softmax(scores, dim=-1) @ value
""",
        ),
        Example(
            "float32 and bfloat16 logits",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    logits = model(x.half()).float()
    return F.cross_entropy(logits, y) + torch.softmax(x.bfloat16(), dim=-1).sum()
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return makes_half(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Softmaxes and cross entropies whose input is float16."""
        for call in source.nodes(ast.Call):
            name = op_name(source, call)
            value = operand(source, call) if name in _SOFTMAX else None
            if value is None or not _is_half(source, call, value) or _names_dtype(source, call):
                continue
            fix = (
                _softmax_fix(source, call) if isinstance(call.func, ast.Attribute) and call.func.attr == name else None
            )
            yield self._finding(source, call, name, fix)
        for call, name, (value, *_) in loss_calls(source):
            if name == "cross_entropy" and _is_half(source, call, value) and not may_be_own_loss(source, call):
                fix = Fix("compute the loss in float32", (edits.wrap(source, value, "", ".float()"),))
                yield self._finding(source, call, name, fix)

    def _finding(self, source: SourceFile, call: ast.Call, name: str, fix: Fix | None) -> Finding:
        message = f"{name} of float16 values: probabilities below 3e-8 become 0; compute it in float32"
        severity = Severity.INFO if source.no_grad(call) else None
        return source.finding(self, call, message, severity=severity, fix=fix)


def _is_half(source: SourceFile, call: ast.Call, value: ast.expr) -> bool:
    return precision(source, value) is Fact.HALF and not is_cast_up(source, call) and not is_guarded(source, call)


def _names_dtype(source: SourceFile, call: ast.Call) -> bool:
    return source.argument(call, "dtype") is not None or source.has_splat(call) or len(call.args) > 2


def _softmax_fix(source: SourceFile, call: ast.Call) -> Fix:
    span = source.span(call)
    added = edits.add_argument(source, call, "dtype=torch.float32")
    back = edits.insert(span.end_line, span.end_column, ".half()")
    return Fix("compute it in float32", (added, back), imports=("import torch",))

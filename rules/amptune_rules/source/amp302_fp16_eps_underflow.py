"""AMP302: an eps that is 0 in float16 guards a division, a logarithm or a root."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import guards_with_tiny_number, has_module, makes_half
from amptune_rules.source._constants import FP16_TINY, number_or_default, shown
from amptune_rules.source._facts import Fact
from amptune_rules.source._formula import op_name, operand, resolved
from amptune_rules.source._half_risk import Chance, Level, Risk, half_risk, is_guarded, is_network_code
from amptune_rules.source._numbers import number_of

_SINKS = ("log", "log2", "log10", "rsqrt", "sqrt", "reciprocal")
_PEELED = frozenset({"sqrt", "unsqueeze", "view", "expand", "reshape", "squeeze", "expand_as", "pow", "rsqrt", "to"})
_CLAMPS = frozenset({"clamp", "clamp_", "clamp_min", "clip", "clamp_min_", "clip_"})
_MAXIMA = frozenset({"max", "maximum"})


@dataclasses.dataclass(frozen=True)
class _Guard:
    """``term + eps`` or ``term.clamp(min=eps)`` where 0 would do harm."""

    node: ast.expr
    term: ast.expr
    eps: float
    sink: str


class Fp16EpsUnderflow(SourceRule):
    """An eps that float16 rounds to 0 guards a division, a logarithm or a root.

    ## What it does
    Flags `x / (y + 1e-8)`, `log(y + 1e-10)`, `rsqrt(y + 1e-12)`, `sqrt` and clamps from below with such a number, also
    through a variable, an attribute or a parameter's default, where y may be float16 at that place. Sums, norms,
    softmax, exp and powers are float32 under CUDA autocast and are left alone there. Info where only the user of the
    code can say whether it runs in float16.

    ## Why is this bad
    The smallest float16 is 6e-8, and all below 3e-8 becomes 0: `y + 1e-8` is y, and the guard is gone. 0 / 0 is NaN,
    log(0) is -inf. The addition is done in the precision of y, also where the logarithm after it runs in float32.
    bfloat16 holds 1e-8.

    ## Example
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        h = torch.matmul(x, w)
        h = h / (h.std(dim=-1, keepdim=True) + 1e-8)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        h = torch.matmul(x, w).float()
        h = h / (h.std(dim=-1, keepdim=True) + 1e-8)
    ```

    ## Fix safety
    No fix: whether to compute in float32 or to use a larger eps, such as `torch.finfo(y.dtype).tiny`, depends on the
    range of y.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html
    """

    code = "AMP302"
    name = "fp16-eps-underflow"
    severity = Severity.WARNING
    keywords = (b"e-", b".tiny", b"0.00000001")
    requires = (b"torch", (b"sqrt", b"log", b"reciprocal", b"/", b"div"))

    INVALID = (
        Example(
            "standardised activations and probabilities under autocast",
            """\
import torch

EPS = 1e-10

def loss_of(model, x, w, y):
    with torch.autocast("cuda", dtype=torch.float16):
        h = torch.matmul(x, w)
        h = (h - h.mean()) / (h.std() + 1e-8)  # <- AMP302@31
        p = torch.sigmoid(h @ w)
        return -(y * torch.log(p + EPS)).mean()  # <- AMP302@32, AMP305
""",
        ),
        Example(
            "clamp of a half tensor, through a variable",
            """\
import torch

def scale(x):
    x = x.half()
    norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-12)  # <- AMP302@12
    return x / norm
""",
        ),
        Example(
            "a layer of a model that trains under autocast in this file",
            """\
import torch
from torch import nn

class Norm(nn.Module):
    def __init__(self, dim, eps=1e-12):
        super().__init__()
        self.eps = eps
        self.fc = nn.Linear(dim, dim)

    def forward(self, x):
        x = self.fc(x)
        var = x.var(-1, keepdim=True)
        return x * torch.rsqrt(var + self.eps)  # <- AMP302@32

model = Norm(8)

def step(x):
    with torch.autocast("cuda", dtype=torch.float16):
        return model(x).abs().mean()
""",
        ),
    )
    VALID = (
        Example(
            "float32 under CUDA autocast",
            """\
import torch

def loss_of(x, w):
    with torch.autocast("cuda", dtype=torch.float16):
        h = x @ w
        unit = h / (h.norm(dim=-1, keepdim=True) + 1e-8)
        p = torch.softmax(h, dim=-1)
        share = h / (h.sum() + 1e-8) + h.exp() / (h.pow(2).mean() + 1e-9)
        return unit, share, torch.clamp(p.sum(), min=1e-8).log()
""",
        ),
        Example(
            "computed in float32",
            """\
import torch

def loss_of(x, w):
    with torch.autocast("cuda", dtype=torch.float16):
        h = (x @ w).float()
        return h / (h.std() + 1e-8)
""",
        ),
        Example(
            "an eps that float16 holds, and bfloat16",
            """\
import torch

def loss_of(x, w):
    with torch.autocast("cuda", dtype=torch.float16):
        h = x @ w
        a = h / (h.std() + 1e-5)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        h = x @ w
        return a + h / (h.std() + 1e-8)
""",
        ),
        Example(
            "numbers, and eps arguments of layers and optimizers",
            """\
import torch
from torch import nn

def make(dim, losses):
    with torch.autocast("cuda", dtype=torch.float16):
        layer = nn.LayerNorm(dim, eps=1e-12)
        optimizer = torch.optim.Adam(layer.parameters(), eps=1e-8)
        return layer, optimizer, sum(losses) / (len(losses) + 1e-8)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return guards_with_tiny_number(data) and (has_module(data) or makes_half(data))

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Guards with an eps under 3e-8, by the precision of what it is added to."""
        seen: set[ast.expr] = set()
        for guard in _guards(source):
            if guard.node in seen or is_guarded(source, guard.node) or _is_optimizer(source, guard.node):
                continue
            seen.add(guard.node)
            risk = half_risk(source, guard.term)
            if risk is None or not _is_worth(source, guard, risk):
                continue
            severity = Severity.INFO if risk.chance is Chance.POSSIBLE else None
            message = _message(source, guard, risk)
            yield source.finding(self, guard.node, message, severity=severity, evidence={"eps": guard.eps})


def _is_worth(source: SourceFile, guard: _Guard, risk: Risk) -> bool:
    """Whether a mere possibility is worth a word: for a value of a network, or of a module that knows float16."""
    if risk.chance is not Chance.POSSIBLE:
        return True
    if not is_network_code(source, guard.node):
        return False
    return risk.fact is Fact.FOLLOWS or (risk.fact is Fact.UNKNOWN and risk.evidence >= Level.MENTIONED)


def _message(source: SourceFile, guard: _Guard, risk: Risk) -> str:
    may = "is" if risk.chance is Chance.CERTAIN else "can be"
    return (
        f"eps {shown(guard.eps)} is 0 in float16 (smallest 6e-8) and guards a {guard.sink}; {_text(source, guard)} "
        f"{may} {risk.why}: compute it in float32, or use torch.finfo(dtype).tiny"
    )


def _text(source: SourceFile, guard: _Guard) -> str:
    text = source.segment(guard.term)
    return text if len(text) <= 40 and "\n" not in text else "the value"


def _guards(source: SourceFile) -> Iterator[_Guard]:
    for quotient in source.nodes(ast.BinOp):
        if isinstance(quotient.op, ast.Div):
            yield from _guard_of(source, quotient.right, "division")
    for call in source.calls("torch.div", "torch.divide", "torch.true_divide"):
        divisor = source.argument(call, "other", 1)
        if divisor is not None:
            yield from _guard_of(source, divisor, "division")
    for call in source.method_calls(*_SINKS):
        if call.args or not source.qualified(call.func):
            value = operand(source, call) if _is_sink(source, call) else None
            if value is not None:
                yield from _guard_of(source, value, "logarithm" if "log" in op_name(source, call) else "root")


def _is_sink(source: SourceFile, call: ast.Call) -> bool:
    names = source.qualified(call.func)
    if names:
        return any(name.startswith(("torch.", "tensorflow.")) for name in names)
    return not call.args and not call.keywords


def _guard_of(source: SourceFile, value: ast.expr, sink: str, depth: int = 0) -> Iterator[_Guard]:
    """The eps in what is divided by, through roots, changes of shape and names."""
    value = resolved(source, value)
    if depth > 4:
        return
    match value:
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            for term, number in ((left, right), (right, left)):
                eps = _small(source, number)
                if eps is not None and number_of(source, term) is None:
                    yield _Guard(value, term, eps, sink)
        case ast.BinOp(op=ast.Pow(), left=left) | ast.BinOp(op=ast.Mult(), left=left, right=ast.Constant()):
            yield from _guard_of(source, left, sink, depth + 1)
        case ast.Call():
            yield from _called(source, value, sink, depth)


def _called(source: SourceFile, call: ast.Call, sink: str, depth: int) -> Iterator[_Guard]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    is_function = any(path.startswith("torch.") for path in source.qualified(call.func))
    if not is_function and (source.qualified(call.func) or not isinstance(call.func, ast.Attribute)):
        return
    value = source.argument(call, "input", 0) if is_function else getattr(call.func, "value", None)
    if not isinstance(value, ast.expr):
        return
    if name in _PEELED:
        yield from _guard_of(source, value, sink, depth + 1)
    elif name in _CLAMPS | _MAXIMA:
        place = "other" if name in _MAXIMA else "min"
        limit = source.argument(call, place, 1 if is_function else 0)
        if isinstance(limit, ast.Call) and limit.args and name in _MAXIMA:
            limit = limit.args[0]
        eps = _small(source, limit)
        if eps is not None:
            yield _Guard(call, value, eps, sink)


def _small(source: SourceFile, node: ast.expr | None) -> float | None:
    """The number, if float16 rounds it to 0."""
    value = number_or_default(source, node)
    return value if value is not None and 0 < value <= FP16_TINY / 2 else None


def _is_optimizer(source: SourceFile, node: ast.AST) -> bool:
    """Whether the node is in an optimizer, whose state is float32."""
    cls = source.class_of(node)
    bases = [source.segment(base) for base in cls.bases] if cls is not None else []
    return any(base.endswith(("Optimizer", "Adam", "AdamW", "SGD")) for base in bases)

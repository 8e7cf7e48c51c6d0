"""AMP313: float16 values are squared before their mean or sum is taken."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import makes_half, mentions_sixteen_bits, squares, squares_before_root
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import Chance, Level, Risk, evidence_at, half_risk, is_guarded, is_network_code
from amptune_rules.source._precision import precision
from amptune_rules.source._reaching import reaching

_ROOTS = frozenset({"sqrt", "rsqrt"})
_KEPT = frozenset({"float", "to", "double", "view", "reshape", "flatten", "unsqueeze", "contiguous"})
_BOUNDED = frozenset(
    {"softmax", "sigmoid", "tanh", "normalize", "clamp", "clip", "cos", "sin", "std", "clamp_", "one_hot", "rand",
     "layer_norm", "log_softmax", "logsigmoid"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Square:
    node: ast.expr
    operands: tuple[ast.expr, ...]  # both for x * x


class SquareBeforeMeanHalf(SourceRule):
    """Values that are float16 are squared, and then averaged or summed.

    ## What it does
    Flags `x.pow(2).mean()`, `(x ** 2).sum()`, `torch.mean(x * x)` and the like on float16 values: a warning where they
    are float16 for certain or under float16 autocast, info for a hand-written RMS norm in a module that keeps the
    precision of its input.

    ## Why is this bad
    The square of 256 is 65536, and the largest float16 is 65504: one activation of 300 makes the mean inf, and what is
    divided by its root 0. Squares of values below 1.7e-4 become 0 as well. CUDA autocast runs `pow` in float32, but
    not `x * x`, and a model with float16 weights has no autocast.

    ## Example
    ```python
    import torch
    def rms(x):
        return x.half().pow(2).mean(-1, keepdim=True).sqrt()
    ```

    ## Use instead
    ```python
    import torch
    def rms(x):
        return x.float().pow(2).mean(-1, keepdim=True).sqrt()
    ```

    ## Fix safety
    Unsafe: the result becomes float32, and what is made of it with it; a norm layer has to cast back to its input's
    dtype.

    ## References
    - https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    """

    code = "AMP313"
    name = "square-before-mean-half"
    severity = Severity.WARNING
    keywords = (b".mean", b".sum")
    requires = (b"torch",)

    INVALID = (
        Example(
            "squares of float16 values",
            """\
import torch

def losses(x, y):
    a = x.half()
    squared = (a - y.half()) ** 2
    total = torch.sum(a.pow(2)) + squared.mean()  # <- AMP313@13, AMP313@35
    return total + (a * a).mean(dim=-1)  # <- AMP313
""",
            fixed="""\
import torch

def losses(x, y):
    a = x.half()
    squared = ((a - y.half()).float()) ** 2
    total = torch.sum(a.float().pow(2)) + squared.mean()
    return total + (a.float() * a.float()).mean(dim=-1)
""",
        ),
        Example(
            "product under autocast, which casts pow but not this",
            """\
import torch

def energy(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        h = torch.matmul(x, x.mT)
        return (h * h).mean()  # <- AMP313
""",
            fixed="""\
import torch

def energy(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        h = torch.matmul(x, x.mT)
        return (h.float() * h.float()).mean()
""",
        ),
        Example(
            "RMS norm in the precision of its input, at severity info",
            """\
import torch
from torch import nn

class Norm(nn.Module):
    def forward(self, x):
        variance = x.pow(2).mean(-1, keepdim=True)  # <- AMP313
        return x * torch.rsqrt(variance + 1e-6)
""",
            fixed="""\
import torch
from torch import nn

class Norm(nn.Module):
    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + 1e-6)
""",
        ),
    )
    VALID = (
        Example(
            "upcast first",
            """\
import torch
from torch import nn

class Norm(nn.Module):
    def forward(self, x):
        x = x.to(torch.float32)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
""",
        ),
        Example(
            "autocast runs pow in float32",
            """\
import torch

def energy(x):
    with torch.autocast("cuda", dtype=torch.float16):
        return torch.matmul(x, x.mT).pow(2).mean()
""",
        ),
        Example(
            "bounded, or scaled before the square",
            """\
import torch

def small(x):
    a = x.half()
    return (a.sigmoid() ** 2).mean() + ((a / 64.0) ** 2).mean() + (a ** 3).mean()
""",
        ),
        Example(
            "float32 script, and bfloat16",
            """\
import torch

def losses(x, y, model):
    loss = ((model(x) - y) ** 2).mean()
    return loss + x.bfloat16().pow(2).mean()
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        if makes_half(data):
            return squares(data)
        widened = b"float32" in data or b".float()" in data  # norms that compute in float32, as most do
        return (not widened or mentions_sixteen_bits(data)) and squares_before_root(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Means and sums of squares."""
        for call in source.method_calls("mean", "sum"):
            square = _square(source, _input(source, call))
            if square is None or is_guarded(source, call) or any(_is_small(source, item) for item in square.operands):
                continue
            risk = half_risk(source, square.node) or _risk_of_norm(source, square)
            severity = _severity(source, call, square, risk) if risk is not None else None
            if risk is None or severity is None:
                continue
            may = "are" if risk.chance is Chance.CERTAIN else "can be"
            text = source.segment(square.operands[0])
            message = f"squares that {may} {risk.why} overflow where a value passes 255: square `{text}` in float32"
            yield source.finding(self, call, message, severity=severity, fix=_fix(source, square))


def _severity(source: SourceFile, call: ast.Call, square: _Square, risk: Risk) -> Severity | None:
    if risk.chance is not Chance.POSSIBLE:
        return Severity.WARNING
    facts = {precision(source, item) for item in square.operands}
    is_norm = is_network_code(source, call) and facts <= {Fact.UNKNOWN, Fact.FOLLOWS} and _has_root(source, call)
    return Severity.INFO if is_norm else None


def _risk_of_norm(source: SourceFile, square: _Square) -> Risk | None:
    """The risk of a power that only autocast runs in float32, in a file that shows no autocast."""
    level = evidence_at(source, square.node).level
    fact = precision(source, square.node)
    is_open = fact in (Fact.PROMOTED, Fact.UNKNOWN) and level in (Level.NONE, Level.MENTIONED)
    return Risk(Chance.POSSIBLE, "float16 in a half model", level, fact) if is_open else None


def _input(source: SourceFile, call: ast.Call) -> ast.expr | None:
    """What is averaged: the receiver of the method, the first argument of the torch function."""
    assert isinstance(call.func, ast.Attribute)
    names = source.qualified(call.func)
    if names:
        return call.args[0] if names[0] in ("torch.mean", "torch.sum") and call.args else None
    return call.func.value


def _square(source: SourceFile, node: ast.expr | None) -> _Square | None:
    """The square that a value is, through one name and through casts, which come too late for it."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _KEPT:
        node = node.func.value
    if isinstance(node, ast.Name):
        bindings = reaching(source, node)
        node = bindings[0].value if len(bindings) == 1 and bindings[0].kind == "assign" else None
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow) and source.number(node.right) == 2:
            return _Square(node, (node.left,))
        if isinstance(node.op, ast.Mult) and ast.dump(node.left) == ast.dump(node.right):
            return _Square(node, (node.left, node.right))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pow", "square"):
        return _called_square(source, node, node.func)
    return None


def _called_square(source: SourceFile, node: ast.Call, func: ast.Attribute) -> _Square | None:
    """``x.pow(2)``, ``torch.pow(x, 2)``, ``x.square()``, ``torch.square(x)``."""
    is_function = bool(source.qualified(func))
    if is_function and not (source.qualified(func)[0].startswith("torch.") and node.args):
        return None
    exponent = source.argument(node, "exponent", 1 if is_function else 0)
    if func.attr == "pow" and source.number(exponent) != 2:
        return None
    return _Square(node, (node.args[0] if is_function else func.value,))


def _is_small(source: SourceFile, node: ast.expr) -> bool:
    """Whether the value is bounded by the op it comes from, or scaled by hand."""
    for leaf in (node, *source.values(node)):
        if isinstance(leaf, ast.BinOp) and isinstance(leaf.op, ast.Div | ast.Mult):
            return True
        if isinstance(leaf, ast.Call):
            name = leaf.func.attr if isinstance(leaf.func, ast.Attribute) else ""
            if name in _BOUNDED:
                return True
        if source.number(leaf) is not None:
            return True
    return False


def _has_root(source: SourceFile, call: ast.Call) -> bool:
    """Whether a square root is taken of the mean, in its own statement or in one that reads its name."""
    statement = source.statement_of(call)
    if _roots_in(source.segment(statement)):
        return True
    function = source.function_of(call)
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name) or function is None:
        return False
    name = statement.targets[0].id
    for root in source.method_calls(*_ROOTS):
        if source.function_of(root) is function and name in source.segment(root):
            return True
    return False


def _roots_in(text: str) -> bool:
    return any(f"{root}(" in text for root in _ROOTS)


def _fix(source: SourceFile, square: _Square) -> Fix:
    """Casts what is squared."""
    changes = tuple(edits.wrap(source, item, "", ".float()") for item in square.operands)
    return Fix("square in float32", changes, Safety.UNSAFE)

"""AMP209: tensors or models are cast to half precision by hand inside an autocast region."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.ops import Autocast
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._models import autocast_class, is_layer_call, is_model

_HALF = frozenset({"float16", "bfloat16"})


class ManualHalfInsideAutocast(SourceRule):
    """An input or a model is cast to half precision by hand inside an autocast region.

    ## What it does
    Flags `.half()`, `.bfloat16()` and `.to(torch.float16)` inside an autocast region, on a model, or on a tensor that
    goes into a model or into an op that autocast casts for.

    ## Why is this bad
    Autocast casts by itself, and only where it is safe. A cast input reaches the ops of the float32 list with 10 bits
    already lost (values above 65504 are infinite); a cast model has float16 parameters, so its updates are lost and
    GradScaler raises "Attempting to unscale FP16 gradients".

    ## Example
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        output = model(images.half())
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        output = model(images)
    ```

    ## Fix safety
    Unsafe: the results change (they get more exact).

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#autocasting
    """

    code = "AMP209"
    name = "manual-half-inside-autocast"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "input of the model",
            """\
import torch

def loss_of(model, images, y, criterion):
    with torch.autocast("cuda", dtype=torch.float16):
        images = images.to("cuda", dtype=torch.float16)  # <- AMP209@18
        return criterion(model(images, y.half()), y)  # <- AMP209@40
""",
            fixed="""\
import torch

def loss_of(model, images, y, criterion):
    with torch.autocast("cuda", dtype=torch.float16):
        images = images.to("cuda")
        return criterion(model(images, y), y)
""",
        ),
        Example(
            "operands and modules in a decorated forward",
            """\
import torch
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    @torch.autocast("cuda")
    def forward(self, x, w):
        x = self.layer(x.to(torch.float16))  # <- AMP209@24
        return F.linear(x.bfloat16(), w) @ w.half()  # <- AMP209@25, AMP209@44
""",
            fixed="""\
import torch
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    @torch.autocast("cuda")
    def forward(self, x, w):
        x = self.layer(x)
        return F.linear(x, w) @ w
""",
        ),
        Example(
            "the model itself",
            """\
import torch

def loss_of(model, x):
    with torch.autocast("cuda"):
        return model.half()(x)  # <- AMP209@16
""",
            fixed="""\
import torch

def loss_of(model, x):
    with torch.autocast("cuda"):
        return model(x)
""",
        ),
    )
    VALID = (
        Example(
            "without autocast, and where it is off",
            """\
import torch

def run(model, x):
    y = model(x.half())
    with torch.autocast("cuda"):
        with torch.autocast("cuda", enabled=False):
            return y + model(x.half())
""",
        ),
        Example(
            "custom kernels do not know autocast",
            """\
import torch
from flash_attn import flash_attn_func

def attend(q, k, v):
    with torch.autocast("cuda"):
        return flash_attn_func(q.half(), k.half(), v.to(torch.float16))
""",
        ),
        Example(
            "result kept in half to save memory",
            """\
import torch

def features_of(model, loader):
    found = []
    with torch.autocast("cuda"):
        for x in loader:
            found.append(model(x).half().cpu())
    return found
""",
        ),
        Example(
            "to float32, and by a variable",
            """\
import torch

def run(model, x, dtype):
    with torch.autocast("cuda"):
        return model(x.float(), x.to(dtype), x.to("cuda"))
""",
        ),
        Example(
            "inference",
            """\
import torch

@torch.no_grad()
def run(model, x):
    with torch.autocast("cuda"):
        return model(x.half())
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Casts to half in a region, by where their results go."""
        for call in source.method_calls("half", "bfloat16", "to", "type"):
            func = call.func
            if not isinstance(func, ast.Attribute) or source.qualified(func):
                continue
            argument = _half_argument(source, call)
            if argument is None and func.attr not in ("half", "bfloat16"):
                continue
            if not source.in_autocast(call) or source.no_grad(call):
                continue
            what = _target(source, call, func.value)
            if what is not None:
                text = source.segment(func)
                message = f"{text}(...) inside autocast casts {what} by hand: autocast does so, where it is safe"
                yield source.finding(self, call, message, fix=_fix(source, call, func.value, argument))


def _half_argument(source: SourceFile, call: ast.Call) -> ast.expr | None:
    """The argument of ``to`` or ``type`` that is a half precision dtype."""
    for value in (*call.args, *(keyword.value for keyword in call.keywords)):
        dtypes = frozenset() if isinstance(source.constant(value), str) else source.dtypes(value)
        if dtypes and dtypes <= _HALF:
            return value
    return None


def _target(source: SourceFile, call: ast.Call, receiver: ast.expr) -> str | None:
    """What the cast is for, in words; None where it may have its reasons."""
    if is_model(source, receiver):
        return "the model"
    if _feeds_network(source, call):
        return "an input"
    target = _assigned_name(source, call)
    uses = [node for node in _later_reads(source, target, call) if source.in_autocast(node)] if target else []
    return "an input" if any(_feeds_network(source, node) for node in uses) else None


def _assigned_name(source: SourceFile, call: ast.Call) -> ast.Name | None:
    """The name that the statement around the call binds to its result."""
    statement = source.statement_of(call)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and call in value.elts:
        position = value.elts.index(call)
        target = target.elts[position] if position < len(target.elts) else target
    elif value is not call:
        return None
    return target if isinstance(target, ast.Name) else None


def _later_reads(source: SourceFile, target: ast.Name, call: ast.Call) -> list[ast.Name]:
    function = source.function_of(call)
    return [
        node
        for node in source.nodes(ast.Name)
        if node.id == target.id
        and isinstance(node.ctx, ast.Load)
        and source.function_of(node) is function
        and (node.lineno, node.col_offset) > (call.end_lineno or 0, call.end_col_offset or 0)
    ]


def _feeds_network(source: SourceFile, node: ast.expr) -> bool:
    """Whether the value is an operand of something that autocast casts for: a module, a matrix product."""
    parent = source.parent(node)
    if isinstance(parent, ast.keyword):
        parent = source.parent(parent)
    if isinstance(parent, ast.BinOp):
        return autocast_class(source, parent) is Autocast.LOWER
    if not isinstance(parent, ast.Call) or parent.func is node:
        return False
    return is_layer_call(source, parent) or autocast_class(source, parent) is Autocast.LOWER


def _fix(source: SourceFile, call: ast.Call, receiver: ast.expr, argument: ast.expr | None) -> Fix:
    if argument is not None and len(call.args) + len(call.keywords) > 1:
        edit = edits.delete_argument(source, call, argument)
    else:
        text = source.segment(receiver)
        plain = isinstance(receiver, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
        edit = edits.replace(source, call, text if plain else f"({text})")
    return Fix("drop the cast", (edit,), Safety.UNSAFE)

"""AMP217: an autocast context is made and thrown away."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile


class AutocastNeverEntered(SourceRule):
    """An autocast context is made, but no with statement enters it.

    ## What it does
    Flags `with autocast(...) and other():`, which enters `other()` alone, and a call of autocast as a statement of its
    own.

    ## Why is this bad
    `and` gives its last operand, since a context manager counts as true. The autocast object is dropped, nothing is
    raised, and the block runs in float32: slower, with twice the memory for activations, and in a decoder or encoder
    of float16 weights with a dtype error. A call on a line of its own has no effect either.

    ## Example
    ```python
    import torch
    with torch.autocast("cuda") and torch.no_grad():
        y = model(x)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda"), torch.no_grad():
        y = model(x)
    ```

    ## Fix safety
    Unsafe: the block then runs in 16 bits, as was meant, so its results change.

    ## References
    - https://docs.python.org/3/reference/compound_stmts.html#the-with-statement
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP217"
    name = "autocast-never-entered"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "two contexts joined by and",
            """\
import torch

def encode(vae, x):
    with torch.autocast("cuda") and torch.no_grad():  # <- AMP217@10
        return vae.encode(x)
""",
            fixed="""\
import torch

def encode(vae, x):
    with torch.autocast("cuda"), torch.no_grad():
        return vae.encode(x)
""",
        ),
        Example(
            "the second of three",
            """\
import torch

def encode(vae, x, guard):
    with torch.no_grad() and torch.autocast("cuda") and guard():  # <- AMP217
        return vae.encode(x)
""",
            fixed="""\
import torch

def encode(vae, x, guard):
    with torch.no_grad(), torch.autocast("cuda"), guard():
        return vae.encode(x)
""",
        ),
        Example(
            "a statement of its own",
            """\
import torch

def train(model, x):
    torch.autocast("cuda", dtype=torch.bfloat16)  # <- AMP217
    return model(x).sum()
""",
        ),
    )
    VALID = (
        Example(
            "two items",
            """\
import torch

def encode(vae, x):
    with torch.no_grad(), torch.autocast("cuda"):
        return vae.encode(x)
""",
        ),
        Example(
            "autocast is the operand that counts",
            """\
import contextlib
import torch

def encode(vae, x, use_amp):
    with use_amp and torch.autocast("cuda") or contextlib.nullcontext():
        return vae.encode(x)
""",
        ),
        Example(
            "entered later, by hand, and a decorated function",
            """\
import torch

def train(model, x, stack):
    stack.enter_context(torch.autocast("cuda"))
    region = torch.autocast("cuda")
    with region:
        return torch.autocast("cuda")(model)(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Operands of ``and`` in a with statement, and lone calls."""
        for node in source.nodes(ast.With):
            for item in node.items:
                lost = [call for call in _dropped(item.context_expr) if self._is_autocast(source, call)]
                if lost and isinstance(item.context_expr, ast.BoolOp):
                    kept = source.segment(item.context_expr.values[-1])
                    message = f"`and` enters {kept} alone, autocast never: separate them by a comma"
                    yield source.finding(self, lost[0], message, fix=_fix(source, item.context_expr))
        for statement in source.nodes(ast.Expr):
            if isinstance(statement.value, ast.Call) and self._is_autocast(source, statement.value):
                message = "this autocast is never entered: put the forward into `with ...:`"
                yield source.finding(self, statement.value, message)

    def _is_autocast(self, source: SourceFile, node: ast.expr) -> bool:
        names = source.qualified(node.func) if isinstance(node, ast.Call) else ()
        return bool(names) and all(name.endswith("amp.autocast") and name.startswith("torch") for name in names)


def _dropped(expression: ast.expr) -> list[ast.expr]:
    """The operands that ``and`` never gives: contexts before the last one, which all count as true."""
    if not isinstance(expression, ast.BoolOp) or not isinstance(expression.op, ast.And):
        return []
    return expression.values[:-1] if isinstance(expression.values[-1], ast.Call) else []


def _fix(source: SourceFile, expression: ast.BoolOp) -> Fix:
    text = ", ".join(source.segment(value) for value in expression.values)
    return Fix("enter them all", (edits.replace(source, expression, text),), safety=Safety.UNSAFE)

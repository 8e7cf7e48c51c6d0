"""AMP206: custom_fwd or custom_bwd on something that is no classic autograd function."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FUNCTIONS, FunctionNode
from amptune.lint.source import SourceFile
from amptune_rules.source._autograd import amp_decorator, bases, is_autograd_function, method


class CustomFwdMisplaced(SourceRule):
    """custom_fwd or custom_bwd decorates a module's forward, a plain function, or a forward without ctx.

    ## What it does
    Flags the two decorators on methods of `nn.Module`, on plain functions, and on autograd functions that have a
    separate `setup_context`.

    ## Why is this bad
    The decorators keep the autocast state on the first argument, which they take for `ctx`. On a module's forward they
    write attributes on the module and cast nothing unless autocast is on; on a plain function they write them on a
    tensor. With `setup_context` the first argument of forward is a tensor, so `custom_bwd` finds no state on `ctx` and
    backward raises AttributeError.

    ## Example
    ```python
    import torch
    class Norm(torch.nn.Module):
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
        def forward(self, x):
            return x / x.norm()
    ```

    ## Use instead
    ```python
    import torch
    class Norm(torch.nn.Module):
        @torch.autocast("cuda", enabled=False)
        def forward(self, x):
            x = x.float()
            return x / x.norm()
    ```

    ## Fix safety
    No fix: which inputs are to be cast is not known.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#autocast-and-custom-autograd-functions
    - https://github.com/pytorch/pytorch/issues/132388
    """

    code = "AMP206"
    name = "custom-fwd-misplaced"
    severity = Severity.WARNING
    keywords = (b"custom_fwd", b"custom_bwd")

    INVALID = (
        Example(
            "on a module",
            """\
import torch
from torch import nn
from torch.amp import custom_fwd

class Base(nn.Module):
    pass

class Norm(Base):
    @custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # <- AMP206@6
    def forward(self, x):
        return x / x.norm()
""",
        ),
        Example(
            "on a plain function",
            """\
import torch

@torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)  # <- AMP206@2
def normalise(x):
    return x / x.norm()
""",
        ),
        Example(
            "with setup_context",
            """\
import torch
from torch.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")  # <- AMP206@6
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * ctx.factor, None
""",
        ),
    )
    VALID = (
        Example(
            "on an autograd function",
            """\
import torch
from torch.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "functions that become the methods of one",
            """\
import torch
from torch.amp import custom_bwd, custom_fwd

@custom_fwd(device_type="cuda")
def _forward(ctx, x):
    return x * 2

@custom_bwd(device_type="cuda")
def _backward(ctx, grad):
    return grad * 2

class Scale(torch.autograd.Function):
    forward = staticmethod(_forward)
    backward = staticmethod(_backward)
""",
        ),
        Example(
            "a base class from another file",
            """\
from torch.amp import custom_bwd, custom_fwd
from .base import Kernel

class Scale(Kernel):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "a decorator that hands on to it",
            """\
import torch

def amp_forward(function):
    return torch.amp.custom_fwd(function, device_type="cuda")
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Decorated functions, by where they stand."""
        for function in source.nodes(ast.FunctionDef):
            found = amp_decorator(source, function) if function.decorator_list else None
            if found is None or not found.qualified:
                continue
            verdict = _misplaced(source, function)
            if verdict is not None:
                what = found.qualified.rpartition(".")[2]
                severity = Severity.INFO if _is_paired(source, function) else Severity.WARNING
                message = f"{what} {verdict}"
                yield source.finding(self, found.node, message, severity=severity)


def _misplaced(source: SourceFile, function: FunctionNode) -> str | None:
    """Why the decorator is wrong here; None where it is right, or cannot be told."""
    parent = source.parent(function)
    instead = "use autocast(enabled=False) and .float() inside"
    if not isinstance(parent, ast.ClassDef):
        if _has_ctx(function) or _is_referred_to_in_class(source, function):
            return None
        return f"on a plain function keeps the autocast state on its first argument: {instead}"
    if is_autograd_function(source, parent):
        if function.name == "forward" and method(parent, "setup_context"):
            return "on a forward without ctx: with setup_context, backward finds no state; take ctx in forward"
        return None
    if any(name == "torch.nn.Module" or name.startswith("torch.nn.") for name in bases(source, parent)):
        return f"on a method of a module is no autograd function's: {instead}"
    return None


def _has_ctx(function: FunctionNode) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return bool(arguments) and arguments[0].arg in ("ctx", "context", "c")


def _is_referred_to_in_class(source: SourceFile, function: FunctionNode) -> bool:
    return any(
        node.id == function.name and source.class_of(node) is not None
        for node in source.nodes(ast.Name)
        if isinstance(node.ctx, ast.Load)
    )


def _is_paired(source: SourceFile, function: FunctionNode) -> bool:
    """Whether a module has both decorators, and so keeps its own state for a hand-written backward."""
    cls = source.parent(function)
    if not isinstance(cls, ast.ClassDef) or is_autograd_function(source, cls):
        return False
    found = [amp_decorator(source, item) for item in cls.body if isinstance(item, FUNCTIONS)]
    return {item.role for item in found if item} == {"forward", "backward"}

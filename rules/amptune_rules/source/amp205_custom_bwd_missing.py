"""AMP205: custom_fwd without custom_bwd, or each on the other's method."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.index import FunctionNode
from amptune.lint.source import SourceFile
from amptune_rules.source._autograd import AmpDecorator, Role, amp_decorator, autograd_functions, hands_on_ctx, method

_NAMES: dict[Role, str] = {"forward": "custom_fwd", "backward": "custom_bwd"}


class CustomBwdMissing(SourceRule):
    """One of forward and backward of a custom autograd function lacks its autocast decorator, or has the other's.

    ## What it does
    Flags a `torch.autograd.Function` whose forward has `custom_fwd` and whose backward has no `custom_bwd`, the
    reverse, and decorators on the wrong method.

    ## Why is this bad
    `custom_fwd` runs forward in the autocast state of its caller; without `custom_bwd`, backward runs with autocast off
    and meets float16 gradients and float32 saved tensors: a matrix product of the two raises a dtype error. With
    `custom_bwd` alone each backward raises AttributeError, because nobody has recorded the state. With `cast_inputs`
    forward runs in one dtype with autocast off, so a missing `custom_bwd` only matters where backward is called inside
    an autocast region: a warning.

    ## Example
    ```python
    import torch
    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda")
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a.mm(b)
        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad.mm(b.t()), a.t().mm(grad)
    ```

    ## Use instead
    ```python
    import torch
    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda")
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a.mm(b)
        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad.mm(b.t()), a.t().mm(grad)
    ```

    ## Fix safety
    Safe: the decorator is the documented partner of the one that is there, with its device.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#autocast-and-custom-autograd-functions
    """

    code = "AMP205"
    name = "custom-bwd-missing"
    severity = Severity.ERROR
    keywords = (b"custom_fwd", b"custom_bwd")

    INVALID = (
        Example(
            "no custom_bwd",
            """\
import torch
from torch.amp import custom_fwd

class Product(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a.mm(b)

    @staticmethod
    def backward(ctx, grad):  # <- AMP205@5
        a, b = ctx.saved_tensors
        return grad.mm(b.t()), a.t().mm(grad)
""",
            fixed="""\
import torch
from torch.amp import custom_fwd
from torch.amp import custom_bwd

class Product(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a.mm(b)

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad.mm(b.t()), a.t().mm(grad)
""",
        ),
        Example(
            "custom_fwd on both",
            """\
import torch

class Scale(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # <- AMP205@6
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import torch

class Scale(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "custom_bwd alone, by aliases",
            """\
import functools
import torch
from torch.autograd import Function

amp_fwd = functools.partial(torch.amp.custom_fwd, device_type="cuda")
amp_bwd = functools.partial(torch.amp.custom_bwd, device_type="cuda")

class Scale(Function):
    @staticmethod
    def forward(ctx, x):  # <- AMP205@5
        return x * 2

    @staticmethod
    @amp_bwd
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import functools
import torch
from torch.autograd import Function

amp_fwd = functools.partial(torch.amp.custom_fwd, device_type="cuda")
amp_bwd = functools.partial(torch.amp.custom_bwd, device_type="cuda")

class Scale(Function):
    @staticmethod
    @amp_fwd
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @amp_bwd
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "with cast_inputs it is a warning",
            """\
import torch
from torch.cuda.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(cast_inputs=torch.float32)  # <- AMP402
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):  # <- AMP205
        return grad * 2
""",
            fixed="""\
import torch
from torch.cuda.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(cast_inputs=torch.float32)
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @custom_bwd
    def backward(ctx, grad):
        return grad * 2
""",
        ),
    )
    VALID = (
        Example(
            "both, with another decorator between",
            """\
import torch
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "forward only",
            """\
import torch

class Nearest(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        return x.round()
""",
        ),
        Example(
            "backward that only refuses",
            """\
import torch

class Nearest(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no gradient")
""",
        ),
        Example(
            "neither",
            """\
import torch

class Scale(torch.autograd.Function):
    # custom_fwd is not needed for one operand
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "the project's own decorators",
            """\
import torch
from .amp import autocast_custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @autocast_custom_bwd
    def backward(ctx, grad):
        return grad * 2
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Custom functions, by the decorators of their two methods."""
        for cls in autograd_functions(source):
            forward, backward = method(cls, "forward"), method(cls, "backward")
            if forward is None or backward is None or method(cls, "setup_context") or _refuses(backward):
                continue
            on_forward, on_backward = amp_decorator(source, forward), amp_decorator(source, backward)
            yield from self._swapped(source, "forward", on_forward)
            yield from self._swapped(source, "backward", on_backward)
            if on_forward and on_forward.qualified and not on_backward and not hands_on_ctx(backward):
                yield self._missing(source, backward, "backward", on_forward)
            if on_backward and on_backward.qualified and not on_forward and not hands_on_ctx(forward):
                yield self._missing(source, forward, "forward", on_backward)

    def _swapped(self, source: SourceFile, place: Role, found: AmpDecorator | None) -> Iterator[Finding]:
        if found is None or found.role == place or not found.qualified:
            return
        message = f"{_NAMES[found.role]} is for {found.role}: {place} needs {_NAMES[place]}"
        text = _partner(source, found, place)
        fix = None
        if text is not None:
            edit = edits.replace(source, found.node, text)
            fix = Fix(f"use {_NAMES[place]}", (edit,), imports=_imports(source, found, place))
        yield source.finding(self, found.node, message, fix=fix)

    def _missing(self, source: SourceFile, function: FunctionNode, place: Role, other: AmpDecorator) -> Finding:
        if place == "backward":
            message = "backward has no custom_bwd, so it runs with autocast off and meets mixed dtypes: add it"
        else:
            message = "forward has no custom_fwd, so custom_bwd finds no recorded state (AttributeError): add it"
        mild = place == "backward" and other.casts_inputs()
        text = _partner(source, other, place)
        fix = None
        if text is not None:
            edit = _decorate(source, function, text)
            fix = Fix(f"add {_NAMES[place]}", (edit,), imports=_imports(source, other, place))
        severity = Severity.WARNING if mild else Severity.ERROR
        return source.finding(self, function, message, severity=severity, fix=fix)


def _refuses(function: FunctionNode) -> bool:
    """Whether the function does nothing but raise, docstring aside."""
    return isinstance(function.body[-1], ast.Raise) and len(function.body) <= 2


def _partner(source: SourceFile, found: AmpDecorator, place: Role) -> str | None:
    """The decorator text for ``place`` in the words of the one found on the other method."""
    spelling = source.segment(found.func)
    if found.role == place:
        return None
    old, new = ("fwd", "bwd") if place == "backward" else ("bwd", "fwd")
    if isinstance(found.func, ast.Attribute):
        name = f"{source.segment(found.func.value)}.{_NAMES[place]}"
    elif spelling in _NAMES.values():
        name = _NAMES[place]
    else:
        name = spelling.replace(old, new)
        if name == spelling or not source.scopes.lookup(name, source.tree):
            return None
    keywords = found.node.keywords if isinstance(found.node, ast.Call) else []
    kept = [source.segment(keyword) for keyword in keywords if keyword.arg == "device_type"]
    return f"{name}({', '.join(kept)})" if kept else name


def _imports(source: SourceFile, found: AmpDecorator, place: Role) -> tuple[str, ...]:
    """The import that the partner needs when it is a plain name that the file has not bound."""
    if source.segment(found.func) not in _NAMES.values() or source.scopes.lookup(_NAMES[place], source.tree):
        return ()
    return (f"from {found.qualified.rpartition('.')[0]} import {_NAMES[place]}",)


def _decorate(source: SourceFile, function: FunctionNode, text: str) -> Edit:
    """Insert a decorator right above the ``def``."""
    indent = source.lines[function.lineno - 1][: function.col_offset]
    return edits.insert(function.lineno, 1, f"{indent}@{text}{source.newline}")

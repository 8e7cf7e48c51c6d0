"""AMP204: a custom autograd function that does not say what it does under autocast."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.index import FunctionNode
from amptune.lint.source import SourceFile
from amptune_rules.source._autograd import (
    CASTS,
    amp_decorator,
    autograd_functions,
    hands_on_ctx,
    method,
    minds_dtypes,
    multiplies,
    multiplies_inputs,
)
from amptune_rules.source._native import native_call


class CustomFunctionWithoutCustomFwd(SourceRule):
    """A custom autograd function calls an extension, or multiplies matrices, without custom_fwd and custom_bwd.

    ## What it does
    Looks at each `torch.autograd.Function` without `custom_fwd` that hands two or more of its tensors to a compiled
    extension or Triton kernel, or that multiplies its inputs in forward, and matrices in backward. In a file that uses
    autocast or 16-bit dtypes an extension is a warning, elsewhere info; products are only looked at in files with
    autocast. Functions that cast, or look at dtypes themselves, are left alone.

    ## Why is this bad
    Autocast casts for torch's own operators only. An extension gets whatever dtypes its inputs have, say float16
    activations with float32 weights, and raises, or reads one as the other. A matrix product in forward gives float16
    and saves float32 tensors; backward runs without autocast, gets the float16 gradient, and its product of the two
    raises "expected m1 and m2 to have the same dtype".

    ## Example
    ```python
    import torch
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a.mm(b)
        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad.mm(b.t()), a.t().mm(grad)
    with torch.autocast("cuda"):
        y = Product.apply(x, w)
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
    with torch.autocast("cuda"):
        y = Product.apply(x, w)
    ```

    ## Fix safety
    Unsafe: an extension is given float32 inputs (`cast_inputs=torch.float32`), which is right but slower where its
    kernels take half precision as well.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#autocast-and-custom-autograd-functions
    """

    code = "AMP204"
    name = "custom-function-without-custom-fwd"
    severity = Severity.WARNING
    keywords = (b"autograd.Function", b"autograd import Function", b"autograd.function import")

    INVALID = (
        Example(
            "matrix products in both directions",
            """\
import torch
from torch.autograd import Function

class Product(Function):  # <- AMP204@1
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad @ b.t(), torch.matmul(a.t(), grad)

def run(x, w):
    with torch.autocast("cuda"):
        return Product.apply(x, w)
""",
            fixed="""\
import torch
from torch.autograd import Function

class Product(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad @ b.t(), torch.matmul(a.t(), grad)

def run(x, w):
    with torch.autocast("cuda"):
        return Product.apply(x, w)
""",
        ),
        Example(
            "extension module, at severity info without a sign of mixed precision",
            """\
import torch
import embedding_dot_cuda

class Dot(torch.autograd.Function):  # <- AMP204
    @staticmethod
    def forward(ctx, left, right, indices):
        ctx.save_for_backward(left, right, indices)
        return embedding_dot_cuda.forward(left.contiguous(), right, indices)

    @staticmethod
    def backward(ctx, grad):
        return embedding_dot_cuda.backward(grad, *ctx.saved_tensors)
""",
            fixed="""\
import torch
import embedding_dot_cuda

class Dot(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, left, right, indices):
        ctx.save_for_backward(left, right, indices)
        return embedding_dot_cuda.forward(left.contiguous(), right, indices)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return embedding_dot_cuda.backward(grad, *ctx.saved_tensors)
""",
        ),
        Example(
            "extension compiled here",
            """\
import torch
from torch.utils.cpp_extension import load

native = load(name="pade", sources=["pade.cu"])

class Pade(torch.autograd.Function):  # <- AMP204
    @staticmethod
    def forward(ctx, x, a, b):
        x = x.contiguous()
        ctx.save_for_backward(x, a, b)
        return native.forward(x, a, b)

    @staticmethod
    def backward(ctx, grad):
        return native.backward(grad, *ctx.saved_tensors)

@torch.autocast("cuda")
def run(x, a, b):
    return Pade.apply(x, a, b)
""",
            fixed="""\
import torch
from torch.utils.cpp_extension import load

native = load(name="pade", sources=["pade.cu"])

class Pade(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x, a, b):
        x = x.contiguous()
        ctx.save_for_backward(x, a, b)
        return native.forward(x, a, b)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return native.backward(grad, *ctx.saved_tensors)

@torch.autocast("cuda")
def run(x, a, b):
    return Pade.apply(x, a, b)
""",
        ),
    )
    VALID = (
        Example(
            "decorated",
            """\
import torch
import dot_cuda

class Dot(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return dot_cuda.forward(left, right)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return dot_cuda.backward(grad, *ctx.saved_tensors)
""",
        ),
        Example(
            "any dtype will do",
            """\
import torch

class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.factor * grad, None

@torch.autocast("cuda")
def run(x):
    return Reverse.apply(x, 0.1)
""",
        ),
        Example(
            "one tensor, whatever its dtype",
            """\
import torch
import relu_cuda

class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return relu_cuda.forward(x)

    @staticmethod
    def backward(ctx, grad):
        return relu_cuda.backward(grad, *ctx.saved_tensors)

@torch.autocast("cuda")
def run(x):
    return Relu.apply(x)
""",
        ),
        Example(
            "casts by itself",
            """\
import torch
import dot_cuda

class Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left, right):
        right = right.to(left.dtype)
        ctx.save_for_backward(left, right)
        return dot_cuda.forward(left, right)

    @staticmethod
    def backward(ctx, grad):
        return dot_cuda.backward(grad, *ctx.saved_tensors)
""",
        ),
        Example(
            "the caller casts",
            """\
import torch
import dot_cuda

class Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return dot_cuda.forward(left, right)

    @staticmethod
    def backward(ctx, grad):
        return dot_cuda.backward(grad, *ctx.saved_tensors)

@torch.autocast("cuda")
def run(left, right):
    return Dot.apply(left.float(), right.float())
""",
        ),
        Example(
            "matrix products in a file without mixed precision",
            """\
import torch

class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return grad @ b.t(), a.t() @ grad
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Undecorated functions that depend on the dtypes of several tensors."""
        for cls in autograd_functions(source):
            forward, backward = method(cls, "forward"), method(cls, "backward")
            if forward is None or backward is None or method(cls, "setup_context") or _gives_nothing(backward):
                continue
            if amp_decorator(source, forward) or amp_decorator(source, backward) or hands_on_ctx(forward):
                continue
            if minds_dtypes(forward) or minds_dtypes(backward) or _caller_casts(source, cls):
                continue
            native = native_call(source, forward)
            if native is not None:
                what = f"hands several tensors to {source.segment(native.func)}, which autocast does not cast"
                severity = Severity.WARNING if _uses_half(source) else Severity.INFO
            elif _uses_autocast(source) and multiplies_inputs(forward) and multiplies(backward):
                what = "multiplies matrices in forward and backward, where their dtypes differ under autocast"
                severity = Severity.WARNING
            else:
                continue
            message = f"{cls.name} {what}: decorate it with custom_fwd and custom_bwd"
            fix = _fix(source, forward, backward, casts=native is not None)
            yield source.finding(self, cls, message, severity=severity, fix=fix)


def _gives_nothing(backward: FunctionNode) -> bool:
    """Whether backward only refuses, or only returns None."""
    last = backward.body[-1]
    if isinstance(last, ast.Raise):
        return True
    if not isinstance(last, ast.Return) or len(backward.body) > 2:
        return False
    values = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    return all(value is None or isinstance(value, ast.Constant) for value in values)


def _caller_casts(source: SourceFile, cls: ast.ClassDef) -> bool:
    """Whether the file's own calls of ``apply`` cast their arguments, or run with autocast off."""
    for call in source.method_calls("apply"):
        func = call.func
        if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Name) or func.value.id != cls.name:
            continue
        region = source.autocast(call)
        if region is not None and region.enabled is False:
            return True
        parts = [node for arg in call.args for leaf in (arg, *source.values(arg)) for node in ast.walk(leaf)]
        if any(isinstance(node, ast.Attribute) and (node.attr in CASTS or node.attr == "to") for node in parts):
            return True
    return False


def _uses_autocast(source: SourceFile) -> bool:
    return bool(source.region_stacks.autocasts() or source.kinds.scaler_constructors())


def _uses_half(source: SourceFile) -> bool:
    if _uses_autocast(source) or source.method_calls("half", "bfloat16"):
        return True
    return bool(source.references("torch.float16", "torch.bfloat16"))


def _fix(source: SourceFile, forward: FunctionNode, backward: FunctionNode, *, casts: bool) -> Fix:
    given = ", cast_inputs=torch.float32" if casts else ""
    on_forward = f'torch.amp.custom_fwd(device_type="cuda"{given})'
    texts = {forward: on_forward, backward: 'torch.amp.custom_bwd(device_type="cuda")'}
    changes = tuple(
        edits.insert(item.lineno, 1, f"{source.lines[item.lineno - 1][: item.col_offset]}@{text}{source.newline}")
        for item, text in texts.items()
    )
    return Fix("decorate forward and backward", changes, Safety.UNSAFE, ("import torch",))

"""AMP214: torch.compile decides at compile time whether the backward runs under autocast."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FUNCTIONS, FunctionNode
from amptune.lint.source import SourceFile

_COMPILE = "torch.compile"
_SETTING = "backward_pass_autocast"


class CompileAutocastBackward(SourceRule):
    """A compiled function mixes autocast with a backward that runs outside of it.

    ## What it does
    Flags `torch.compile` of a model with an `autocast(enabled=False)` part that is called in a region (warning), and of
    a step function that holds both an autocast region and a backward after it (information). Files that set
    `torch._functorch.config.backward_pass_autocast` are left alone.

    ## Why is this bad
    In eager mode the backward uses the dtypes of the forward. `torch.compile` traces the backward when it compiles the
    forward, and by default takes it to run under the autocast state that was on around the compiled function. So a
    float32 part of a compiled model that is called inside a region gets its gradients in 16 bits, silently; and what a
    compiled step function does depends on where its graph breaks.

    ## Example
    ```python
    import torch
    @torch.compile
    def step(model, x, y):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        loss.backward()
    ```

    ## Use instead
    ```python
    import torch
    torch._functorch.config.backward_pass_autocast = "off"
    @torch.compile
    def step(model, x, y):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        loss.backward()
    ```

    ## Fix safety
    No fix: the setting holds for the whole process.

    ## References
    - https://docs.pytorch.org/docs/main/user_guide/torch_compiler/torch.compiler_backward.html
    """

    code = "AMP214"
    name = "compile-autocast-backward"
    severity = Severity.WARNING
    keywords = (b"autocast",)
    requires = (b"autocast", b".backward(")

    INVALID = (
        Example(
            "compiled step by name",
            """\
import torch

def step(model, scaler, x):
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x)
    scaler.scale(loss).backward()

fast_step = torch.compile(step, mode="reduce-overhead")  # <- AMP214@13
""",
        ),
        Example(
            "float32 part in a compiled model",
            """\
import torch
from torch import nn

class Router(nn.Module):
    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            return self.gate(x.float())

def train(loader):
    model = torch.compile(Router())  # <- AMP214@13
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x).sum()
        loss.backward()
""",
        ),
    )
    VALID = (
        Example(
            "only the model is compiled",
            """\
import torch

def train(model, loader):
    model = torch.compile(model)
    for x in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        loss.backward()
""",
        ),
        Example(
            "told what the backward runs under",
            """\
import torch
import torch._functorch.config

torch._functorch.config.backward_pass_autocast = "off"

@torch.compile
def step(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    loss.backward()
""",
        ),
        Example(
            "no autocast, or no backward, in the compiled function",
            """\
import torch

@torch.compile
def plain(model, x):
    model(x).backward()

@torch.compile
def forward(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
        Example(
            "float32 part, called without autocast",
            """\
import torch
from torch import nn

class Router(nn.Module):
    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            return self.gate(x.float())

def train(loader):
    model = torch.compile(Router())
    for x in loader:
        model(x).sum().backward()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Compiled functions and models of the file."""
        if any(node.attr == _SETTING for node in source.nodes(ast.Attribute)):
            return
        for place, function in _compiled_functions(source):
            if _has_region(source, function, enabled=True) and _has_backward(source, function):
                message = (
                    f"{function.name} is compiled with autocast and backward in it: compile the model alone, or set "
                    "torch._functorch.config.backward_pass_autocast"
                )
                yield source.finding(self, place, message, severity=Severity.INFO)
        for call in source.calls(_COMPILE):
            part = _float32_part(source, call)
            if part is not None and _is_called_in_autocast(source, call) and not _runs_no_backward(source):
                message = (
                    f"the backward of {part.name}'s autocast(enabled=False) part is compiled under autocast and runs "
                    'in half precision: set torch._functorch.config.backward_pass_autocast = "off"'
                )
                yield source.finding(self, call, message)


def _compiled_functions(source: SourceFile) -> Iterator[tuple[ast.expr, FunctionNode]]:
    """Functions of the file that are compiled, each with the place that says so."""
    for call in source.calls(_COMPILE):
        if call.args and isinstance(call.args[0], ast.Name | ast.Attribute):
            function = source.definition(call.args[0])
            if function is not None:
                yield call, function
    for decorated in source.nodes(ast.FunctionDef):
        for decorator in decorated.decorator_list:
            func = decorator.func if isinstance(decorator, ast.Call) else decorator
            if _COMPILE in source.qualified(func):
                yield decorator, decorated


def _has_region(source: SourceFile, function: FunctionNode, *, enabled: bool) -> bool:
    """Whether the function opens an autocast region that is not off; with ``enabled=False``, one that is off."""
    return any(
        (region.enabled is not False) is enabled and source.function_of(region.call) is function
        for region in source.region_stacks.autocasts()
    )


def _has_backward(source: SourceFile, function: FunctionNode) -> bool:
    """Whether the function calls backward, outside of a region (inside one it is AMP201's)."""
    return any(
        source.function_of(call) is function and source.autocast(call) is None
        for call in source.method_calls("backward")
    )


def _float32_part(source: SourceFile, call: ast.Call) -> FunctionNode | None:
    """The method or function with a switched off region that a ``torch.compile`` call compiles."""
    if not call.args:
        return None
    for leaf in source.values(call.args[0]):
        maker = leaf.func if isinstance(leaf, ast.Call) else leaf
        for binding in source.bindings(maker):
            if isinstance(binding.node, FUNCTIONS) and _has_region(source, binding.node, enabled=False):
                return binding.node
            methods = binding.node.body if isinstance(binding.node, ast.ClassDef) else []
            for method in methods:
                if isinstance(method, FUNCTIONS) and _has_region(source, method, enabled=False):
                    return method
    return None


def _is_called_in_autocast(source: SourceFile, compiled: ast.Call) -> bool:
    return any(
        source.in_autocast(call) and not source.no_grad(call) and compiled in source.values(call.func)
        for call in source.nodes(ast.Call)
        if isinstance(call.func, ast.Name | ast.Attribute)
    )


def _runs_no_backward(source: SourceFile) -> bool:
    return not source.method_calls("backward", "manual_backward")

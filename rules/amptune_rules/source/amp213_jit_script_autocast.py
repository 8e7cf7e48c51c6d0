"""AMP213: TorchScript and eager autocast used together."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile

_COMPILERS = ("torch.jit.script", "torch.jit.trace", "torch.jit.trace_module")
_HANDLED = "_jit_set_autocast_mode"


class JitScriptAutocast(SourceRule):
    """A scripted or traced module is used under eager autocast.

    ## What it does
    Flags `torch.jit.script` and `torch.jit.trace` where they are called inside an autocast region, where their result
    is called inside one, and where the scripted function is called inside one.

    ## Why is this bad
    TorchScript has its own autocast pass, which fuses with the eager state in ways that are not supported: a traced
    graph keeps the casts, and even the cached half weights, of the region it was traced in, and a scripted one may cast
    twice or not at all (the documentation lists it as unsupported). `torch.compile` has none of this.

    ## Example
    ```python
    import torch
    scripted = torch.jit.script(model)
    with torch.autocast("cuda"):
        output = scripted(x)
    ```

    ## Use instead
    ```python
    import torch
    compiled = torch.compile(model)
    with torch.autocast("cuda"):
        output = compiled(x)
    ```

    ## Fix safety
    No fix: a module that is scripted for export has to stay so. Switch the pass off with
    `torch._C._jit_set_autocast_mode(False)`, and trace with `cache_enabled=False`.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    - https://github.com/pytorch/pytorch/issues/75956
    """

    code = "AMP213"
    name = "jit-script-autocast"
    severity = Severity.INFO
    keywords = (b"autocast",)
    requires = (b"autocast",)

    INVALID = (
        Example(
            "scripted module called in a region",
            """\
import torch

class Runner:
    def __init__(self, model):
        self.model = torch.jit.script(model)  # <- AMP213@22

    def run(self, x):
        with torch.autocast("cuda"):
            return self.model(x)
""",
        ),
        Example(
            "traced in a region",
            """\
import torch

def export(model, x):
    with torch.autocast("cuda"):
        return torch.jit.trace(model, x)  # <- AMP213@16
""",
        ),
        Example(
            "scripted function",
            """\
import torch

@torch.jit.script  # <- AMP213@2
def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / 1.41421))

def run(layer, x):
    with torch.autocast("cuda"):
        return gelu(layer(x))
""",
        ),
    )
    VALID = (
        Example(
            "scripted for export only",
            """\
import torch

def step(model, x):
    with torch.autocast("cuda"):
        return model(x)

def export(model, path):
    torch.jit.script(model).save(path)
""",
        ),
        Example(
            "the pass is switched off",
            """\
import torch

torch._C._jit_set_autocast_mode(False)

def export(model, x):
    with torch.autocast("cuda", cache_enabled=False):
        return torch.jit.trace(model, x)
""",
        ),
        Example(
            "region that is off",
            """\
import torch

def export(model, x):
    with torch.autocast("cuda", enabled=False):
        return torch.jit.trace(model, x)
""",
        ),
        Example(
            "compiled",
            """\
import torch

def run(model, x):
    compiled = torch.compile(model)
    with torch.autocast("cuda"):
        return compiled(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of the TorchScript compilers, by the regions of what they make."""
        if any(node.attr == _HANDLED for node in source.nodes(ast.Attribute)):
            return
        made = source.calls(*_COMPILERS)
        called = _called_in_autocast(source) if made or source.references(*_COMPILERS) else []
        for call in made:
            if source.in_autocast(call):
                yield source.finding(
                    self, call, "TorchScript compiles inside autocast and keeps its casts: do it outside"
                )
            elif any(call in source.values(other.func) for other in called):
                yield source.finding(
                    self, call, "its result runs under eager autocast, which TorchScript does not support"
                )
        for use in source.references(*_COMPILERS):
            function = source.parent(use)
            if not isinstance(function, ast.FunctionDef) or use not in function.decorator_list:
                continue
            if any(source.definition(other.func) is function for other in called):
                message = f"{function.name} is TorchScript and runs under eager autocast, which is not supported"
                yield source.finding(self, use, message)


def _called_in_autocast(source: SourceFile) -> list[ast.Call]:
    return [
        call
        for call in source.nodes(ast.Call)
        if isinstance(call.func, ast.Name | ast.Attribute) and source.in_autocast(call)
    ]

"""AMP207: torch.amp.autocast without the device type it needs."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile

_AUTOCAST = "torch.amp.autocast"
_CUDA_AUTOCAST = "torch.cuda.amp.autocast"


class AutocastMissingDeviceType(SourceRule):
    """torch.amp.autocast is called without its device type.

    ## What it does
    Flags `torch.amp.autocast()` and `torch.autocast(...)` calls that give no `device_type`, and the class itself used
    as a decorator or context manager without a call.

    ## Why is this bad
    It raises TypeError: "missing 1 required positional argument: 'device_type'". Only the old `torch.cuda.amp.autocast`
    and `torch.cpu.amp.autocast` know their device; the mistake comes from changing their import alone.

    ## Example
    ```python
    import torch
    with torch.autocast(dtype=torch.bfloat16):
        loss = model(x)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    ```

    ## Fix safety
    Unsafe: `"cuda"` is a guess; the code may be meant for another device.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP207"
    name = "autocast-missing-device-type"
    severity = Severity.ERROR
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "no argument, and keywords alone",
            """\
import torch

def loss_of(model, x, use_amp):
    with torch.amp.autocast():  # <- AMP207@10
        a = model(x)
    with torch.autocast(dtype=torch.bfloat16, enabled=use_amp):  # <- AMP207@10
        return a + model(x)
""",
            fixed="""\
import torch

def loss_of(model, x, use_amp):
    with torch.amp.autocast("cuda"):
        a = model(x)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=use_amp):
        return a + model(x)
""",
        ),
        Example(
            "changed import",
            """\
from torch.amp import autocast

@autocast()  # <- AMP207@2
def loss_of(model, x):
    return model(x)
""",
            fixed="""\
from torch.amp import autocast

@autocast("cuda")
def loss_of(model, x):
    return model(x)
""",
        ),
        Example(
            "class instead of an object",
            """\
import torch

@torch.autocast  # <- AMP207@2
def loss_of(model, x):
    with torch.amp.autocast:  # <- AMP207@10
        return model(x)
""",
            fixed="""\
import torch

@torch.autocast("cuda")
def loss_of(model, x):
    with torch.amp.autocast("cuda"):
        return model(x)
""",
        ),
    )
    VALID = (
        Example(
            "device by position, by keyword, at run time",
            """\
import torch

def loss_of(model, x):
    with torch.autocast("cuda"), torch.amp.autocast(device_type="cpu"), torch.autocast(x.device.type):
        return model(x)
""",
        ),
        Example(
            "the old class knows its device",
            """\
from torch.cuda.amp import autocast

def loss_of(model, x):
    with autocast(enabled=True):  # <- AMP401
        return model(x)
""",
        ),
        Example(
            "arguments that cannot be seen",
            """\
import torch

def loss_of(model, x, options, arguments):
    with torch.autocast(**options), torch.amp.autocast(*arguments):
        return model(x)
""",
        ),
        Example(
            "either class, by what can be imported",
            """\
try:
    from torch.cuda.amp import autocast
except ImportError:
    from torch.amp import autocast

def loss_of(model, x):
    with autocast():
        return model(x)
""",
        ),
        Example(
            "another library's autocast, and a partial",
            """\
from functools import partial
import torch

amp = partial(torch.autocast, device_type="cuda")

def loss_of(model, accelerator, x):
    with accelerator.autocast(), amp():
        return model(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls without a device, and the class where an object is needed."""
        for call in source.calls(_AUTOCAST):
            if source.qualified(call.func) != (_AUTOCAST,) or source.has_splat(call):
                continue
            named_device = any(keyword.arg == "device" for keyword in call.keywords)  # a misspelling: AMP208
            if source.argument(call, "device_type", 0) is None and not named_device:
                message = 'autocast without device_type raises TypeError: say torch.autocast("cuda", ...)'
                add = edits.add_argument(source, call, '"cuda"', first=True)
                yield source.finding(self, call, message, fix=Fix('add "cuda"', (add,), Safety.UNSAFE))
        for use in source.references(_AUTOCAST, _CUDA_AUTOCAST):
            names = source.qualified(use)
            if names in ((_AUTOCAST,), (_CUDA_AUTOCAST,)) and _needs_object(source, use):
                given = '("cuda")' if names == (_AUTOCAST,) else "()"
                message = f"autocast is a class: call it, autocast{given}"
                fix = Fix(f"call it with {given}", (edits.wrap(source, use, "", given),), Safety.UNSAFE)
                yield source.finding(self, use, message, fix=fix)


def _needs_object(source: SourceFile, use: ast.expr) -> bool:
    parent = source.parent(use)
    if isinstance(parent, ast.withitem):
        return parent.context_expr is use
    return isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) and use in parent.decorator_list

"""AMP406: autocast state functions with the device in their names, deprecated since torch 2.4."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import certain_uses

# Old name -> (new name, device to put first).
_REPLACEMENTS = {
    f"torch.{old}": (f"torch.{new}", device)
    for device, word in (("cuda", "gpu"), ("cpu", "cpu"), ("xla", "xla"), ("ipu", "ipu"))
    for old, new in (
        (f"is_autocast_{word}_enabled", "is_autocast_enabled"),
        (f"set_autocast_{word}_enabled", "set_autocast_enabled"),
        (f"get_autocast_{word}_dtype", "get_autocast_dtype"),
        (f"set_autocast_{word}_dtype", "set_autocast_dtype"),
    )
    if old not in ("is_autocast_gpu_enabled", "set_autocast_gpu_enabled")  # never existed
}


class DeprecatedAutocastGetter(SourceRule):
    """An autocast state function that has the device in its name is used.

    ## What it does
    Flags `torch.is_autocast_cpu_enabled`, `torch.get_autocast_gpu_dtype`, `torch.set_autocast_cpu_dtype` and the like
    for gpu, cpu, xla and ipu, unless they are the branch for old versions of torch.

    ## Why is this bad
    Each call has raised a DeprecationWarning since torch 2.4. And code that asks for the GPU's dtype by name gives the
    wrong answer, float16, on every other device.

    ## Example
    ```python
    import torch
    dtype = torch.get_autocast_gpu_dtype()
    ```

    ## Use instead
    ```python
    import torch
    dtype = torch.get_autocast_dtype("cuda")
    ```

    ## Fix safety
    Safe on torch 2.4 and newer: the same function, with the device as its first argument.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html
    """

    code = "AMP406"
    name = "deprecated-autocast-getter"
    severity = Severity.WARNING
    keywords = tuple(f"autocast_{word}".encode() for word in ("gpu_dtype", "cpu_dtype", "cpu_enabled", "xla_", "ipu_"))

    INVALID = (
        Example(
            "getters and setters",
            """\
import torch

def state():
    torch.set_autocast_cpu_dtype(torch.float16)  # <- AMP406@5
    return torch.is_autocast_cpu_enabled(), torch.get_autocast_gpu_dtype()  # <- AMP406@12, AMP406@45
""",
            fixed="""\
import torch

def state():
    torch.set_autocast_dtype("cpu", torch.float16)
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cuda")
""",
        ),
        Example(
            "alias of the module",
            """\
import torch as th

def cast(x):
    return x.to(th.get_autocast_gpu_dtype()) if th.is_autocast_enabled() else x  # <- AMP406@17
""",
            fixed="""\
import torch as th

def cast(x):
    return x.to(th.get_autocast_dtype("cuda")) if th.is_autocast_enabled() else x
""",
        ),
        Example(
            "imported by name, and handed on",
            """\
import torch
from torch import get_autocast_gpu_dtype

dtype = get_autocast_gpu_dtype()  # <- AMP406
getter = torch.get_autocast_cpu_dtype  # <- AMP406
""",
        ),
    )
    VALID = (
        Example(
            "the new form, and the one without a device",
            """\
import torch

def state():
    return torch.is_autocast_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cuda")
""",
        ),
        Example(
            "the branch for old versions",
            """\
import torch

def dtype():
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype("cuda")
    return torch.get_autocast_gpu_dtype()
""",
        ),
        Example(
            "old when the new one is missing",
            """\
import torch

try:
    dtype = torch.get_autocast_dtype("cuda")
except AttributeError:
    dtype = torch.get_autocast_gpu_dtype()
""",
        ),
        Example(
            "another library's function",
            """\
import mylib

dtype = mylib.get_autocast_gpu_dtype()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of the old names."""
        for use in certain_uses(source, _REPLACEMENTS):
            old = source.qualified(use)[0]
            new, device = _REPLACEMENTS[old]
            message = f'{old} is deprecated since torch 2.4: use {new}("{device}"{", ..." if ".set_" in new else ""})'
            yield source.finding(self, use, message, fix=_fix(source, use, new, device))


def _fix(source: SourceFile, use: ast.expr, new: str, device: str) -> Fix | None:
    call = source.parent(use)
    if not isinstance(call, ast.Call) or call.func is not use or not isinstance(use, ast.Attribute):
        return None
    if source.qualified(use.value) != ("torch",):
        return None
    spelling = f"{source.segment(use.value)}.{new.removeprefix('torch.')}"
    changes: tuple[Edit, ...] = (
        edits.replace(source, use, spelling),
        edits.add_argument(source, call, f'"{device}"', first=True),
    )
    return Fix("name the device", changes)

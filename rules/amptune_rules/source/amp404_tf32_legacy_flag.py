"""AMP404: allow_tf32, which torch 2.9 replaced by fp32_precision."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.fold import UNKNOWN
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import is_version_guarded
from amptune_rules.source._tf32 import legacy_flags, new_settings, written_value


class Tf32LegacyFlag(SourceRule):
    """TF32 is switched by allow_tf32, the flag that torch 2.9 replaced.

    ## What it does
    Flags `torch.backends.cuda.matmul.allow_tf32` and `torch.backends.cudnn.allow_tf32`, unless they are the branch for
    old versions of torch.

    ## Why is this bad
    Since torch 2.9 TF32 is set by `fp32_precision`, one string for each backend and op. The flag still works, but is
    announced for removal, and a program (or a library in it) that sets both kinds gets a RuntimeError when the flag is
    read.

    ## Example
    ```python
    import torch
    torch.backends.cuda.matmul.allow_tf32 = True
    ```

    ## Use instead
    ```python
    import torch
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    ```

    ## Fix safety
    Unsafe: `fp32_precision` does not exist before torch 2.9, and a library that reads the flag afterwards gets a
    RuntimeError. All settings of the file are changed together; none, when the file also reads the flag.

    ## References
    - https://docs.pytorch.org/docs/main/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    """

    code = "AMP404"
    name = "tf32-legacy-flag"
    severity = Severity.INFO
    keywords = (b"allow_tf32",)

    INVALID = (
        Example(
            "both backends",
            """\
import torch

torch.backends.cuda.matmul.allow_tf32 = True  # <- AMP404@1
torch.backends.cudnn.allow_tf32 = False  # <- AMP404@1
""",
            fixed="""\
import torch

torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.fp32_precision = "ieee"
""",
        ),
        Example(
            "set by an option, through an alias, for GPUs that have it",
            """\
import torch
from torch.backends import cuda as cuda_backend

def setup(args):
    if torch.cuda.get_device_capability()[0] >= 8:
        cuda_backend.matmul.allow_tf32 = args.tf32  # <- AMP404@9
""",
            fixed="""\
import torch
from torch.backends import cuda as cuda_backend

def setup(args):
    if torch.cuda.get_device_capability()[0] >= 8:
        cuda_backend.matmul.fp32_precision = "tf32" if args.tf32 else "ieee"
""",
        ),
        Example(
            "saved and restored, which is left to a person",
            """\
import torch

def exact(function, x):
    before = torch.backends.cuda.matmul.allow_tf32  # <- AMP404@14
    torch.backends.cuda.matmul.allow_tf32 = False  # <- AMP404@5
    result = function(x)
    torch.backends.cuda.matmul.allow_tf32 = before  # <- AMP404@5
    return result
""",
        ),
    )
    VALID = (
        Example(
            "the new setting",
            """\
import torch

torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "tf32"
""",
        ),
        Example(
            "the branch for old versions",
            """\
import torch

if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    torch.backends.cuda.matmul.fp32_precision = "tf32"
else:
    torch.backends.cuda.matmul.allow_tf32 = True
""",
        ),
        Example(
            "version in a name",
            """\
import torch

major, minor = map(int, torch.__version__.split(".")[:2])
if (major, minor) < (2, 9):
    torch.backends.cuda.matmul.allow_tf32 = True
""",
        ),
        Example(
            "the project's own option",
            """\
class Config:
    allow_tf32: bool = True

config = Config()
config.allow_tf32 = False
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of the flag; all that are written share one fix."""
        flags = [flag for flag in legacy_flags(source) if not is_version_guarded(source, flag)]
        fix = _fix(source, flags)
        for flag in flags:
            new = source.segment(flag).removesuffix("allow_tf32") + "fp32_precision"
            message = f'allow_tf32 is superseded since torch 2.9: use {new}, "tf32" or "ieee"'
            yield source.finding(self, flag, message, fix=fix)


def _fix(source: SourceFile, flags: Sequence[ast.Attribute]) -> Fix | None:
    if not flags or new_settings(source):
        return None
    changes: list[Edit] = []
    for flag in flags:
        value = written_value(source, flag)
        if value is None:
            return None
        changes += [edits.replace(source, flag, source.segment(flag).removesuffix("allow_tf32") + "fp32_precision"),
                    edits.replace(source, value, _precision(source, value))]  # fmt: skip
    return Fix("use fp32_precision", tuple(changes), Safety.UNSAFE)


def _precision(source: SourceFile, value: ast.expr) -> str:
    if isinstance(value, ast.Constant) and source.constant(value) is not UNKNOWN:
        return '"tf32"' if value.value else '"ieee"'
    text = source.segment(value)
    condition = f"({text})" if isinstance(value, ast.IfExp | ast.Lambda | ast.NamedExpr) else text
    return f'"tf32" if {condition} else "ieee"'

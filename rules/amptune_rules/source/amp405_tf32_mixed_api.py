"""AMP405: TF32 is set through fp32_precision, and also through, or read back from, allow_tf32."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import is_version_guarded
from amptune_rules.source._tf32 import backends_of, legacy_flags, new_settings, written_value

_SETS_BOTH = "torch.set_float32_matmul_precision"  # the old record and the new one
_DEFAULT = {"matmul": False, "cudnn": True}


class Tf32MixedApi(SourceRule):
    """One program uses both fp32_precision and allow_tf32 for the same backend.

    ## What it does
    Flags the legacy uses in a file that also sets `fp32_precision` for the same backend. Reading `allow_tf32` (or
    `torch.get_float32_matmul_precision()`) while the two disagree is an error; a warning where the setting is made in
    another function, which need not have run. Writing both is a warning, or info where both say the same. Code that
    picks one of them by version is left alone.

    ## Why is this bad
    torch keeps two records. When they disagree, each read of the flag raises RuntimeError "... you have used mix of the
    legacy and new APIs ...", also a read inside `torch.compile`. Writing never raises, so the mistake shows far from
    its cause, and which record a kernel asks depends on the order of the writes.

    ## Example
    ```python
    import torch
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    print(torch.backends.cuda.matmul.allow_tf32)
    ```

    ## Use instead
    ```python
    import torch
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    print(torch.backends.cuda.matmul.fp32_precision)
    ```

    ## Fix safety
    No fix: which of the two is meant to win is for a person to say.

    ## References
    - https://docs.pytorch.org/docs/main/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices
    - https://github.com/pytorch/pytorch/issues/179445
    """

    code = "AMP405"
    name = "tf32-mixed-api"
    severity = Severity.ERROR
    keywords = (b"fp32_precision",)

    INVALID = (
        Example(
            "flag read after the new setting",
            """\
import torch

torch.backends.cuda.matmul.fp32_precision = "tf32"

def describe():
    return torch.backends.cuda.matmul.allow_tf32  # <- AMP404, AMP405@12
""",
        ),
        Example(
            "both are written, with different values",
            """\
import torch

def setup():
    torch.backends.cuda.matmul.allow_tf32 = False  # <- AMP404, AMP405@5
    torch.backends.fp32_precision = "tf32"
""",
        ),
        Example(
            "precision asked for by name",
            """\
import torch

torch.backends.fp32_precision = "tf32"
before = torch.get_float32_matmul_precision()  # <- AMP405@10
""",
        ),
        Example(
            "both say the same, at severity info",
            """\
import torch

torch.backends.cuda.matmul.allow_tf32 = True  # <- AMP404, AMP405@1
torch.backends.cuda.matmul.fp32_precision = "tf32"
""",
        ),
    )
    VALID = (
        Example(
            "one or the other, by version",
            """\
import torch

if hasattr(torch.backends, "fp32_precision"):
    torch.backends.fp32_precision = "tf32"
else:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
""",
        ),
        Example(
            "new first, old when it is missing",
            """\
import torch

try:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
except AttributeError:
    torch.backends.cuda.matmul.allow_tf32 = True
""",
        ),
        Example(
            "different backends",
            """\
import torch

torch.backends.cudnn.allow_tf32 = False  # <- AMP404
torch.backends.cuda.matmul.fp32_precision = "ieee"
""",
        ),
        Example(
            "only the new settings",
            """\
import torch

torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(torch.backends.cuda.matmul.fp32_precision)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Legacy uses, against the new settings of the same backend."""
        settings = [node for node in new_settings(source) if not is_version_guarded(source, node)]
        if not settings:
            return
        flags = [flag for flag in legacy_flags(source) if not is_version_guarded(source, flag)]
        for flag in flags:
            yield from self._flag(source, flag, flags, settings)
        if any("matmul" in backends_of(source, node) for node in settings):
            yield from self._named_reads(source, settings)

    def _flag(
        self, source: SourceFile, flag: ast.Attribute, flags: Sequence[ast.Attribute], settings: Sequence[ast.Attribute]
    ) -> Iterator[Finding]:
        (backend,) = backends_of(source, flag)
        rivals = [node for node in settings if backend in backends_of(source, node)]
        if not rivals:
            return
        new = _agreed([_new_value(source, node) for node in rivals])
        written = [
            item for item in flags if backends_of(source, item) == (backend,) and isinstance(item.ctx, ast.Store)
        ]
        old = _agreed([_old_value(source, item) for item in written]) if written else _DEFAULT[backend]
        place = f"{source.segment(rivals[0])} of line {rivals[0].lineno}"
        if isinstance(flag.ctx, ast.Store):
            severity = Severity.INFO if old is not None and old is new else Severity.WARNING
            message = f"allow_tf32 is set beside {place}: reading the flag raises when they disagree; set one of them"
            yield source.finding(self, flag, message, severity=severity)
        elif not all(_is_before(source, flag, rival) for rival in rivals):
            disagree = old is not None and new is not None and old is not new
            agreed_again = backend == "matmul" and source.calls(_SETS_BOTH)
            certain = disagree and not agreed_again and _has_run(source, rivals, flag)
            message = f"allow_tf32 is read beside {place}: RuntimeError when they disagree; read fp32_precision"
            yield source.finding(self, flag, message, severity=Severity.ERROR if certain else Severity.WARNING)

    def _named_reads(self, source: SourceFile, settings: Sequence[ast.Attribute]) -> Iterator[Finding]:
        rivals = [node for node in settings if "matmul" in backends_of(source, node)]
        if source.calls(_SETS_BOTH) or any(_new_value(source, r) is not True for r in rivals):
            return
        for call in source.calls("torch.get_float32_matmul_precision"):
            if is_version_guarded(source, call) or all(_is_before(source, call, rival) for rival in rivals):
                continue
            message = (
                f"get_float32_matmul_precision raises RuntimeError after {source.segment(rivals[0])} of line "
                f"{rivals[0].lineno}: read fp32_precision"
            )
            severity = None if _has_run(source, rivals, call) else Severity.WARNING
            yield source.finding(self, call, message, severity=severity)


def _new_value(source: SourceFile, setting: ast.Attribute) -> bool | None:
    """Whether a new setting turns TF32 on; None when that is not constant."""
    value = source.constant(written_value(source, setting))
    return value == "tf32" if isinstance(value, str) else None


def _old_value(source: SourceFile, flag: ast.Attribute) -> bool | None:
    value = source.constant(written_value(source, flag))
    return value if isinstance(value, bool) else None


def _agreed(values: Sequence[bool | None]) -> bool | None:
    return values[0] if all(value is values[0] for value in values) else None


def _has_run(source: SourceFile, settings: Sequence[ast.Attribute], read: ast.expr) -> bool:
    """Whether a setting is made where the read is, or at module level; another function need not have been called."""
    return any(source.function_of(setting) in (None, source.function_of(read)) for setting in settings)


def _is_before(source: SourceFile, read: ast.expr, write: ast.expr) -> bool:
    """Whether a read surely runs before a write: earlier in the same function, with no loop around both."""
    if source.function_of(read) is not source.function_of(write):
        return False
    common = set(source.loops_of(read)) & set(source.loops_of(write))
    return not common and (read.lineno, read.col_offset) < (write.lineno, write.col_offset)

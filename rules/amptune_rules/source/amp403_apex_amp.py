"""AMP403: mixed precision through apex, which has removed it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import root

_MODULES = ("apex.amp", "apex.fp16_utils")
# What to write instead, for the calls that a training loop has.
_INSTEAD = {
    "initialize": 'torch.autocast("cuda", dtype=torch.float16) and torch.amp.GradScaler("cuda")',
    "scale_loss": "scaler.scale(loss).backward()",
    "master_params": "scaler.unscale_(optimizer) and model.parameters()",
    "FP16_Optimizer": 'torch.amp.GradScaler("cuda") around the plain optimizer',
    "network_to_half": "float32 weights under torch.autocast",
}

_AVAILABLE = re.compile(r"available|installed|find_spec|has_", re.IGNORECASE)


class ApexAmp(SourceRule):
    """apex.amp or apex.fp16_utils is used.

    ## What it does
    Flags imports of `apex.amp` and `apex.fp16_utils`, and the calls `amp.initialize`, `amp.scale_loss`,
    `amp.master_params`. Where the file works without apex (the import is in a `try` that goes on without it)
    the findings are info.

    ## Why is this bad
    NVIDIA deprecated `apex.amp` for `torch.amp` in 2020 and has removed it: with a current apex, `from apex import amp`
    raises ImportError, and `apex.amp.initialize` raises AttributeError. Releases that still have it do not build
    against current CUDA and torch.

    ## Example
    ```python
    from apex import amp
    model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
    with amp.scale_loss(loss, optimizer) as scaled_loss:
        scaled_loss.backward()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_fn(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    ```

    ## Fix safety
    No fix: the loop has to be rebuilt around autocast and GradScaler. O1 is autocast with a GradScaler, O2 and O3 are a
    model in half precision, O0 is plain float32.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html
    - https://github.com/NVIDIA/apex
    """

    code = "AMP403"
    name = "apex-amp"
    severity = Severity.WARNING
    keywords = (b"apex import", b"apex.amp", b"import apex", b"apex.fp16_utils")

    INVALID = (
        Example(
            "the usual loop",
            """\
from apex import amp  # <- AMP403@1

def train(model, optimizer, loader):
    model, optimizer = amp.initialize(model, optimizer, opt_level="O1")  # <- AMP403@24
    for x in loader:
        with amp.scale_loss(model(x), optimizer) as scaled_loss:  # <- AMP403@14
            scaled_loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "through the package, and the older module",
            """\
import apex
from apex.fp16_utils import FP16_Optimizer  # <- AMP403

def wrap(model, optimizer):
    model, optimizer = apex.amp.initialize(model, optimizer)  # <- AMP403
    return model, FP16_Optimizer(optimizer)  # <- AMP403
""",
        ),
        Example(
            "an import that is demanded",
            """\
try:
    from apex import amp  # <- AMP403
except ImportError:
    raise ImportError("install apex to train with --fp16")
""",
        ),
        Example(
            "an option beside torch, at severity info",
            """\
try:
    from apex import amp  # <- AMP403
except ImportError:
    amp = None
""",
        ),
    )
    VALID = (
        Example(
            "torch's own amp under the same name",
            """\
from torch import amp

def loss_of(model, x):
    with amp.autocast("cuda"):
        return model(x)
""",
        ),
        Example(
            "other parts of apex",
            """\
from apex.normalization import FusedLayerNorm
from apex.optimizers import FusedAdam

optimizer = FusedAdam
norm = FusedLayerNorm(64)
""",
        ),
        Example(
            "another package",
            """\
from apex_of_mountains import amp

amp.initialize()
""",
        ),
        Example(
            "only in words",
            """\
# apex.amp was used here once: from apex import amp
HELP = "apex amp opt_level, ignored"
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Imports of the removed modules, and the calls that have to be replaced."""
        statements: list[ast.Import | ast.ImportFrom] = [*source.nodes(ast.Import), *source.nodes(ast.ImportFrom)]
        for node in statements:
            imported = _imported(node)
            if imported:
                message = f"{imported} has been removed from apex: use torch.autocast and torch.amp.GradScaler"
                severity = Severity.INFO if _is_optional(source, node) else Severity.WARNING
                yield source.finding(self, node, message, severity=severity)
        for call in source.nodes(ast.Call):
            name = _removed(source, call)
            if name:
                message = f"{name} has been removed from apex: use {_INSTEAD[name.rpartition('.')[2]]}"
                optional = any(_is_optional(source, binding.node) for binding in source.bindings(root(call.func)))
                severity = Severity.INFO if optional else Severity.WARNING
                yield source.finding(self, call, message, severity=severity)


def _imported(node: ast.Import | ast.ImportFrom) -> str | None:
    """The removed module that the statement imports (from)."""
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [module, *(f"{module}.{alias.name}" for alias in node.names)] if not node.level else []
    else:
        names = [alias.name for alias in node.names]
    return next((module for module in _MODULES for name in names if (name + ".").startswith(module + ".")), None)


def _removed(source: SourceFile, call: ast.Call) -> str | None:
    for name in source.qualified(call.func):
        if name.startswith("apex.") and name.rpartition(".")[2] in _INSTEAD:
            return name
    return None


def _is_optional(source: SourceFile, node: ast.AST) -> bool:
    """Whether the file goes on without the import; a handler that raises demands it, and so does an option's branch."""
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.Try) and ancestor.handlers:
            return not all(isinstance(handler.body[-1], ast.Raise) for handler in ancestor.handlers)
        if isinstance(ancestor, ast.ExceptHandler):
            return True
        if isinstance(ancestor, ast.If) and _AVAILABLE.search(source.segment(ancestor.test)):
            return True
    return False

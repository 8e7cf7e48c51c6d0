"""AMP402: custom_fwd and custom_bwd from torch.cuda.amp, deprecated since torch 2.4."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import certain_uses, root, single_import_edit

_NAMES = ("torch.cuda.amp.custom_fwd", "torch.cuda.amp.custom_bwd")
_SHORT = ("custom_fwd", "custom_bwd")
_DEVICE = 'device_type="cuda"'


class DeprecatedCustomFwd(SourceRule):
    """custom_fwd or custom_bwd is taken from torch.cuda.amp.

    ## What it does
    Flags each use of `torch.cuda.amp.custom_fwd` and `torch.cuda.amp.custom_bwd`, however they are imported. A use that
    only runs on old versions of torch (`except ImportError`, a version test) is left alone.

    ## Why is this bad
    Each decoration has raised a FutureWarning since torch 2.4. The replacements need `device_type`, keyword only, so a
    changed import alone raises a TypeError where the class is defined.

    ## Example
    ```python
    import torch
    from torch.cuda.amp import custom_bwd, custom_fwd
    class Scale(torch.autograd.Function):
        @staticmethod
        @custom_fwd
        def forward(ctx, x):
            return x * 2
        @staticmethod
        @custom_bwd
        def backward(ctx, grad):
            return grad * 2
    ```

    ## Use instead
    ```python
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
    ```

    ## Fix safety
    Safe on torch 2.4 and newer: the old names are the new ones with `device_type="cuda"`. An import is changed only
    when every use of what it imports can be changed as well.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.amp.custom_fwd
    """

    code = "AMP402"
    name = "deprecated-custom-fwd"
    severity = Severity.WARNING
    keywords = (b"custom_fwd", b"custom_bwd")

    INVALID = (
        Example(
            "imported names, bare and called",
            """\
import torch
from torch.cuda.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(cast_inputs=torch.float32)  # <- AMP402@6
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @custom_bwd  # <- AMP402@6
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import torch
from torch.amp import custom_bwd, custom_fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "full path",
            """\
import torch

class Scale(torch.autograd.Function):
    @staticmethod
    @torch.cuda.amp.custom_fwd  # <- AMP402@6
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.cuda.amp.custom_bwd  # <- AMP402@6
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import torch

class Scale(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "an import with a name that stays",
            """\
import torch
from torch.cuda.amp import custom_bwd as bwd, common, custom_fwd as fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @fwd  # <- AMP402
    def forward(ctx, x):
        common.check(x)
        return x * 2

    @staticmethod
    @bwd  # <- AMP402
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import torch
from torch.cuda.amp import common
from torch.amp import custom_bwd as bwd, custom_fwd as fwd

class Scale(torch.autograd.Function):
    @staticmethod
    @fwd(device_type="cuda")
    def forward(ctx, x):
        common.check(x)
        return x * 2

    @staticmethod
    @bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "module alias",
            """\
import torch
import torch.cuda.amp as amp

class Scale(torch.autograd.Function):
    @staticmethod
    @amp.custom_fwd  # <- AMP402
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @amp.custom_bwd  # <- AMP402
    def backward(ctx, grad):
        return grad * 2
""",
            fixed="""\
import torch
import torch.cuda.amp as amp

class Scale(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        return grad * 2
""",
        ),
        Example(
            "handed on as a value, which no rewrite can follow",
            """\
from functools import partial
from torch.cuda.amp import custom_fwd

forward_in_fp32 = partial(custom_fwd, cast_inputs=None)  # <- AMP402
""",
        ),
    )
    VALID = (
        Example(
            "the new names",
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
            "fallback import",
            """\
import functools
import torch

try:
    from torch.amp import custom_fwd as _fwd
    custom_fwd = functools.partial(_fwd, device_type="cuda")
except ImportError:
    from torch.cuda.amp import custom_fwd

forward = custom_fwd(print)
""",
        ),
        Example(
            "partial by version",
            """\
import functools
import torch
from packaging import version

if version.parse(torch.__version__) >= version.parse("2.4"):
    custom_fwd = functools.partial(torch.amp.custom_fwd, device_type="cuda")
else:
    custom_fwd = torch.cuda.amp.custom_fwd

forward = custom_fwd(print)
""",
        ),
        Example(
            "early return by version",
            """\
import torch

def make_decorator():
    if hasattr(torch.amp, "custom_fwd"):
        return torch.amp.custom_fwd(device_type="cuda")
    return torch.cuda.amp.custom_fwd
""",
        ),
        Example(
            "another module's decorator",
            """\
from mylib.cuda.amp import custom_fwd

@custom_fwd
def forward(ctx, x):
    return x
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of the deprecated names, each with the rewrite of its import."""
        groups: dict[ast.AST | None, list[ast.expr]] = {}
        for use in certain_uses(source, _NAMES):
            groups.setdefault(_import_of(source, use), []).append(use)
        for statement, uses in groups.items():
            shared = _import_fix(source, statement, uses) if isinstance(statement, ast.ImportFrom) else None
            for use in uses:
                by_path = statement is None or not isinstance(statement, ast.ImportFrom)
                fix = shared if not by_path else _path_fix(source, use)
                name = source.qualified(use)[0]
                message = f"{name} is deprecated since torch 2.4: use {_new_name(use, source)}({_DEVICE}, ...)"
                yield source.finding(self, use, message, fix=fix)


def _new_name(use: ast.expr, source: SourceFile) -> str:
    return f"torch.amp.{source.qualified(use)[0].rpartition('.')[2]}"


def _import_of(source: SourceFile, use: ast.expr) -> ast.AST | None:
    """The ``from torch.cuda.amp import custom_fwd`` that a plain name comes from; None for a dotted spelling."""
    if not isinstance(use, ast.Name):
        return None
    nodes = [binding.node for binding in source.bindings(use)]
    return nodes[0] if len(nodes) == 1 else use


def _argument_edit(source: SourceFile, use: ast.expr) -> tuple[ast.AST, Edit | None] | None:
    """How a use gets its device: (node that is rewritten, edit inside the call); None when it cannot be told."""
    parent = source.parent(use)
    if isinstance(parent, ast.Call) and parent.func is use:
        if source.has_splat(parent) or any(keyword.arg == "device_type" for keyword in parent.keywords):
            return None
        return parent, edits.add_argument(source, parent, _DEVICE, first=not parent.args)
    if isinstance(parent, ast.FunctionDef) and use in parent.decorator_list:
        return use, None
    return None


def _path_fix(source: SourceFile, use: ast.expr) -> Fix | None:
    found = _argument_edit(source, use)
    if found is None or isinstance(use, ast.Name):
        return None
    base = root(use)
    torch = source.segment(base) if source.qualified(base) == ("torch",) else "torch"
    new = f"{torch}.amp.{source.qualified(use)[0].rpartition('.')[2]}"
    edit = found[1]
    changes = (edits.replace(source, use, new if edit else f"{new}({_DEVICE})"),)
    imports = () if source.qualified(base) == ("torch",) else ("import torch",)
    return Fix("use torch.amp", changes + ((edit,) if edit else ()), imports=imports)


def _import_fix(source: SourceFile, statement: ast.ImportFrom, uses: Sequence[ast.expr]) -> Fix | None:
    """One fix for an import and all uses of what it imports."""
    names = {alias.asname or alias.name for alias in statement.names if alias.name in _SHORT}
    reads = [
        node
        for node in source.nodes(ast.Name)
        if node.id in names and any(binding.node is statement for binding in source.bindings(node))
    ]
    if any(read not in uses for read in reads):
        return None
    changes = [single_import_edit(source, statement, _SHORT, "torch.amp")]
    for use in uses:
        found = _argument_edit(source, use)
        if found is None:
            return None
        changes.append(found[1] or edits.replace(source, use, f"{source.segment(use)}({_DEVICE})"))
    return Fix("import from torch.amp", tuple(changes))

"""AMP401: torch.cuda.amp and torch.cpu.amp, deprecated since torch 2.4."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import is_version_guarded, root, single_import_edit

_DEVICES = {
    "torch.cuda.amp.autocast": "cuda",
    "torch.cuda.amp.GradScaler": "cuda",
    "torch.cpu.amp.autocast": "cpu",
    "torch.cpu.amp.GradScaler": "cpu",
}
_MOVED = ("autocast", "GradScaler")
_AUTOCAST_PLACES = ("enabled", "dtype", "cache_enabled")


class DeprecatedCudaAmp(SourceRule):
    """autocast or GradScaler is taken from torch.cuda.amp or torch.cpu.amp.

    ## What it does
    Flags each use of `torch.cuda.amp.autocast`, `torch.cuda.amp.GradScaler` and their `torch.cpu.amp` twins, however
    they are imported.

    ## Why is this bad
    Each call has raised a FutureWarning since torch 2.4. The replacements take the device as their first argument, and
    `autocast` then has `dtype` before `enabled`, so a changed import alone turns `autocast(use_amp)` into an error.

    ## Example
    ```python
    from torch.cuda.amp import GradScaler, autocast
    scaler = GradScaler()
    with autocast(use_amp):
        loss = model(x)
    ```

    ## Use instead
    ```python
    from torch.amp import GradScaler, autocast
    scaler = GradScaler("cuda")
    with autocast("cuda", enabled=use_amp):
        loss = model(x)
    ```

    ## Fix safety
    Safe on torch 2.4 and newer: same classes, device added, positional arguments given their names. An import is
    changed only when every use of what it imports can be changed as well.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html
    """

    code = "AMP401"
    name = "deprecated-cuda-amp"
    severity = Severity.WARNING
    keywords = (b"cuda.amp", b"cpu.amp", b"cuda import amp", b"cpu import amp")

    INVALID = (
        Example(
            "full path, positional enabled",
            """\
import torch

scaler = torch.cuda.amp.GradScaler(init_scale=1024.0)  # <- AMP401@10, AMP121

def loss_of(model, x, use_amp):
    with torch.cuda.amp.autocast(use_amp):  # <- AMP401@10
        return model(x)
""",
            fixed="""\
import torch

scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)

def loss_of(model, x, use_amp):
    with torch.amp.autocast("cuda", enabled=use_amp):
        return model(x)
""",
        ),
        Example(
            "imported names, and one that stays",
            """\
from torch.cuda.amp import GradScaler, autocast, common

def make(model, scaler: GradScaler | None, x):
    common.check(x)
    with autocast(), autocast(dtype=x.dtype):  # <- AMP401@10, AMP401@22
        return model(x), GradScaler()  # <- AMP401
""",
            fixed="""\
from torch.cuda.amp import common
from torch.amp import GradScaler, autocast

def make(model, scaler: GradScaler | None, x):
    common.check(x)
    with autocast("cuda"), autocast("cuda", dtype=x.dtype):
        return model(x), GradScaler("cuda")
""",
        ),
        Example(
            "module alias",
            """\
import torch.cuda.amp as amp

def loss_of(model, x):
    with amp.autocast():  # <- AMP401
        return model(x)
""",
            fixed="""\
import torch.amp as amp

def loss_of(model, x):
    with amp.autocast("cuda"):
        return model(x)
""",
        ),
        Example(
            "module from its package, on the CPU",
            """\
from torch.cpu import amp

@amp.autocast()  # <- AMP401@2
def loss_of(model, x):
    return model(x)
""",
            fixed="""\
from torch import amp

@amp.autocast("cpu")
def loss_of(model, x):
    return model(x)
""",
        ),
        Example(
            "handed on as a value, which no rewrite can follow",
            """\
from functools import partial
from torch.cuda.amp import autocast

context = partial(autocast, enabled=True)  # <- AMP401
""",
        ),
    )
    VALID = (
        Example(
            "the new module",
            """\
import torch
from torch.amp import GradScaler

scaler = GradScaler("cuda")

def loss_of(model, x):
    with torch.autocast("cuda"):
        return model(x)
""",
        ),
        Example(
            "fallback import for old versions",
            """\
try:
    from torch.amp import GradScaler
except ImportError:
    from torch.cuda.amp import GradScaler

scaler = GradScaler()
""",
        ),
        Example(
            "fallback by version",
            """\
import torch
from packaging.version import Version

if Version(torch.__version__) >= Version("2.4"):
    scaler = torch.amp.GradScaler("cuda")
else:
    scaler = torch.cuda.amp.GradScaler()
""",
        ),
        Example(
            "another library's module",
            """\
from apollo.cuda.amp import autocast

def loss_of(model, x):
    with autocast():
        return model(x)
""",
        ),
        Example(
            "only in a comment and a string",
            """\
# torch.cuda.amp.autocast() is deprecated
NOTE = "use torch.amp, not torch.cuda.amp.GradScaler"
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of the deprecated names, each with the rewrite of its import group."""
        uses = [node for node in source.references(*_DEVICES) if self._is_deprecated(source, node)]
        groups: dict[object, list[ast.expr]] = {}
        for use in uses:
            groups.setdefault(_group(source, use), []).append(use)
        for key, members in groups.items():
            fix = _fix(source, members) if isinstance(key, ast.Import | ast.ImportFrom) else None
            for use in members:
                if not _makes_object(source, use):
                    continue
                own = fix or (_single_fix(source, use) if key == "path" else None)
                name = source.qualified(use)[0]
                new = f'torch.amp.{name.rpartition(".")[2]}("{_DEVICES[name]}", ...)'
                message = f"{name} is deprecated since torch 2.4: use {new}"
                yield source.finding(self, use, message, fix=own)

    def _is_deprecated(self, source: SourceFile, use: ast.expr) -> bool:
        names = source.qualified(use)
        if len(names) != 1 or _is_part_of_import_alias(source, use):
            return False
        return not is_version_guarded(source, use) and not any(
            is_version_guarded(source, binding.node)
            for binding in source.bindings(root(use))
            if binding.kind == "import"
        )


def _is_part_of_import_alias(source: SourceFile, use: ast.expr) -> bool:
    """Whether the name reaches torch through an assignment of this file; the right side of that is flagged."""
    return any(binding.kind == "assign" for binding in source.bindings(root(use)))


def _group(source: SourceFile, use: ast.expr) -> object:
    """The import statement whose rewrite the use hangs on; "path" when it spells torch.cuda.amp itself."""
    imports = [binding for binding in source.bindings(root(use)) if binding.kind == "import"]
    if len(imports) != 1:
        return "other"
    return "path" if imports[0].target == "torch" else imports[0].node


def _makes_object(source: SourceFile, use: ast.expr) -> bool:
    """Whether the class is called here, or kept for a later call; comparing or listing it warns of nothing."""
    parent = source.parent(use)
    if isinstance(parent, ast.Call):
        return parent.func is use or "functools.partial" in source.qualified(parent.func)
    return isinstance(parent, ast.Assign | ast.IfExp | ast.ClassDef) or use in _decorators(source, use)


def _decorators(source: SourceFile, use: ast.expr) -> list[ast.expr]:
    parent = source.parent(use)
    return parent.decorator_list if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) else []


def _in_annotation(source: SourceFile, use: ast.expr) -> bool:
    child: ast.AST = use
    for ancestor in source.ancestors(use):
        if isinstance(ancestor, ast.arg | ast.AnnAssign) and child is ancestor.annotation:
            return True
        if isinstance(ancestor, ast.FunctionDef | ast.AsyncFunctionDef) and child is ancestor.returns:
            return True
        if isinstance(ancestor, ast.stmt):
            return False
        child = ancestor
    return False


def _single_fix(source: SourceFile, use: ast.expr) -> Fix | None:
    call = source.parent(use)
    argument_edits = _argument_edits(source, call, use)
    if argument_edits is None:
        return None
    name = source.qualified(use)[0].rpartition(".")[2]
    torch_name = source.segment(root(use))
    return Fix("use torch.amp", (edits.replace(source, use, f"{torch_name}.amp.{name}"), *argument_edits))


def _argument_edits(source: SourceFile, call: ast.AST | None, use: ast.expr) -> list[Edit] | None:
    """Edits that turn the arguments of a deprecated call into those of the new one; None when that cannot be done."""
    if not isinstance(call, ast.Call) or call.func is not use or any(isinstance(a, ast.Starred) for a in call.args):
        return None
    name = source.qualified(use)[0]
    if any(keyword.arg in ("device_type", "device") for keyword in call.keywords):
        return None
    found = [edits.add_argument(source, call, f'"{_DEVICES[name]}"', first=True)]
    if name.endswith("autocast"):
        if len(call.args) > len(_AUTOCAST_PLACES):
            return None
        for place, argument in zip(_AUTOCAST_PLACES, call.args, strict=False):
            text = source.segment(argument)
            first = argument is call.args[0]
            named = f'"{_DEVICES[name]}", {place}={text}' if first else f"{place}={text}"
            found = [] if first else found
            found.append(edits.replace(source, argument, named))
    return found


def _fix(source: SourceFile, uses: Sequence[ast.expr]) -> Fix | None:
    """One fix for an import and all uses of what it imports."""
    binding = next(item for item in source.bindings(root(uses[0])) if item.kind == "import")
    statement = binding.node
    assert isinstance(statement, ast.Import | ast.ImportFrom)
    if _is_module_import(statement):
        reads = [node for alias in statement.names for node in _reads(source, alias, statement)]
    else:
        reads = [node for alias in statement.names if alias.name in _MOVED for node in _reads(source, alias, statement)]
    owners = [_outermost(source, node) for node in reads]
    if any(owner not in uses for owner in owners):
        return None
    found: list[Edit] = []
    for use in uses:
        if _in_annotation(source, use):
            continue
        argument_edits = _argument_edits(source, source.parent(use), use)
        if argument_edits is None:
            return None
        found += argument_edits
    import_edit = _import_edit(source, statement)
    return Fix("import from torch.amp", (import_edit, *found)) if import_edit else None


def _is_module_import(statement: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(statement, ast.Import) or statement.module in ("torch.cuda", "torch.cpu")


def _reads(source: SourceFile, alias: ast.alias, statement: ast.AST) -> list[ast.Name]:
    name = alias.asname or alias.name.partition(".")[0]
    return [
        node
        for node in source.nodes(ast.Name)
        if node.id == name and any(binding.node is statement for binding in source.bindings(node))
    ]


def _outermost(source: SourceFile, name: ast.Name) -> ast.AST:
    """The attribute chain that a module name is the root of."""
    node: ast.AST = name
    while isinstance(parent := source.parent(node), ast.Attribute) and not source.qualified(node)[0].endswith(_MOVED):
        node = parent
    return node


def _import_edit(source: SourceFile, statement: ast.Import | ast.ImportFrom) -> Edit | None:
    if len(statement.names) == 1 and _is_module_import(statement):
        alias = statement.names[0]
        if isinstance(statement, ast.Import):
            if alias.asname is None:
                return None
            return edits.replace(source, statement, f"import torch.amp as {alias.asname}")
        suffix = f" as {alias.asname}" if alias.asname else ""
        return edits.replace(source, statement, f"from torch import amp{suffix}")
    if not isinstance(statement, ast.ImportFrom) or _is_module_import(statement):
        return None
    return single_import_edit(source, statement, _MOVED, "torch.amp")

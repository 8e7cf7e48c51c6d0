"""AMP119: the loss that is logged is the one multiplied by the scale."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FUNCTIONS, last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import runs_before

_READS = frozenset({"item", "tolist", "numpy"})
_PASSES = frozenset({"detach", "cpu", "mean", "sum", "clone", "float", "data", "double", "to", "reduce"})
_LOGS = frozenset(
    {"print", "log", "log_dict", "info", "debug", "warning", "append", "update", "add_scalar", "add_scalars", "write",
     "set_postfix", "set_description", "float", "format", "str", "log_metric", "log_metrics"}
)  # fmt: skip


class ScaledLossLogged(SourceRule):
    """The value of scaler.scale(loss) is logged, summed up or returned.

    ## What it does
    Follows `scaled = scaler.scale(loss)` within its function and flags uses that read the value: `.item()`, `print`,
    loggers, sums for an average, and `return` beside the backward.

    ## Why is this bad
    The number is the loss times the scale: 65536 times too large, and it doubles or halves whenever the scale changes.
    Curves jump, and early stopping or the choice of the best checkpoint follow the scale instead of the loss.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        loss = scaler.scale(loss)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()
    ```

    ## Fix safety
    No fix. The scaled loss needs a name of its own, or none.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP119"
    name = "scaled-loss-logged"
    severity = Severity.INFO
    keywords = (b"caler",)

    INVALID = (
        Example(
            "under the same name",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    total = 0.0
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        loss = scaler.scale(loss)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.item()  # <- AMP119@18
    return total / len(loader)
""",
        ),
        Example(
            "printed and collected",
            """\
import torch

def train(model, loader, optimizer, scaler, history):
    for x in loader:
        optimizer.zero_grad()
        scaled_loss = scaler.scale(model(x))
        scaled_loss.backward()
        scaler.step(optimizer)
        scaler.update()
        print(f"loss {scaled_loss:.3f}")  # <- AMP119
        history.append(scaled_loss.detach())  # <- AMP119
""",
        ),
    )
    VALID = (
        Example(
            "the raw loss is logged",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        scaled = scaler.scale(loss)
        scaled.backward()
        scaler.step(optimizer)
        scaler.update()
        print(loss.item())
""",
        ),
        Example(
            "divided back",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        loss = scaler.scale(model(x))
        loss.backward()
        print(loss.item() / scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "a helper that returns it for the backward",
            """\
import torch

scaler = torch.amp.GradScaler("cuda")

def scale(loss):
    scaled = scaler.scale(loss)
    return scaled
""",
        ),
        Example(
            "only asked whether it is finite",
            """\
import torch

def backward(loss, scaler):
    scaled = scaler.scale(loss)
    if not torch.isfinite(scaled).item():
        raise RuntimeError("overflow")
    scaled.backward()
""",
        ),
        Example(
            "logged before it is scaled",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        print(loss.item())
        loss = scaler.scale(loss)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Reads of scaled losses."""
        for event in source.events:
            call = event.node
            if event.kind != "scale" or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if source.kinds.is_switched_off(call.func.value):
                continue
            for use in (call, *_later_uses(source, call)):
                if _is_read(source, use):
                    message = f"this is the loss times the scale of {event.scaler_name}: log the loss before scaling"
                    yield source.finding(self, use, message)


def _later_uses(source: SourceFile, call: ast.Call) -> Iterator[ast.Name]:
    """Uses of the name that the scaled loss is bound to, up to where it is bound again."""
    statement = source.statement_of(call)
    function = source.function_of(call)
    if not isinstance(statement, ast.Assign) or statement.value is not call or len(statement.targets) != 1:
        return
    target = statement.targets[0]
    if not isinstance(target, ast.Name):
        return
    rebound = [item.node for item in source.bindings(target) if item.node is not statement and _is_statement(item.node)]
    for name in source.nodes(ast.Name):
        if name.id != target.id or not isinstance(name.ctx, ast.Load) or source.function_of(name) is not function:
            continue
        hidden = any(runs_before(source, statement, other) and runs_before(source, other, name) for other in rebound)
        if runs_before(source, statement, name) and not hidden:
            yield name


def _is_statement(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt) and not isinstance(node, (*FUNCTIONS, ast.ClassDef))


def _is_read(source: SourceFile, use: ast.expr) -> bool:
    """Whether the value goes into a number, a text or a log, and is not divided or only tested on the way."""
    node: ast.AST = use
    read = False
    while (parent := source.parent(node)) is not None and not isinstance(parent, ast.stmt):
        if isinstance(parent, ast.BinOp | ast.Compare):
            return False
        if isinstance(parent, ast.Attribute):
            if parent.attr in _READS:
                read = True
            elif parent.attr not in _PASSES:
                return False
        elif isinstance(parent, ast.FormattedValue):
            read = True
        elif isinstance(parent, ast.Call) and node is not parent.func:
            if last_name(parent.func) in _LOGS:
                read = True
            elif not read:
                return False
        node = parent
    if isinstance(parent, ast.Return):
        return read or _goes_backward(source, use)
    if isinstance(parent, ast.If | ast.While | ast.Assert):
        return False
    return read or (isinstance(parent, ast.AugAssign) and node is parent.value)


def _goes_backward(source: SourceFile, use: ast.expr) -> bool:
    """Whether this function itself calls backward on the name, so that a returned value is for the log."""
    function = source.function_of(use)
    return isinstance(use, ast.Name) and any(
        isinstance(call.func, ast.Attribute)
        and last_name(call.func.value) == use.id
        and source.function_of(call) is function
        for call in source.method_calls("backward")
    )

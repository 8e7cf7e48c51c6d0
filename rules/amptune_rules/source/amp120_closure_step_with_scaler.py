"""AMP120: an optimizer that evaluates the loss more than once is stepped through a scaler."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile


class ClosureStepWithScaler(SourceRule):
    """scaler.step with a closure, with LBFGS, or the two steps of SAM on scaled gradients.

    ## What it does
    Flags `scaler.step(optimizer, closure)`, `scaler.step` of an optimizer made as `torch.optim.LBFGS` or `SAM`, and
    `optimizer.second_step()` of SAM in a function that scales its losses and never unscales.

    ## Why is this bad
    `scaler.step(optimizer, closure=...)` raises RuntimeError: closures are not supported. Passed by position the
    closure runs, but its gradients are neither unscaled nor checked, so each evaluation inside the optimizer sees
    gradients 65536 times too large. LBFGS and SAM cannot step without a closure at all. `second_step` applies gradients
    that still carry the scale.

    ## Example
    ```python
    import torch
    optimizer = torch.optim.LBFGS(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        return loss
    scaler.step(optimizer, closure)
    scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    optimizer = torch.optim.LBFGS(model.parameters())
    def closure():
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        loss.backward()
        return loss
    optimizer.step(closure)
    ```

    ## Fix safety
    No fix. BF16 needs no scaler; with FP16 SAM takes a scaler per backward, or one `unscale_` and `update` each.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP120"
    name = "closure-step-with-scaler"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "closure by position and by keyword",
            """\
import torch

def train(model, batches, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in batches:
        def closure():
            optimizer.zero_grad()
            loss = model(x)
            scaler.scale(loss).backward()
            return loss
        scaler.step(optimizer, closure)  # <- AMP120@9
        scaler.step(optimizer, closure=closure)  # <- AMP120
        scaler.update()
""",
        ),
        Example(
            "LBFGS",
            """\
import torch

class Fit:
    def __init__(self, model):
        self.optimizer = torch.optim.LBFGS(model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, loss):
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)  # <- AMP120
        self.scaler.update()
""",
        ),
        Example(
            "SAM in two steps",
            """\
import torch
from sam import SAM

def train(model, loader, loss_fn):
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        scaler.scale(loss_fn(model(x), y)).backward()
        optimizer.first_step(zero_grad=True)
        scaler.scale(loss_fn(model(x), y)).backward()
        optimizer.second_step(zero_grad=True)  # <- AMP120
""",
        ),
    )
    VALID = (
        Example(
            "closure without a scaler",
            """\
import torch

def train(model, x, optimizer, scaler=None):
    def closure():
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss
    if scaler is None:
        optimizer.step(closure)
    else:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "plain optimizer",
            """\
import torch

def train(model, loader):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "scaler switched off",
            """\
import torch

def train(model, closure):
    optimizer = torch.optim.LBFGS(model.parameters())
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    scaler.step(optimizer, closure)
    scaler.update()
""",
        ),
        Example(
            "SAM that unscales before each step",
            """\
import torch
from sam import SAM

def train(model, loader, loss_fn):
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        scaler.scale(loss_fn(model(x), y)).backward()
        scaler.unscale_(optimizer)
        optimizer.first_step(zero_grad=True)
        scaler.update()
        scaler.scale(loss_fn(model(x), y)).backward()
        scaler.unscale_(optimizer)
        optimizer.second_step(zero_grad=True)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Steps with a closure, or of an optimizer that needs one."""
        if _supports_closures(source):
            return
        for event in source.events:
            call = event.node
            if event.kind != "step" or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if source.kinds.is_switched_off(call.func.value) or not call.args:
                continue
            if _passes_closure(source, call):
                message = f"{event.scaler_name}.step does not support closures: use bfloat16 and no scaler, or drop it"
                yield source.finding(self, call, message)
            elif name := _needs_closure(source, call.args[0]):
                message = f"{name} needs a closure, and {event.scaler_name}.step supports none: step without the scaler"
                yield source.finding(self, call, message)
        yield from self._second_steps(source)

    def _second_steps(self, source: SourceFile) -> Iterator[Finding]:
        for call in source.method_calls("second_step"):
            function = source.function_of(call)
            here = [event for event in source.events if event.function is function]
            if any(event.kind in ("unscale", "get_scale", "grad_write") for event in here):
                continue
            scaled = next((event for event in here if event.kind == "backward" and event.scaled), None)
            if scaled is not None and _is_on(source, here, scaled):
                unscale = f"{scaled.scaler_name}.unscale_"
                message = f"second_step applies gradients that carry the loss scale: call {unscale} before it"
                yield source.finding(self, call, message)


def _is_on(source: SourceFile, events: list[Event], backward: Event) -> bool:
    scale = next((event.node for event in events if event.kind == "scale" and event.scaler == backward.scaler), None)
    if not isinstance(scale, ast.Call) or not isinstance(scale.func, ast.Attribute):
        return False
    return not source.kinds.is_switched_off(scale.func.value)


def _passes_closure(source: SourceFile, call: ast.Call) -> bool:
    given = next((item.value for item in call.keywords if item.arg == "closure"), None)
    if given is not None:
        return not _is_none(given) and not _is_optional(source, given)
    if len(call.args) < 2 or isinstance(call.args[1], ast.Starred) or _is_none(call.args[1]):
        return False
    closure = call.args[1]
    made_here = source.definition(closure) is not None or isinstance(closure, ast.Lambda)
    return made_here or ("closure" in last_name(closure).lower() and not _is_optional(source, closure))


def _is_optional(source: SourceFile, closure: ast.expr) -> bool:
    """Whether the closure is a parameter that is None unless the caller gives one: then it is only handed on."""
    bindings = source.bindings(closure)
    return any(item.kind == "parameter" and item.value is not None and _is_none(item.value) for item in bindings)


def _supports_closures(source: SourceFile) -> bool:
    """Whether the file has a scaler class of its own that supports closures."""
    names = [node.name for node in source.nodes(ast.ClassDef)]
    names += [alias.name for node in source.nodes(ast.ImportFrom) for alias in node.names]
    return any("closure" in name.lower() and "scaler" in name.lower() for name in names)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _needs_closure(source: SourceFile, optimizer: ast.expr) -> str:
    """The optimizer's class, when everything it may be needs a closure."""
    leaves = source.values(optimizer)
    names = {last_name(leaf.func) if isinstance(leaf, ast.Call) else "" for leaf in leaves}
    return next(iter(names)) if names and names <= {"LBFGS", "SAM"} else ""

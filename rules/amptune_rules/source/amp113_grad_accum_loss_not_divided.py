"""AMP113: gradients are accumulated over several batches, the loss is not divided by their number."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import FunctionNode, last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import is_gradient_scaler

_AVERAGING = ("div", "div_", "mul", "mul_", "true_divide")


class GradAccumLossNotDivided(SourceRule):
    """The optimizer steps every n batches, but the loss is not divided by n.

    ## What it does
    Flags a scaled backward in a loop whose `scaler.step` runs under `(i + 1) % n == 0`, where the gradients add up in
    between and nothing is divided by `n`.

    ## Why is this bad
    The gradients of n batches are summed instead of averaged: they are n times as large as with one big batch, so is
    the step of SGD and what a clip threshold sees, and FP16 overflows (above 65504) come n times earlier. It may be on
    purpose, where the learning rate was tuned with it.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for i, (x, y) in enumerate(loader):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for i, (x, y) in enumerate(loader):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y) / accum
        scaler.scale(loss).backward()
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    ```

    ## Fix safety
    No fix. The division makes the steps n times smaller, and a tuned learning rate has to follow.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation
    """

    code = "AMP113"
    name = "grad-accum-loss-not-divided"
    severity = Severity.INFO
    keywords = (b"caler",)

    INVALID = (
        Example(
            "plain accumulation",
            """\
import torch

def train(model, loader, optimizer, loss_fn, accum):
    scaler = torch.amp.GradScaler("cuda")
    for i, (x, y) in enumerate(loader):
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()  # <- AMP113@9
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "gate in a variable, settings on self",
            """\
import torch

class Trainer:
    def __init__(self, args):
        self.accum_steps = args.accum_steps
        self.scaler = torch.amp.GradScaler("cuda")

    def fit(self, model, loader, optimizer):
        for step, batch in enumerate(loader):
            with torch.autocast("cuda"):
                loss = model(batch).loss
            self.scaler.scale(loss).backward()  # <- AMP113
            do_step = (step + 1) % self.accum_steps == 0
            if do_step:
                self.scaler.step(optimizer)
                self.scaler.update()
                optimizer.zero_grad(set_to_none=True)
""",
        ),
    )
    VALID = (
        Example(
            "divided in the call",
            """\
import torch

def train(model, loader, optimizer, accum, scaler):
    for i, x in enumerate(loader):
        loss = model(x)
        scaler.scale(loss / accum).backward()
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "divided in place, under another name for n",
            """\
import torch

def train(model, loader, optimizer, args, scaler):
    n = args.accum
    for i, x in enumerate(loader):
        loss = model(x)
        loss /= args.accum
        scaler.scale(loss).backward()
        if (i + 1) % n == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "the loss function is told",
            """\
import torch

def train(model, loader, optimizer, accum, scaler, loss_fn):
    for i, x in enumerate(loader):
        loss = loss_fn(model(x), accum)
        scaler.scale(loss).backward()
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "the gradients are divided",
            """\
import torch

def train(model, loader, optimizer, accum, scaler):
    for i, x in enumerate(loader):
        scaler.scale(model(x)).backward()
        if (i + 1) % accum == 0:
            scaler.unscale_(optimizer)
            for p in model.parameters():
                p.grad.div_(accum)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "only the logging is gated",
            """\
import torch

def train(model, loader, optimizer, log_every, scaler):
    for i, x in enumerate(loader):
        optimizer.zero_grad()
        loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if (i + 1) % log_every == 0:
            print(loss.item())
""",
        ),
        Example(
            "a step every batch after the warm-up, nothing accumulates",
            """\
import torch

def train(model, loader, optimizer, n, scaler):
    for i, x in enumerate(loader):
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        if i % n == 0:
            scaler.step(optimizer)
            scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Backwards whose gradients add up until a gate opens."""
        for flow in source.flows:
            for step in flow.of("step"):
                divisor = self._divisor(source, step)
                if divisor is None or not is_gradient_scaler(source, flow, step.scaler, step):
                    continue
                for backward in flow.of("backward", scaler=step.scaler):
                    if self._accumulates(flow, backward, step) and not self._divides(source, backward, divisor):
                        message = (
                            f"gradients of {source.segment(divisor)} batches are summed: divide the loss by "
                            f"{source.segment(divisor)} before {step.scaler_name}.scale"
                        )
                        yield source.finding(self, backward.node, message)

    def _divisor(self, source: SourceFile, step: Event) -> ast.expr | None:
        """The ``n`` of the ``i % n == 0`` that guards the step."""
        for gate in source.ancestors(step.node):
            if isinstance(gate, ast.If):
                for test in (gate.test, *source.values(gate.test)):
                    for part in ast.walk(test):
                        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod):
                            return part.right if source.number(part.right) != 1 else None
            if isinstance(gate, ast.FunctionDef | ast.AsyncFunctionDef):
                break
        return None

    def _accumulates(self, flow: Flow, backward: Event, step: Event) -> bool:
        """Whether a second backward adds to the first before anything is stepped or cleared."""
        if not backward.scaled or backward.calls != step.calls or not flow.loops(backward):
            return False
        cleared = ("step", "zero_grad", "optimizer_step", "wrapper")
        adds_up = flow.path(backward, backward, without=cleared) is not None
        return adds_up and flow.path(backward, step, without=("zero_grad",), same_iteration=True) is not None

    def _divides(self, source: SourceFile, backward: Event, divisor: ast.expr) -> bool:
        """Whether the number of batches, or a gradient, is used in any arithmetic of the function."""
        function = source.function_of(backward.node)
        scope: FunctionNode | ast.Module = function or source.tree
        names = _names_of(source, divisor)
        if any(event.kind == "grad_write" and event.function is function for event in source.events):
            return True
        return any(
            _is_arithmetic(part, names) or _is_told(part, names) or _sums(part) for part in ast.walk(scope)
        ) or _loss_is_divided(source, backward)


def _names_of(source: SourceFile, divisor: ast.expr) -> frozenset[str]:
    """The last names that the number of batches goes by in this file."""
    found = {last_name(part) for part in ast.walk(divisor)}
    for value in source.values(divisor):
        found |= {last_name(part) for part in ast.walk(value)}
    for binding in source.bindings(divisor):
        found |= {last_name(part) for part in ast.walk(binding.value)} if binding.value is not None else set()
    return frozenset(found - {"", "self", "args", "cfg", "config", "max", "min", "int", "len"})


def _mentions(node: ast.AST, names: frozenset[str]) -> bool:
    return any(last_name(part) in names or _key(part) in names for part in ast.walk(node))


def _key(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _is_arithmetic(part: ast.AST, names: frozenset[str]) -> bool:
    if isinstance(part, ast.BinOp | ast.AugAssign) and isinstance(part.op, ast.Div | ast.Mult):
        operands = [part.value] if isinstance(part, ast.AugAssign) else [part.left, part.right]
        return any(_mentions(item, names) for item in operands)
    return False


def _is_told(part: ast.AST, names: frozenset[str]) -> bool:
    """Whether a call gets the number: a loss function, a method of the loss."""
    if not isinstance(part, ast.Call) or last_name(part.func) in ("range", "print", "min", "max", "int", "len"):
        return False
    return any(last_name(item) in names for item in (*part.args, *(keyword.value for keyword in part.keywords)))


def _sums(part: ast.AST) -> bool:
    """Whether a loss is asked for as a sum, which the number of batches does not divide."""
    return isinstance(part, ast.keyword) and part.arg == "reduction" and _key(part.value) == "sum"


def _loss_is_divided(source: SourceFile, backward: Event) -> bool:
    """Whether what is scaled, or what it is bound to, is a quotient."""
    call = backward.node
    loss = call.func.value if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else call
    seen: list[ast.AST] = []
    pending: list[tuple[ast.AST, int]] = [(loss, 0)]
    while pending:
        node, depth = pending.pop()
        seen.append(node)
        for part in ast.walk(node):
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Div):
                return True
            if isinstance(part, ast.Call) and last_name(part.func) in _AVERAGING:
                return True
            if isinstance(part, ast.Name | ast.Attribute) and depth < 3:
                bindings = source.bindings(part)
                if any(_divides_in_place(item.node) for item in bindings):
                    return True
                values = [item.value for item in bindings if item.value is not None and item.kind == "assign"]
                pending += [(value, depth + 1) for value in values if value not in seen]
    return False


def _divides_in_place(node: ast.AST) -> bool:
    return isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div | ast.Mult)

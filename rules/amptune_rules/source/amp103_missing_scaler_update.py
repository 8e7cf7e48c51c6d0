"""AMP103: scaler.step without scaler.update before the next iteration."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import may_be_same_scaler, varies


class MissingScalerUpdate(SourceRule):
    """scaler.step runs again, or the step function ends, without scaler.update.

    ## What it does
    Looks for a path from `scaler.step(optimizer)` to the next backward and step, or to the end of a function that does
    one step, on which `scaler.update()` is not called. A warning where other paths do call it.

    ## Why is this bad
    `update` lowers the loss scale after an overflow, raises it after 2000 good steps, and forgets which optimizers were
    unscaled. Without it the scale stays at its first value: steps with an overflow are skipped for ever, and a second
    `unscale_` or `step` of the same optimizer raises RuntimeError.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    Safe: adds `scaler.update()` after the last `scaler.step` of the block, which is where the documentation has it.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP103"
    name = "missing-scaler-update"
    severity = Severity.ERROR
    keywords = (b"caler",)
    requires = (b".step",)

    INVALID = (
        Example(
            "no update at all",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.cuda.amp.GradScaler()  # <- AMP401
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)  # <- AMP103@9
""",
            fixed="""\
import torch

def train(model, loader, optimizer):
    scaler = torch.cuda.amp.GradScaler()
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "update only on some iterations",
            """\
import torch

def train(model, loader, optimizer, log_every):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)  # <- AMP103
        optimizer.zero_grad()
        if i % log_every == 0:
            scaler.update()
""",
        ),
        Example(
            "two optimizers, never updated",
            """\
import torch

def step(scaler: torch.amp.GradScaler, loss, opt_a, opt_b):
    scaler.scale(loss).backward()
    scaler.step(opt_a)  # <- AMP103
    scaler.step(opt_b)  # <- AMP103
""",
            fixed="""\
import torch

def step(scaler: torch.amp.GradScaler, loss, opt_a, opt_b):
    scaler.scale(loss).backward()
    scaler.step(opt_a)
    scaler.step(opt_b)
    scaler.update()
""",
        ),
        Example(
            "the scaler is only saved",
            """\
import torch
from engine import save_checkpoint

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)  # <- AMP103
        save_checkpoint(model, optimizer, scaler)
""",
            fixed="""\
import torch
from engine import save_checkpoint

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        save_checkpoint(model, optimizer, scaler)
""",
        ),
    )
    VALID = (
        Example(
            "one update after both steps, under the same gate",
            """\
import torch

def train(model, loader, opt_a, opt_b, n):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        scaler.scale(model(x) / n).backward()
        if (i + 1) % n == 0:
            scaler.step(opt_a)
            scaler.step(opt_b)
            opt_a.zero_grad()
            opt_b.zero_grad()
        if (i + 1) % n == 0:
            scaler.update()
""",
        ),
        Example(
            "the update is in another method of the class",
            """\
import torch

class Loop:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def optimizer_step(self, optimizer):
        self.scaler.step(optimizer)

    def after_step(self):
        self.scaler.update()
""",
        ),
        Example(
            "the caller updates",
            """\
import torch

def step(scaler, optimizer):
    scaler.step(optimizer)

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        scaler.scale(model(x)).backward()
        step(scaler, optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "the scaler is always switched off",
            """\
import torch

scaler = torch.amp.GradScaler("cuda", enabled=False)

def train(model, loader, optimizer):
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        optimizer.zero_grad()
""",
        ),
        Example(
            "no gradient scaler",
            """\
class Ladder:
    def climb(self, scaler):
        scaler.step(3)
""",
        ),
        Example(
            "updated after the last of several optimizers",
            """\
import torch

class Trainer:
    def optimize(self, loss, optimizer, scaler, optimizer_idx=None, num_optimizers=1):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        if optimizer_idx is None or optimizer_idx + 1 == num_optimizers:
            scaler.update()

    def train(self, batches, optimizers):
        scaler = torch.amp.GradScaler("cuda")
        for batch in batches:
            for i, optimizer in enumerate(optimizers):
                self.optimize(self.loss(batch, i), optimizer, scaler, i, len(optimizers))
""",
        ),
        Example(
            "the batch is tried again when memory ran out",
            """\
import torch

def train(model, batches, optimizer, split):
    scaler = torch.amp.GradScaler("cuda")
    for batch in batches:
        while True:
            try:
                for part in split(batch):
                    scaler.scale(model(part)).backward()
                scaler.step(optimizer)
            except torch.cuda.OutOfMemoryError:
                optimizer.zero_grad()
                continue
            break
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "a function of another file gets the scaler after the step",
            """\
import torch
from engine import after_step

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        after_step(model, scaler)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Steps from which no update follows."""
        for flow in source.flows:
            for step in flow.of("step"):
                if step.receiver is None or source.kinds.is_switched_off(step.receiver):
                    continue
                if self._lacks_update(source, flow, step):
                    # Where it is there but can be missed, the way past it may be one that never happens.
                    sometimes = bool(flow.of("update", scaler=step.scaler))
                    severity = Severity.WARNING if sometimes else Severity.ERROR
                    fix = self._fix(source, flow, step)
                    yield source.finding(self, step.node, self._message(step), severity=severity, fix=fix)

    def _lacks_update(self, source: SourceFile, flow: Flow, step: Event) -> bool:
        def updated(event: Event) -> bool:
            return event.kind in ("update", "handed") and event.scaler == step.scaler

        if not step.optimizer:
            return False
        backwards = flow.of("backward", "scale", scaler=step.scaler)
        if not flow.of("update", scaler=step.scaler):
            elsewhere = any(
                event.kind == "update" and may_be_same_scaler(source, event, step) for event in source.events
            )
            elsewhere |= any(flow.may_reach(step, event) for event in flow.of("handed", scaler=step.scaler))
            return not elsewhere and (bool(backwards) or _scales_in_its_class(source, step))
        if _waits_for_the_last(source, flow, step) or _is_retried(source, flow, step):
            return False
        same_batch = _loop_over_optimizers(source, flow, step)
        return any(
            flow.path(step, backward, without=updated, not_round=same_batch)
            and flow.path(backward, step, without=updated, not_round=same_batch)
            for backward in backwards
        )

    def _message(self, step: Event) -> str:
        name = step.scaler_name
        return f"{name}.step without {name}.update() before the next iteration: the loss scale never adapts"

    def _fix(self, source: SourceFile, flow: Flow, step: Event) -> Fix | None:
        if step.calls or flow.of("update", scaler=step.scaler):
            return None
        statement = source.statement_of(step.node)
        block = getattr(source.parent(statement), "body", [])
        steps = [source.statement_of(other.node) for other in flow.of("step", scaler=step.scaler)]
        last = [item for item in block if item in steps]
        if not last or len(last) != len(set(steps)) or not isinstance(last[-1], ast.Expr | ast.Assign):
            return None
        return Fix(
            f"add {step.scaler_name}.update()", (edits.insert_after(source, last[-1], f"{step.scaler_name}.update()"),)
        )


def _loop_over_optimizers(source: SourceFile, flow: Flow, step: Event) -> tuple[int, ...]:
    """The innermost loop around a step of its loop variable: one update after that loop serves all its steps."""
    optimizer = source.argument(step.node, "optimizer", 0) if isinstance(step.node, ast.Call) else None
    return flow.loops(step)[-1:] if varies(source, optimizer, step.calls) else ()


def _waits_for_the_last(source: SourceFile, flow: Flow, step: Event) -> bool:
    """Whether the function steps an optimizer it is given, and updates when told that it is the last of several."""
    optimizer = source.argument(step.node, "optimizer", 0) if isinstance(step.node, ast.Call) else None
    if not isinstance(optimizer, ast.Name) or {item.kind for item in source.bindings(optimizer)} != {"parameter"}:
        return False
    return all(
        any(
            isinstance(gate, ast.If) and _asks_for_an_optimizer(gate.test, optimizer.id)
            for gate in source.ancestors(update.node)
        )
        for update in flow.of("update", scaler=step.scaler)
    )


def _is_retried(source: SourceFile, flow: Flow, step: Event) -> bool:
    """Whether the step stands in a try, and the update behind it: a way past it is that of a step that failed."""
    tries = [node for node in source.ancestors(step.node) if isinstance(node, ast.Try) and node.handlers]
    updates = [event.node for event in flow.of("update", scaler=step.scaler)]
    return any(not any(source.index.is_inside(update, node) for update in updates) for node in tries)


def _asks_for_an_optimizer(test: ast.expr, optimizer: str) -> bool:
    """Whether a condition is about which of the optimizers this is: ``optimizer_idx + 1 == num_optimizers``."""
    words = [last_name(part) for part in ast.walk(test)]
    return any("optim" in word.lower() and word != optimizer for word in words)


def _scales_in_its_class(source: SourceFile, step: Event) -> bool:
    """Whether another method of the class scales with the same scaler, so that the class runs the whole protocol."""
    cls = source.class_of(step.node)
    scales = [event for event in source.events if event.kind == "scale" and event.scaler == step.scaler]
    return cls is not None and any(source.class_of(event.node) is cls for event in scales)

"""AMP115: an iteration with a NaN is left between the scaled backward and scaler.update."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import is_gradient_scaler, may_be_same_scaler, nonfinite_exits, runs_before


class UpdateSkippedOnNonfinite(SourceRule):
    """``if not isfinite(...): continue`` between the scaled backward and scaler.update.

    ## What it does
    Flags `continue` and `return` under a test for NaN or infinity that come after `scaler.scale` or `scaler.unscale_`
    and before the `scaler.update()` of the same iteration, with no update of their own. Also where
    the test is of the norm that a clip returned, and another method of the class scaled the loss.

    ## Why is this bad
    An overflow is how the scaler learns that its scale is too large: `update` halves it after a step with infinite
    gradients. When such iterations leave before it, the scale stays where it is, the next iteration overflows as well,
    and the training stands still without a word. After `unscale_` the state of the optimizer is left as "unscaled" as
    well: the next `unscale_` raises RuntimeError.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            continue
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix. Most often the test can go, because `scaler.step` skips such steps by itself; where it has to stay, it calls
    `scaler.update()` first, or moves before `scaler.scale`.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP115"
    name = "update-skipped-on-nonfinite"
    severity = Severity.WARNING
    keywords = (b"caler",)

    INVALID = (
        Example(
            "norm after unscale",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isnan(norm) or torch.isinf(norm):
            print("skipped")
            continue  # <- AMP115@13
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "return from a step method, flag in a variable",
            """\
import math
import torch

class Trainer:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def training_step(self, batch):
        loss = self.model(batch)
        self.scaler.scale(loss).backward()
        bad = not math.isfinite(loss.item())
        if bad:
            self.optimizer.zero_grad()
            return None  # <- AMP115
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss
""",
        ),
    )
    VALID = (
        Example(
            "before the loss is scaled",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        if not torch.isfinite(loss):
            continue
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "updates before it leaves",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            scaler.update()
            continue
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "after the update",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if torch.isnan(loss):
            continue
        print(loss.item())
""",
        ),
        Example(
            "stops the training",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        scaler.scale(loss).backward()
        if not torch.isfinite(loss):
            raise RuntimeError("the loss is not finite")
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "without mixed precision",
            """\
import torch

def train(model, loader, optimizer):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        if torch.isnan(loss):
            continue
        optimizer.step()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Early exits between scaling and update."""
        if not any(event.kind == "update" for event in source.events):
            return
        updates = [(flow, event) for flow in source.flows for event in flow.of("update")]
        for gate, jump in nonfinite_exits(source):
            for flow, update in updates:
                if not is_gradient_scaler(source, flow, update.scaler, update) or not _misses(
                    source, jump, gate, update
                ):
                    continue
                started = [
                    event
                    for event in flow.of("scale", "unscale", scaler=update.scaler)
                    if _place(source, event, gate) is not None
                    and runs_before(source, _place(source, event, gate) or gate, gate)
                    and _same_round(source, event, gate, jump)
                ]
                if started or _asks_for_norm(source, flow, gate, update) or _ran_backward(source, flow, gate, update):
                    yield source.finding(self, jump, _message(started, update))
                    break


def _asks_for_norm(source: SourceFile, flow: Flow, gate: ast.If, update: Event) -> bool:
    """Whether the gate is about the norm of a clip before it, where another method of the class scales the loss."""
    cls = source.class_of(gate)
    scales = [event for event in source.events if event.kind == "scale" and may_be_same_scaler(source, event, update)]
    elsewhere = [event for event in scales if event.function is not source.function_of(gate)]
    if cls is None or len(elsewhere) < len(scales) or not any(source.class_of(item.node) is cls for item in elsewhere):
        return False
    clips = {event.node for event in flow.of("clip") if runs_before(source, event.node, gate)}
    asked = [part for part in ast.walk(gate.test) if isinstance(part, ast.Name)]
    return any(not clips.isdisjoint(source.values(name)) for name in asked)


def _ran_backward(source: SourceFile, flow: Flow, gate: ast.If, update: Event) -> bool:
    """Whether the gate asks about what a method of another file returned that runs the backward: forward_backward."""
    if any(event.kind == "scale" and may_be_same_scaler(source, event, update) for event in source.events):
        return False
    asked = [part for part in ast.walk(gate.test) if isinstance(part, ast.Name)]
    made = [value for name in asked for value in source.values(name) if isinstance(value, ast.Call)]
    return any(
        "backward" in last_name(call.func).lower()
        and source.definition(call.func) is None
        and all(event.node is not call for event in flow.events)
        and runs_before(source, call, gate)
        for call in made
    )


def _message(started: list[Event], update: Event) -> str:
    name = update.scaler_name
    unscaled = [event for event in started if event.kind == "unscale"]
    what = "leaves the optimizer unscaled" if unscaled else "continues"
    # update raises where nothing has been unscaled or stepped since the last one
    first = f"call {name}.update() first" if unscaled else f"call {name}.unscale_ and {name}.update() first"
    return (
        f"iterations that are not finite skip {name}.update(), so the scale never goes down ({what}): "
        f"{first}, or let {name}.step skip them"
    )


def _place(source: SourceFile, event: Event, gate: ast.If) -> ast.AST | None:
    """Where an event happens in the function of the gate: the event itself, or the call that leads to it."""
    function = source.function_of(gate)
    return next((node for node in (event.node, *event.calls) if source.function_of(node) is function), None)


def _misses(source: SourceFile, jump: ast.stmt, gate: ast.If, update: Event) -> bool:
    """Whether the update stands behind the gate, in the same round, and not in the gate's own body."""
    place = _place(source, update, gate)
    if place is None or not runs_before(source, gate, place):
        return False
    inside = [event.node for event in source.events if event.kind == "update"]
    inside += [call for call in source.nodes(ast.Call) if source.definition(call.func) is not None]
    if any(source.index.is_inside(node, item) for node in inside for item in gate.body):
        return False  # it updates there, or calls something of this file that may
    return _same_round(source, update, gate, jump)


def _same_round(source: SourceFile, event: Event, gate: ast.If, jump: ast.stmt) -> bool:
    """Whether the jump leaves what the event repeats with: the same innermost loop around both, or the function."""
    place = _place(source, event, gate)
    if place is None:
        return False
    loops = source.loops_of(gate)
    if isinstance(jump, ast.Return):
        return True
    return bool(loops) and loops[0] in source.loops_of(place)

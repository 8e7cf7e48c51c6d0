"""AMP104: scaler.unscale_ runs again for the same optimizer before scaler.update."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import (
    block_of,
    is_gradient_scaler,
    nonfinite_exits,
    of_scaler,
    receiver,
    runs_before,
    varies,
)

_STATES = ("UNSCALED", "READY", "_per_optimizer_states", "stage", "unscaled", "is_unscaled", "_unscaled")


class UnscaleEveryMicrobatch(SourceRule):
    """scaler.unscale_ runs twice for one optimizer with no scaler.update in between.

    ## What it does
    Looks for a path from `scaler.unscale_(optimizer)` to itself, or to a second one of the same optimizer, without
    `scaler.update()`: typically gradient accumulation that unscales every micro-batch and updates every n-th.

    ## Why is this bad
    `unscale_` may be called once per optimizer and update. The second call raises `RuntimeError: unscale_() has already
    been called on this optimizer since the last update()`. Were it allowed, the gradients of the first micro-batches
    would be divided by the scale (65536 at the start) twice.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x) / 4
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if (i + 1) % 4 == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x) / 4
        scaler.scale(loss).backward()
        if (i + 1) % 4 == 0:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    ```

    ## Fix safety
    Unsafe: `unscale_`, and clips that directly follow it, move to the start of the block that steps. The clip then acts
    on the accumulated gradient instead of on each micro-batch, which is what its threshold is meant for.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-accumulation
    """

    code = "AMP104"
    name = "unscale-every-microbatch"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "unscale and clip outside the gate",
            """\
import torch

def train(model, loader, optimizer, accum):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        with torch.autocast("cuda"):
            loss = model(x) / accum
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)  # <- AMP104@9
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # of each micro-batch
        if (i + 1) % accum == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
            fixed="""\
import torch

def train(model, loader, optimizer, accum):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        with torch.autocast("cuda"):
            loss = model(x) / accum
        scaler.scale(loss).backward()
        if (i + 1) % accum == 0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # of each micro-batch
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "twice in one iteration",
            """\
import torch

class Loop:
    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler("cuda")

    def clip(self, model):
        self.scaler.unscale_(self.optimizer)  # <- AMP104
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    def step(self, model, loss):
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.clip(model)
        self.scaler.step(self.optimizer)
        self.scaler.update()
""",
        ),
        Example(
            "gated by a flag that is computed each time",
            """\
import torch

def train(model, loader, optimizer, n, scaler):
    for i, x in enumerate(loader):
        sync = (i + 1) % n == 0 or i + 1 == len(loader)
        scaler.scale(model(x) / n).backward()
        scaler.unscale_(optimizer)  # <- AMP104
        norm = sum(p.grad.norm() for p in model.parameters())
        print(norm)
        if sync:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
    )
    VALID = (
        Example(
            "unscale under the gate",
            """\
import torch

def train(model, loader, optimizer, accum):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        scaler.scale(model(x) / accum).backward()
        if (i + 1) % accum == 0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "two gates share one flag",
            """\
import torch

def train(model, loader, optimizer, n, scaler, clip):
    for i, x in enumerate(loader):
        update_grad = (i + 1) % n == 0
        scaler.scale(model(x) / n).backward()
        if update_grad and clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if update_grad:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "each optimizer of a list once",
            """\
import torch

def step(scaler, optimizers, loss):
    scaler.scale(loss).backward()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    scaler.step(optimizers.joint)
    scaler.update()
""",
        ),
        Example(
            "one of two branches",
            """\
import torch

def train(model, loader, optimizer, scaler, by_value):
    for x in loader:
        scaler.scale(model(x)).backward()
        if by_value:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_value_(model.parameters(), 1.0)
        else:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "accumulation over one batch",
            """\
import torch

ACCUM = 1

def train(model, loader, optimizer, scaler):
    for i, x in enumerate(loader):
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        if (i + 1) % ACCUM == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of unscale_ that a path without update leads to from an earlier one."""
        for flow in source.flows:
            for unscale in flow.of("unscale"):
                if not self._applies(source, flow, unscale):
                    continue
                earlier = self._earlier(flow, unscale)
                if earlier is not None:
                    fix = self._fix(source, flow, unscale) if earlier is unscale else None
                    yield source.finding(self, unscale.node, self._message(unscale, earlier), fix=fix)

    def _applies(self, source: SourceFile, flow: Flow, unscale: Event) -> bool:
        if not flow.of("update", scaler=unscale.scaler) or not unscale.optimizer:
            return False  # without any update, that is what is missing
        if not is_gradient_scaler(source, flow, unscale.scaler, unscale):
            return False
        involved = (receiver(unscale), *_arguments(unscale))
        if any(varies(source, item, unscale.calls) for item in involved) or _asks_state(source, unscale):
            return False
        return not _left_early(source, unscale)

    def _earlier(self, flow: Flow, unscale: Event) -> Event | None:
        """An unscale_ of the same optimizer from which this one is reached without an update."""
        others = [item for item in flow.of("unscale", scaler=unscale.scaler) if item.optimizer == unscale.optimizer]
        for other in sorted(others, key=lambda item: item is unscale):
            same = other is not unscale
            if flow.path(other, unscale, without=of_scaler(("update", "handed"), unscale.scaler), same_iteration=same):
                return other
        return None

    def _message(self, unscale: Event, earlier: Event) -> str:
        call = f"{unscale.scaler_name}.unscale_({unscale.optimizer_name})"
        if earlier is unscale:
            return (
                f"{call} runs in iterations without {unscale.scaler_name}.update(), and its next call raises: "
                "move it under the condition of the step"
            )
        return f"second {call} before {unscale.scaler_name}.update() raises RuntimeError: unscale once per update"

    def _fix(self, source: SourceFile, flow: Flow, unscale: Event) -> Fix | None:
        statement = source.statement_of(unscale.node)
        steps = [source.statement_of(step.node) for step in flow.of("step", scaler=unscale.scaler) if not step.calls]
        if unscale.calls or not isinstance(statement, ast.Expr) or statement.value is not unscale.node:
            return None
        block = block_of(source, statement)
        clips = {source.statement_of(clip.node) for clip in flow.of("clip") if not clip.calls}
        moved: list[ast.stmt] = [statement]
        for following in block[block.index(statement) + 1 :]:
            if isinstance(following, ast.If) and any(step in following.body for step in steps):
                return self._move(source, moved, following)
            if following not in clips or following.lineno != following.end_lineno:
                return None
            moved.append(following)
        return None

    def _move(self, source: SourceFile, moved: list[ast.stmt], gate: ast.If) -> Fix:
        lines = [source.lines[item.lineno - 1].strip() for item in moved]
        changes: list[Edit] = [edits.delete_statement(source, item) for item in moved]
        changes.append(edits.insert_before(source, gate.body[0], "\n".join(lines)))
        return Fix("move under the condition of the step", tuple(changes), safety=Safety.UNSAFE)


def _arguments(event: Event) -> list[ast.expr]:
    return [*event.node.args, *(item.value for item in event.node.keywords)] if isinstance(event.node, ast.Call) else []


def _asks_state(source: SourceFile, unscale: Event) -> bool:
    """Whether a condition around the call asks the scaler if it has unscaled already."""
    gates = [node for node in source.ancestors(unscale.node) if isinstance(node, ast.If)]
    return any(last_name(part) in _STATES for gate in gates for part in ast.walk(gate.test))


def _left_early(source: SourceFile, unscale: Event) -> bool:
    """Whether the update is missed by leaving on a NaN (AMP115), or the gate is always open."""
    function = source.function_of(unscale.node)
    exits = [gate for gate, _ in nonfinite_exits(source) if source.function_of(gate) is function]
    if any(runs_before(source, unscale.node, gate) for gate in exits):
        return True
    gates = [node for node in source.nodes(ast.If) if source.function_of(node) is function]
    return any(
        isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) and source.number(part.right) == 1
        for gate in gates
        for part in ast.walk(gate.test)
    )

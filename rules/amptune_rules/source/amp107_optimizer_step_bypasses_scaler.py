"""AMP107: optimizer.step() is called directly on gradients that carry the loss scale."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune_rules.source._plain_steps import handles_scale, is_guarded, is_of_other_gradients, reaches
from amptune_rules.source._protocol import is_alternative, is_gradient_scaler, same_optimizer


class OptimizerStepBypassesScaler(SourceRule):
    """optimizer.step() after a scaled backward, instead of or besides scaler.step(optimizer).

    ## What it does
    Looks for a path from `scaler.scale(loss).backward()` to `optimizer.step()` on which the gradients are not unscaled
    by hand, and for iterations that call both `scaler.step(optimizer)` and `optimizer.step()`.

    ## Why is this bad
    After a scaled backward every gradient is 65536 times too large: SGD diverges in the first step, Adam ignores the
    factor until the scale changes. Infinite gradients, which `scaler.step` would skip (FP16 overflows above 65504), go
    into the weights and turn them into NaN. With both calls every batch is applied twice.

    ## Example
    ```python
    import torch
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        optimizer.step()
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    optimizer = torch.optim.AdamW(model.parameters())
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
    Unsafe: `optimizer.step()` becomes `scaler.step(optimizer)`; beside a `scaler.step` of the same optimizer it is
    deleted. Either changes the size of the steps.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP107"
    name = "optimizer-step-bypasses-scaler"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "plain step",
            """\
import torch

def train(model, loader, loss_fn):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        optimizer.step()  # <- AMP107@9
        scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, loss_fn):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "both, on self",
            """\
import torch

class Trainer:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, batch):
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(batch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.step()  # <- AMP107
""",
            fixed="""\
import torch

class Trainer:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, batch):
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(batch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
""",
        ),
        Example(
            "unscaled and clipped, but infinities are not skipped",
            """\
import torch

def train(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # <- AMP107
        optimizer.zero_grad()
        scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        optimizer.zero_grad()
        scaler.update()
""",
        ),
        Example(
            "the first steps go around the scaler",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        if i < 100:
            optimizer.step()  # <- AMP107
        else:
            scaler.step(optimizer)
            scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        if i < 100:
            scaler.step(optimizer)
        else:
            scaler.step(optimizer)
            scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "an optimizer whose gradients nobody clears moves a target network",
            """\
import torch

class Learner:
    def backprop(self, loss):
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.optimizer_target.step()
""",
        ),
        Example(
            "plain step in the branch without mixed precision",
            """\
import torch

def train(model, loader, optimizer, args):
    scaler = torch.amp.GradScaler("cuda") if args.amp else None
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        if args.amp:
            scaler.scale(loss).backward()
        else:
            loss.backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
""",
        ),
        Example(
            "an optimizer with a plain backward of its own",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, scaler):
    for x in loader:
        opt_g.zero_grad()
        scaler.scale(gen(x)).backward()
        scaler.step(opt_g)
        scaler.update()
        opt_d.zero_grad()
        disc(x).backward()
        opt_d.step()
""",
        ),
        Example(
            "unscaled by hand",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        for p in model.parameters():
            p.grad.mul_(1.0 / scaler.get_scale())
        optimizer.step()
""",
        ),
        Example(
            "steps only when the gradients are finite",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        scaler.update()
""",
        ),
        Example(
            "optimizer that handles the scale itself",
            """\
import torch
from ours import Fp16Optimizer

def train(model, loader, scaler):
    optimizer = Fp16Optimizer(model.parameters(), scaler)
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        optimizer.step()
""",
        ),
        Example(
            "no gradient scaler",
            """\
def simulate(scaler, image, optimizer):
    resized = scaler.scale(image)
    optimizer.step()
    return resized
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Plain steps on gradients of a scaled loss."""
        for flow in source.flows:
            for step in flow.of("optimizer_step"):
                if handles_scale(source, step) or is_guarded(source, step) or is_alternative(source, step.node, "step"):
                    continue
                found = self._twice(source, flow, step) or self._scaled(source, flow, step)
                if found is not None:
                    message, fix = found
                    yield source.finding(self, step.node, message, fix=fix)

    def _twice(self, source: SourceFile, flow: Flow, step: Event) -> tuple[str, Fix | None] | None:
        for scaled in flow.of("step"):
            if scaled.optimizer != step.optimizer or not is_gradient_scaler(source, flow, scaled.scaler, scaled):
                continue
            apart = ("backward", "zero_grad", "wrapper")
            if any(flow.path(a, b, without=apart, same_iteration=True) for a, b in ((scaled, step), (step, scaled))):
                name = step.optimizer_name
                message = (
                    f"{name}.step() besides {scaled.scaler_name}.step({name}) applies each batch twice "
                    "and lets infinite gradients through: drop it"
                )
                return message, self._deletion(source, step)
        return None

    def _scaled(self, source: SourceFile, flow: Flow, step: Event) -> tuple[str, Fix | None] | None:
        for backward in flow.of("backward"):
            if not backward.scaled or not reaches(source, flow, backward, step):
                continue
            if is_of_other_gradients(flow, backward, step):
                continue
            unscale = [item for item in flow.of("unscale") if same_optimizer(item.optimizer, step.optimizer)]
            done = any(flow.path(item, step, same_iteration=True) for item in unscale)
            what = "lets infinite gradients into the weights" if done else "gets gradients multiplied by the loss scale"
            message = f"{step.optimizer_name}.step() {what}: call {backward.scaler_name}.step({step.optimizer_name})"
            return message, self._replacement(source, backward, step)
        return None

    def _replacement(self, source: SourceFile, backward: Event, step: Event) -> Fix | None:
        call = step.node
        if not isinstance(call, ast.Call) or call.args or call.keywords or not isinstance(call.func, ast.Attribute):
            return None
        if step.calls or backward.function is not step.function or "#" in backward.scaler or "@" in backward.scaler:
            return None
        text = f"{backward.scaler_name}.step({source.segment(call.func.value)})"
        return Fix(f"call {text}", (edits.replace(source, call, text),), safety=Safety.UNSAFE)

    def _deletion(self, source: SourceFile, step: Event) -> Fix | None:
        statement = source.statement_of(step.node)
        if not isinstance(statement, ast.Expr) or statement.value is not step.node or step.calls:
            return None
        return Fix("delete the plain step", (edits.delete_statement(source, statement),), safety=Safety.UNSAFE)

"""AMP106: the loss is not scaled before a backward whose gradients scaler.step uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.source import SourceFile
from amptune_rules.source._fed_gradients import feeds_plainly, gate_of_backward_alone, is_fed, is_mixed
from amptune_rules.source._protocol import is_alternative, is_gradient_scaler


class UnscaledBackwardWithScaler(SourceRule):
    """loss.backward() without scaler.scale(loss), although scaler.step applies the gradients.

    ## What it does
    Looks for a path from a backward of a plain loss to `scaler.step(optimizer)` that no scaled backward leads to, and
    for a plain and a scaled backward that add up in the same gradients before the step. A warning where a test for NaN
    skips the scaled backward alone, so that the step runs without one.

    ## Why is this bad
    `step` divides every gradient by the loss scale, 65536 at the start and growing, whether or not the loss was
    multiplied by it. Without `scaler.scale(loss)` all gradients are 65536 times too small: SGD stands still, Adam falls
    under its eps, and small ones become zero in FP16 on the way, which is what the scale is there to prevent.
    Beside a scaled loss, the plain one counts 1/65536 of what it should. If the scaler has never scaled anything,
    `step` raises instead.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
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
    Unsafe: wraps the loss in `scaler.scale(...)`. The gradients that the optimizer sees become 65536 times larger.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP106"
    name = "unscaled-backward-with-scaler"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "plain backward",
            """\
import torch

def train(model, loader, optimizer, loss_fn):
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        loss.backward()  # <- AMP106@9
        scaler.step(optimizer)
        scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, optimizer, loss_fn):
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
            "second optimizer, accumulated loss",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, n):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        opt_d.zero_grad()
        scaler.scale(disc(x)).backward()
        scaler.step(opt_d)
        opt_g.zero_grad()
        loss = gen(x)
        (loss / n).backward()  # <- AMP106
        scaler.step(opt_g)
        scaler.update()
""",
            fixed="""\
import torch

def train(gen, disc, loader, opt_g, opt_d, n):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        opt_d.zero_grad()
        scaler.scale(disc(x)).backward()
        scaler.step(opt_d)
        opt_g.zero_grad()
        loss = gen(x)
        scaler.scale(loss / n).backward()
        scaler.step(opt_g)
        scaler.update()
""",
        ),
        Example(
            "the step is in another method",
            """\
import torch

class Trainer:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.scaler = torch.amp.GradScaler("cuda")

    def apply(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def fit(self, batches):
        for batch in batches:
            with torch.autocast("cuda"):
                loss = self.model(batch)
            loss.backward()  # <- AMP106
            self.apply()
            self.optimizer.zero_grad()
""",
            fixed="""\
import torch

class Trainer:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.scaler = torch.amp.GradScaler("cuda")

    def apply(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def fit(self, batches):
        for batch in batches:
            with torch.autocast("cuda"):
                loss = self.model(batch)
            self.scaler.scale(loss).backward()
            self.apply()
            self.optimizer.zero_grad()
""",
        ),
        Example(
            "one loss of two is scaled",
            """\
import torch

def train(model, loader, optimizer, scaler, penalty):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        penalty(model).backward()  # <- AMP106
        scaler.step(optimizer)
        scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, optimizer, scaler, penalty):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.scale(penalty(model)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "scaled through a variable",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        loss = model(x)
        scaled = scaler.scale(loss)
        scaled.backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "plain backward in the branch without mixed precision",
            """\
import torch

def train(model, loader, optimizer, scaler=None):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
""",
        ),
        Example(
            "another loss is added after the gradients were unscaled",
            """\
import torch

def train(model, loader, optimizer, scaler, penalty):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        penalty(model).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "the other optimizer steps by itself",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, scaler):
    for x in loader:
        opt_d.zero_grad()
        disc(x).backward()
        opt_d.step()
        opt_g.zero_grad()
        scaler.scale(gen(x)).backward()
        scaler.step(opt_g)
        scaler.update()
""",
        ),
        Example(
            "the caller scales",
            """\
import torch

def backward(loss):
    loss.backward()

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        backward(scaler.scale(model(x)))
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "scaler switched off",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for x in loader:
        optimizer.zero_grad()
        model(x).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Plain backwards whose gradients go through scaler.step."""
        for flow in source.flows:
            for step in flow.of("step"):
                if not is_gradient_scaler(source, flow, step.scaler, step):
                    continue
                gate = gate_of_backward_alone(source, flow, step)
                if gate is not None:
                    message = (
                        f"{step.scaler_name}.step runs although nothing was scaled where the condition of line "
                        f"{gate.lineno} fails: it raises, or applies old gradients again; leave the iteration there"
                    )
                    yield source.finding(self, step.node, message, severity=Severity.WARNING)
                fed = is_fed(source, flow, step)
                for backward in flow.of("backward"):
                    if (
                        feeds_plainly(flow, backward, step)
                        and not is_alternative(source, backward.node, "backward")
                        and (not fed or is_mixed(source, flow, backward, step))
                    ):
                        scaler = step.scaler_name
                        message = (
                            f"the loss is not scaled, but {scaler}.step({step.optimizer_name}) divides its gradients "
                            f"by the scale: call {scaler}.scale(loss).backward()"
                        )
                        yield source.finding(self, backward.node, message, fix=self._fix(source, backward, step))

    def _fix(self, source: SourceFile, backward: Event, step: Event) -> Fix | None:
        call = backward.node
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != "backward":
            return None
        name = step.scaler.partition(".")[0]
        if "#" in step.scaler or "@" in step.scaler or not name.isidentifier():
            return None
        if name != "self" and step.function is not backward.function:
            return None
        loss = call.func.value
        if isinstance(loss, ast.BinOp | ast.IfExp | ast.BoolOp | ast.Compare | ast.UnaryOp):
            edit = edits.insert(source.span(call).line, source.span(call).column, f"{step.scaler_name}.scale")
        else:
            edit = edits.wrap(source, loss, f"{step.scaler_name}.scale(", ")")
        return Fix(f"scale the loss with {step.scaler_name}", (edit,), safety=Safety.UNSAFE)

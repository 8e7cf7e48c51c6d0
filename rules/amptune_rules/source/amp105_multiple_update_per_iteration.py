"""AMP105: one scaler is updated more than once per iteration."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import block_of, is_gradient_scaler, receiver, varies
from amptune_rules.source._updates import before_the_step, for_each_optimizer, sets_scale, updated_again, without_a_step


class MultipleUpdatePerIteration(SourceRule):
    """scaler.update runs after each of several optimizers instead of once after all of them.

    ## What it does
    Looks for two `scaler.update()` of one scaler on a path through one iteration whose steps are of different
    optimizers, and for an update inside a loop over optimizers. It is an error when gradients that were scaled before
    the first update are stepped after it, or when nothing was stepped before the second one; else a warning. An update
    that stands before the only step is an error as well, and so is one that no step or `unscale_` leads to.

    ## Why is this bad
    `update` may change the scale and forgets which optimizers were unscaled. A later `step` then divides by another
    scale than the one its gradients were multiplied with (off by 2 after an overflow or growth), and unscales again
    what was unscaled before. An update without a step since the last one raises `No inf checks were recorded prior to
    update`. Even with a backward in between, each update counts as a good iteration, so the scale doubles after 1000
    iterations instead of 2000, and more of them overflow.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(opt_a)
        scaler.update()
        scaler.step(opt_b)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.step(opt_a)
        scaler.step(opt_b)
        scaler.update()
    ```

    ## Fix safety
    Unsafe: deletes the earlier update where the later one stands in the same block. The scale then grows half as often.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#working-with-multiple-models-losses-and-optimizers
    """

    code = "AMP105"
    name = "multiple-update-per-iteration"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "both losses scaled before the first update",
            """\
import torch

def train(model, loader, opt_a, opt_b):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda"):
            loss_a, loss_b = model(x)
        scaler.scale(loss_a).backward(retain_graph=True)
        scaler.scale(loss_b).backward()
        scaler.step(opt_a)
        scaler.update()  # <- AMP105@9
        scaler.step(opt_b)
        scaler.update()
        opt_a.zero_grad()
        opt_b.zero_grad()
""",
            fixed="""\
import torch

def train(model, loader, opt_a, opt_b):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda"):
            loss_a, loss_b = model(x)
        scaler.scale(loss_a).backward(retain_graph=True)
        scaler.scale(loss_b).backward()
        scaler.step(opt_a)
        scaler.step(opt_b)
        scaler.update()
        opt_a.zero_grad()
        opt_b.zero_grad()
""",
        ),
        Example(
            "generator and discriminator, a backward each",
            """\
import torch

class Gan:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, x):
        self.opt_d.zero_grad()
        self.scaler.scale(self.disc_loss(x)).backward()
        self.scaler.step(self.opt_d)
        self.scaler.update()  # <- AMP105
        self.opt_g.zero_grad()
        self.scaler.scale(self.gen_loss(x)).backward()
        self.scaler.step(self.opt_g)
        self.scaler.update()
""",
            fixed="""\
import torch

class Gan:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, x):
        self.opt_d.zero_grad()
        self.scaler.scale(self.disc_loss(x)).backward()
        self.scaler.step(self.opt_d)
        self.opt_g.zero_grad()
        self.scaler.scale(self.gen_loss(x)).backward()
        self.scaler.step(self.opt_g)
        self.scaler.update()
""",
        ),
        Example(
            "inside the loop over optimizers",
            """\
import torch

def train(model, loader, optimizers):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        for optimizer in optimizers:
            optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
            scaler.update()  # <- AMP105
""",
        ),
        Example(
            "updated before the step",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.update()  # <- AMP105
        scaler.step(optimizer)
""",
        ),
    )
    VALID = (
        Example(
            "one update after both",
            """\
import torch

def train(model, loader, opt_a, opt_b):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(opt_a)
        scaler.step(opt_b)
        scaler.update()
        opt_a.zero_grad()
        opt_b.zero_grad()
""",
        ),
        Example(
            "a scaler for each optimizer",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d):
    scaler_g, scaler_d = torch.amp.GradScaler("cuda"), torch.amp.GradScaler("cuda")
    for x in loader:
        opt_d.zero_grad()
        scaler_d.scale(disc(x)).backward()
        scaler_d.step(opt_d)
        scaler_d.update()
        opt_g.zero_grad()
        scaler_g.scale(gen(x)).backward()
        scaler_g.step(opt_g)
        scaler_g.update()
""",
        ),
        Example(
            "either the one or the other",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, scaler):
    for i, x in enumerate(loader):
        if i % 5:
            opt_d.zero_grad()
            scaler.scale(disc(x)).backward()
            scaler.step(opt_d)
            scaler.update()
        else:
            opt_g.zero_grad()
            scaler.scale(gen(x)).backward()
            scaler.step(opt_g)
            scaler.update()
""",
        ),
        Example(
            "critic iterations of their own",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, scaler):
    for x in loader:
        for _ in range(5):
            opt_d.zero_grad()
            scaler.scale(disc(x)).backward()
            scaler.step(opt_d)
            scaler.update()
        opt_g.zero_grad()
        scaler.scale(gen(x)).backward()
        scaler.step(opt_g)
        scaler.update()
""",
        ),
        Example(
            "the rest of the batches after the loop",
            """\
import torch

def train(model, loader, optimizer, scaler, n):
    for i, x in enumerate(loader):
        scaler.scale(model(x) / n).backward()
        if (i + 1) % n == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
""",
        ),
        Example(
            "updated without a step when the gradients are bad",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Updates after which the same iteration steps another optimizer and updates again."""
        for flow in source.flows:
            for update in flow.of("update"):
                if not is_gradient_scaler(source, flow, update.scaler, update):
                    continue
                if varies(source, receiver(update), update.calls) or sets_scale(update):
                    continue
                found = (
                    for_each_optimizer(source, flow, update)
                    or updated_again(source, flow, update)
                    or before_the_step(flow, update)
                    or without_a_step(source, flow, update)
                )
                if found is not None:
                    message, severity, later = found
                    fix = self._fix(source, update, later) if later else None
                    yield source.finding(self, update.node, message, severity=severity, fix=fix)

    def _fix(self, source: SourceFile, update: Event, later: Event) -> Fix | None:
        statement, last = source.statement_of(update.node), source.statement_of(later.node)
        if update.calls or later.calls or not isinstance(statement, ast.Expr) or statement.value is not update.node:
            return None
        if last not in block_of(source, statement):
            return None
        return Fix("delete the earlier update", (edits.delete_statement(source, statement),), safety=Safety.UNSAFE)

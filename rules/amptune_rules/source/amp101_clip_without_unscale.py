"""AMP101: gradients are clipped while they still carry the loss scale."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import same_optimizer, varies


class ClipWithoutUnscale(SourceRule):
    """Gradients are clipped between a scaled backward and scaler.step without scaler.unscale_.

    ## What it does
    Looks for `clip_grad_norm_` or `clip_grad_value_` on a path from `scaler.scale(loss).backward()` to
    `scaler.step(optimizer)` on which `scaler.unscale_(optimizer)` is not called first.

    ## Why is this bad
    After a scaled backward every gradient is multiplied by the loss scale, 65536 at the start. A threshold of 1.0 then
    acts as 1.0 / 65536: every step is clipped to almost nothing, and the threshold moves whenever the scale does.
    Training runs and is silently wrong.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    Safe: `unscale_` before the clip is what the documentation prescribes, and `step` does not unscale again.
    Offered where the optimizer of the following `scaler.step` has one spelling.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping
    """

    code = "AMP101"
    name = "clip-without-unscale"
    severity = Severity.ERROR
    keywords = (b"clip_grad",)

    INVALID = (
        Example(
            "plain loop",
            """\
import torch
from torch.nn.utils import clip_grad_norm_

def train(model, loader, optimizer, loss_fn):
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        clip_grad_norm_(model.parameters(), 1.0)  # <- AMP101@9
        scaler.step(optimizer)
        scaler.update()
""",
            fixed="""\
import torch
from torch.nn.utils import clip_grad_norm_

def train(model, loader, optimizer, loss_fn):
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "unscale only for the other optimizer, scaler on self",
            """\
import torch

class Trainer:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, loss):
        self.scaler.scale(loss).backward()
        if self.clip:
            self.scaler.unscale_(self.opt_d)
            torch.nn.utils.clip_grad_norm_(self.net_g.parameters(), self.clip)  # <- AMP101
        self.scaler.step(self.opt_g)
        self.scaler.update()
""",
            fixed="""\
import torch

class Trainer:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, loss):
        self.scaler.scale(loss).backward()
        if self.clip:
            self.scaler.unscale_(self.opt_d)
            self.scaler.unscale_(self.opt_g)
            torch.nn.utils.clip_grad_norm_(self.net_g.parameters(), self.clip)
        self.scaler.step(self.opt_g)
        self.scaler.update()
""",
        ),
        Example(
            "clip in a helper function",
            """\
import torch
from torch import nn

def clip(model):
    nn.utils.clip_grad_value_(model.parameters(), 0.5)  # <- AMP101

def train(model, batches, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for batch in batches:
        with torch.autocast("cuda"):
            loss = model(batch)
        scaler.scale(loss).backward()
        clip(model)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
    )
    VALID = (
        Example(
            "unscaled under one name, clipped and stepped in a loop over a list",
            """\
import torch

def step(scaler, loss, optimizer, optimizers):
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for opt in optimizers:
        torch.nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], 1.0)
    for opt in optimizers:
        scaler.step(opt)
    scaler.update()
""",
        ),
        Example(
            "unscaled first",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for i, x in enumerate(loader):
        with torch.autocast("cuda"):
            loss = model(x) / 4
        scaler.scale(loss).backward()
        if (i + 1) % 4 == 0:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
""",
        ),
        Example(
            "clip in the branch without mixed precision",
            """\
import torch

def train(model, loader, optimizer, scaler=None):
    for x in loader:
        loss = model(x)
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        else:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
""",
        ),
        Example(
            "the framework clips and unscales",
            """\
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="fp16")

def train(model, loader, optimizer):
    for x in loader:
        accelerator.backward(model(x))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "divided by the scale by hand",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        scaler.scale(model(x)).backward()
        for p in model.parameters():
            p.grad.div_(scaler.get_scale())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
""",
        ),
        Example(
            "two networks in turn, each unscaled before its clip",
            """\
import torch

class Agent:
    def update(self, critic_loss, policy_loss):
        self.critic_optimizer.zero_grad()
        self.scaler.scale(critic_loss).backward()
        if self.grad_norm > 0:
            self.scaler.unscale_(self.critic_optimizer)
            torch.nn.utils.clip_grad_norm_(self.critic_1.parameters(), self.grad_norm)
        self.scaler.step(self.critic_optimizer)
        self.policy_optimizer.zero_grad()
        self.scaler.scale(policy_loss()).backward()
        if self.grad_norm > 0:
            self.scaler.unscale_(self.policy_optimizer)
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.grad_norm)
        self.scaler.step(self.policy_optimizer)
        self.scaler.update()
""",
        ),
        Example(
            "a function of another file gets the scaler first",
            """\
import torch
from engine import prepare_gradients

def train(model, loader, optimizer, scaler):
    for x in loader:
        scaler.scale(model(x)).backward()
        prepare_gradients(optimizer, scaler)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Clips that a scaled gradient can reach."""
        for flow in source.flows:
            for clip in flow.of("clip"):
                if clip.owner == "user" and (step := self._step_on_bad_path(source, flow, clip)):
                    yield source.finding(self, clip.node, self._message(step), fix=self._fix(source, clip, step))

    def _step_on_bad_path(self, source: SourceFile, flow: Flow, clip: Event) -> Event | None:
        """The step whose gradients are still scaled when they are clipped."""
        for step in flow.of("step"):
            if flow.path(clip, step, same_iteration=True) is None or _other_model(clip, step):
                continue

            mine = {step.optimizer, *_clipped_for(flow, clip, step)}
            optimizer = source.argument(step.node, "optimizer", 0) if isinstance(step.node, ast.Call) else None
            any_of = varies(source, optimizer, step.calls)

            def unscaled(event: Event, step: Event = step, mine: Collection[str] = mine, any_of: bool = any_of) -> bool:
                done = event.kind == "unscale" and event.scaler == step.scaler
                by_hand = event.kind in ("grad_write", "get_scale", "handed")
                cleared = event.kind in ("step", "zero_grad") and event.scaler == step.scaler
                right = any_of or any(same_optimizer(event.optimizer, item) for item in mine)
                return (done and right) or by_hand or cleared

            for backward in flow.of("backward", scaler=step.scaler):
                if not backward.scaled or _unscaled_in_a_loop(source, flow, backward, clip, step):
                    continue
                if flow.path(backward, clip, without=unscaled, same_iteration=True):
                    return step
        return None

    def _message(self, step: Event) -> str:
        return (
            f"gradients are clipped while still multiplied by the loss scale: "
            f"call {step.scaler_name}.unscale_({step.optimizer_name}) first"
        )

    def _fix(self, source: SourceFile, clip: Event, step: Event) -> Fix | None:
        if clip.calls or step.calls or clip.function is not step.function:
            return None  # the names of one function need not exist in the other
        code = f"{step.scaler_name}.unscale_({step.optimizer_name})"
        statement = source.statement_of(clip.node)
        if not isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign):
            return None
        return Fix(f"insert {code}", (edits.insert_before(source, statement, code),))


def _clipped_for(flow: Flow, clip: Event, step: Event) -> list[str]:
    """Other optimizers that the scaler steps behind the clip: those whose gradients it may be about."""
    return [
        other.optimizer
        for other in flow.of("step", scaler=step.scaler)
        if not _other_model(clip, other) and flow.may_reach(clip, other, same_iteration=True)
    ]


def _unscaled_in_a_loop(source: SourceFile, flow: Flow, backward: Event, clip: Event, step: Event) -> bool:
    """Whether a loop over the optimizers unscales before the clip; which of them it skips, the program knows."""
    return any(
        isinstance(event.node, ast.Call)
        and varies(source, source.argument(event.node, "optimizer", 0), event.calls)
        and flow.may_reach(backward, event, same_iteration=True)
        and flow.may_reach(event, clip, same_iteration=True)
        for event in flow.of("unscale", scaler=step.scaler)
    )


def _other_model(clip: Event, step: Event) -> bool:
    """Whether the clip is plainly about another part of a pair (generator and discriminator)."""
    pairs = (("gen", "disc"), ("_g", "_d"), ("net_g", "net_d"), ("actor", "critic"), ("policy", "value"))
    a, b = clip.subject.lower().split("(")[0], step.optimizer.lower()
    return any((x in a and y in b and y not in a) or (y in a and x in b and x not in a) for x, y in pairs)

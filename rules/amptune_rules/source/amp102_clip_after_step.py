"""AMP102: gradients are clipped after the optimizer has already used them."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile

_LARGE = 1e6  # a threshold from here on only measures the norm
_NEW_GRADIENTS = ("backward", "autograd_grad", "wrapper")


class ClipAfterStep(SourceRule):
    """Gradients are clipped after scaler.step or optimizer.step has used them.

    ## What it does
    Looks for `clip_grad_norm_` or `clip_grad_value_` on a path from the step of the optimizer, with no backward in
    between and no further step behind it in the iteration.

    ## Why is this bad
    The step has already applied the gradients, so the threshold limits nothing: one bad batch with a gradient norm of
    1000 moves the weights 1000 times as far as `max_norm=1.0` promises. The next `zero_grad` throws the clipped values
    away, so nothing fails and the training is silently unclipped.

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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
    No fix. Moving the clip makes it work for the first time, which changes the training; under a scaler it also needs
    `unscale_` before it.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping
    """

    code = "AMP102"
    name = "clip-after-step"
    severity = Severity.ERROR
    keywords = (b"clip_grad",)

    INVALID = (
        Example(
            "between step and update",
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
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)  # <- AMP102@9
        scaler.update()
""",
        ),
        Example(
            "in a method, at the end of the iteration",
            """\
import torch

class Trainer:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.scaler = torch.amp.GradScaler("cuda")

    def limit(self):
        torch.nn.utils.clip_grad_value_(self.model.parameters(), clip_value=0.5)  # <- AMP102

    def fit(self, batches):
        for batch in batches:
            self.scaler.scale(self.model(batch)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.limit()
            self.optimizer.zero_grad(set_to_none=True)
""",
        ),
        Example(
            "without a scaler in the other branch",
            """\
import torch

def train(model, loader, optimizer, use_amp, scaler):
    for x in loader:
        loss = model(x)
        if use_amp:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- AMP102
        optimizer.zero_grad()
""",
        ),
    )
    VALID = (
        Example(
            "before the step",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "the clip belongs to a second optimizer",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        scaler.scale(disc(x)).backward()
        scaler.scale(gen(x)).backward()
        scaler.step(opt_d)
        scaler.unscale_(opt_g)
        torch.nn.utils.clip_grad_norm_(gen.parameters(), 1.0)
        scaler.step(opt_g)
        scaler.update()
        opt_d.zero_grad()
        opt_g.zero_grad()
""",
        ),
        Example(
            "a second backward in between",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d):
    for x in loader:
        opt_d.zero_grad()
        disc(x).backward()
        opt_d.step()
        opt_g.zero_grad()
        gen(x).backward()
        torch.nn.utils.clip_grad_norm_(gen.parameters(), 1.0)
        opt_g.step()
""",
        ),
        Example(
            "infinite threshold: it only measures",
            """\
import torch

def train(model, loader, optimizer, scaler, log):
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        log(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "step of the last batch, clip of the next",
            """\
import torch

def train(model, loader, optimizer, forward_backward):
    for x in loader:
        forward_backward(model, x)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Clips behind the step that they were meant for."""
        for flow in source.flows:
            for clip in flow.of("clip"):
                if (
                    clip.owner == "user"
                    and not _only_measures(source, clip.node)
                    and (step := _step_before(flow, clip))
                ):
                    call = (
                        f"{step.scaler_name}.step({step.optimizer_name})"
                        if step.scaler
                        else f"{step.optimizer_name}.step()"
                    )
                    message = f"gradients are clipped after {call} has used them: clip between backward and the step"
                    yield source.finding(self, clip.node, message)


def _step_before(flow: Flow, clip: Event) -> Event | None:
    """The step that has used the gradients when they are clipped; None when another step may still use them."""
    steps = flow.of("step", "optimizer_step")
    if any(flow.may_reach(clip, step, without=_NEW_GRADIENTS, same_iteration=True) for step in steps):
        return None
    for step in steps:
        fed = any(flow.path(backward, step, same_iteration=True) for backward in flow.of("backward"))
        if fed and flow.path(step, clip, without=_NEW_GRADIENTS, same_iteration=True):
            return step
    return None


def _only_measures(source: SourceFile, node: ast.expr) -> bool:
    """Whether the threshold is so large that the call is there for the norm it returns."""
    if not isinstance(node, ast.Call):
        return False
    limit = next(
        (found for name in ("max_norm", "clip_value") if (found := source.argument(node, name, 1)) is not None), None
    )
    value = source.number(limit)
    return value is not None and (math.isinf(value) or value >= _LARGE)

"""AMP108: the learning rate scheduler moves before the optimizer, or although the scaler skipped the step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import is_gradient_scaler, receiver

_TORCH = ("torch.optim.lr_scheduler.", "transformers.get_", "transformers.optimization.get_")


class SchedulerBeforeScalerStep(SourceRule):
    """A learning rate scheduler steps before scaler.step in the same iteration.

    ## What it does
    Looks for `scheduler.step()` on a path to `scaler.step(optimizer)` within one iteration (warning), and for a torch
    scheduler that moves every iteration without asking whether the scaler skipped the step (info).

    ## Why is this bad
    torch's schedulers expect the optimizer first: the other order drops the first value of the schedule and warns
    `Detected call of lr_scheduler.step() before optimizer.step()`. The scaler skips a step after each overflow, often
    the first ones because the scale starts at 65536; a scheduler that moves regardless runs ahead of the training.

    ## Example
    ```python
    import torch
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1000)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scheduler.step()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=1000)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:
            scheduler.step()
    ```

    ## Fix safety
    No fix. The right place depends on what the schedule counts: iterations, optimizer steps or epochs.

    ## References
    - https://github.com/pytorch/pytorch/issues/44511
    - https://github.com/pytorch/pytorch/issues/55585
    - https://github.com/pytorch/pytorch/issues/67590
    """

    code = "AMP108"
    name = "scheduler-before-scaler-step"
    severity = Severity.WARNING
    keywords = (b"caler",)

    INVALID = (
        Example(
            "before the step",
            """\
import torch

def train(model, loader, optimizer, scheduler):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        scaler.scale(loss).backward()
        scheduler.step()  # <- AMP108@9
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "at the start of the iteration, on self",
            """\
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

class Trainer:
    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.lr_schedule = CosineAnnealingLR(optimizer, 1000)
        self.scaler = torch.amp.GradScaler("cuda")

    def fit(self, model, batches):
        for batch in batches:
            self.lr_schedule.step()  # <- AMP108
            self.optimizer.zero_grad()
            self.scaler.scale(model(batch)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
""",
        ),
        Example(
            "every iteration, also when the step was skipped",
            """\
import torch

def train(model, loader, optimizer):
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=len(loader))
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()  # <- AMP108
""",
        ),
    )
    VALID = (
        Example(
            "only after a step that was not skipped",
            """\
import torch

def train(model, loader, optimizer):
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=len(loader))
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if before <= scaler.get_scale():
            scheduler.step()
""",
        ),
        Example(
            "once an epoch",
            """\
import torch

def train(model, loader, optimizer, epochs):
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(epochs):
        for x in loader:
            optimizer.zero_grad()
            scaler.scale(model(x)).backward()
            scaler.step(optimizer)
            scaler.update()
        scheduler.step()
""",
        ),
        Example(
            "a noise scheduler of a diffusion model",
            """\
import torch

def train(model, loader, optimizer, scheduler, scaler):
    for x, noise, t in loader:
        optimizer.zero_grad()
        denoised = scheduler.step(model(x), t, x).prev_sample
        scaler.scale((denoised - noise).pow(2).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "a scheduler of our own",
            """\
import torch

class Warmup:
    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0

    def step(self):
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, self.count / 500)

def train(model, loader, optimizer):
    scheduler = Warmup(optimizer)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scheduler.step()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "the scheduler of the other optimizer",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, sched_g, sched_d, scaler):
    for x in loader:
        opt_d.zero_grad()
        scaler.scale(disc(x)).backward()
        scaler.step(opt_d)
        sched_d.step()
        opt_g.zero_grad()
        scaler.scale(gen(x)).backward()
        scaler.step(opt_g)
        sched_g.step()
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Scheduler steps against the steps of the scaler in the same loop."""
        for flow in source.flows:
            steps = [step for step in flow.of("step") if is_gradient_scaler(source, flow, step.scaler, step)]
            for moved in flow.of("scheduler_step") if steps else ():
                if not _is_learning_rate(source, moved):
                    continue
                if step := _stepped_after(flow, moved, steps):
                    message = (
                        f"{moved.subject_name}.step() runs before {step.scaler_name}.step({step.optimizer_name}): "
                        "move it behind the optimizer's step"
                    )
                    yield source.finding(self, moved.node, message)
                elif _is_torch(source, moved) and (step := _regardless(source, flow, moved, steps)):
                    message = (
                        f"{moved.subject_name}.step() also moves on iterations whose step {step.scaler_name} skipped: "
                        f"compare {step.scaler_name}.get_scale() before and after the update"
                    )
                    yield source.finding(self, moved.node, message, severity=Severity.INFO)


def _stepped_after(flow: Flow, moved: Event, steps: list[Event]) -> Event | None:
    """The step of the scaler that comes behind the scheduler in the same iteration, with none before it."""
    around = flow.loops(moved)
    here = [step for step in steps if flow.loops(step) == around]
    if any(flow.may_reach(step, moved, same_iteration=True) for step in here):
        return None
    fed = [step for step in here if flow.path(moved, step, same_iteration=True)]
    return next((step for step in fed if around or _backward_before(flow, moved)), None)


def _backward_before(flow: Flow, moved: Event) -> bool:
    """Outside of loops a scheduler step may prepare the next call; behind a backward it is about this step."""
    return any(flow.path(backward, moved) for backward in flow.of("backward"))


def _regardless(source: SourceFile, flow: Flow, moved: Event, steps: list[Event]) -> Event | None:
    """The step behind which the scheduler moves in each iteration without looking whether it was skipped."""
    loops = flow.loops(moved)
    if not loops or flow.of("get_scale") or _asks_skipped(source, moved):
        return None
    return next(
        (step for step in steps if flow.loops(step) == loops and flow.path(step, moved, same_iteration=True)), None
    )


def _asks_skipped(source: SourceFile, moved: Event) -> bool:
    """Whether a condition around the scheduler's step mentions skipping, the scale or an overflow."""
    words = ("skip", "scale", "overflow", "inf", "step_was", "stepped", "finite", "_step_count")
    gates = [node for node in source.ancestors(moved.node) if isinstance(node, ast.If | ast.IfExp)]
    return any(word in last_name(part).lower() for gate in gates for part in ast.walk(gate.test) for word in words)


def _is_torch(source: SourceFile, moved: Event) -> bool:
    """Whether this file makes the scheduler with torch (or with transformers, which returns torch schedulers)."""
    node = receiver(moved)
    made = source.kinds.constructors_of(node) if node is not None else []
    return any(name.startswith(_TORCH) for call in made for name in source.qualified(call.func))


def _is_custom(source: SourceFile, made: ast.Call) -> bool:
    """Whether a constructor is of a scheduler that keeps an order of its own: a class of this file, or of timm."""
    if any(name.startswith("timm.") for name in source.qualified(made.func)):
        return True
    return any(isinstance(binding.node, ast.ClassDef) for binding in source.bindings(made.func))


def _is_learning_rate(source: SourceFile, moved: Event) -> bool:
    """Whether the call looks like that of a torch scheduler: at most a metric or an epoch is handed over."""
    call, node = moved.node, receiver(moved)
    if not isinstance(call, ast.Call) or node is None or len(call.args) + len(call.keywords) > 0:
        return False
    if _is_torch(source, moved):
        return True
    if any(_is_custom(source, made) for made in source.kinds.constructors_of(node)):
        return False
    statement = source.parent(call)
    noise = any(word in last_name(node).lower() for word in ("noise", "ddpm", "ddim", "diffusion", "temp", "beta"))
    return isinstance(statement, ast.Expr) and not noise

"""AMP105: one scaler is updated more than once per iteration."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import (
    block_of,
    is_gradient_scaler,
    receiver,
    runs_before,
    same_optimizer,
    varies,
)

_CHECKS = ("step", "unscale", "handed", "wrapper")


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
                if varies(source, receiver(update), update.calls) or _sets_scale(update):
                    continue
                found = (
                    self._in_loop(source, flow, update)
                    or self._again(source, flow, update)
                    or self._too_early(flow, update)
                    or self._bare(source, flow, update)
                )
                if found is not None:
                    message, severity, later = found
                    fix = self._fix(source, update, later) if later else None
                    yield source.finding(self, update.node, message, severity=severity, fix=fix)

    def _in_loop(self, source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, Event | None] | None:
        for step in flow.of("step", scaler=update.scaler):
            around = flow.loops(step)
            if not around or around != flow.loops(update) or not _varies(source, step):
                continue
            if flow.path(update, step, without=("scale", "backward", "zero_grad")) is not None:
                message = (
                    f"{update.scaler_name}.update() runs after each optimizer of the loop, so later ones are unscaled "
                    "with another scale than their gradients have: move it behind the loop"
                )
                return message, Severity.WARNING if _is_filtered(source, step) else Severity.ERROR, None
        return None

    def _again(self, source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, Event] | None:
        for later in flow.of("update", scaler=update.scaler):
            same_iteration = later is not update and flow.loops(later) == flow.loops(update)
            if not same_iteration or flow.path(update, later, same_iteration=True) is None or _sets_scale(later):
                continue
            steps = flow.of("step", scaler=update.scaler)
            before = [step for step in steps if flow.may_reach(step, update, same_iteration=True)]
            if not any(flow.path(step, update, same_iteration=True) for step in before):
                continue
            checks = [*steps, *flow.of("unscale")]
            if not any(_may_lie_between(flow, update, event, later) for event in checks):
                return _second(update), Severity.ERROR, later
            for step in steps:
                if _is_other(source, step, before) and _lies_between(flow, update, step, later):
                    return (*self._judge(flow, update, step), later)
        return None

    def _too_early(self, flow: Flow, update: Event) -> tuple[str, Severity, None] | None:
        """A step behind the update whose gradients are from before it, where nothing is stepped in between."""

        def stepped(event: Event) -> bool:
            return event.kind in ("step", "handed", "wrapper", "get_scale") or event.kind == "zero_grad"

        fresh = ("scale", "backward", "handed", "wrapper", "update", "zero_grad")
        for step in flow.of("step", scaler=update.scaler):
            if flow.path(update, step, without=fresh, same_iteration=True) is None:
                continue
            backwards = [event for event in flow.of("backward", scaler=update.scaler) if event.scaled]
            if any(flow.path(event, update, without=stepped, same_iteration=True) for event in backwards):
                name = update.scaler_name
                message = f"{name}.update() before {name}.step({step.optimizer_name}): update after the step"
                return message, Severity.ERROR, None
        return None

    def _bare(self, source: SourceFile, flow: Flow, update: Event) -> tuple[str, Severity, None] | None:
        """An update on a path that skips the step, in a function that has all of the protocol.

        The blocks, not the flow, tell that no step stands before it: no path found is no proof that there is none.
        """
        found = [event for event in flow.events if event.kind in _CHECKS]
        own = {event.node for event in found if event.function is update.function and not event.calls}
        elsewhere = not source.shared(_checking_nodes) <= own
        steps = [event.node for event in flow.of("step", scaler=update.scaler)]
        others = [event.node for event in flow.of("update", scaler=update.scaler) if event is not update]
        if update.calls or elsewhere or not steps or not flow.of("scale", scaler=update.scaler):
            return None
        if any(runs_before(source, node, update.node) for node in own):
            return None
        if not all(any(runs_before(source, step, other) for other in others) for step in steps):
            return None  # the update may be for the step of the iteration or call before
        if flow.path(None, update, without=_CHECKS) is None:
            return None
        name = update.scaler_name
        message = f"{name}.update() with no step or unscale_ before it raises AssertionError: leave it out on this path"
        return message, Severity.ERROR, None

    def _judge(self, flow: Flow, update: Event, step: Event) -> tuple[str, Severity]:
        scaler = update.scaler
        if flow.path(update, step, without=("scale", "backward"), same_iteration=True) is not None:
            return (
                f"{scaler}.update() before {scaler}.step({step.optimizer_name}), whose gradients carry the older "
                "scale: update once, after all steps"
            ), Severity.ERROR
        return (
            f"{scaler}.update() runs once per optimizer and again after {scaler}.step({step.optimizer_name}): "
            "update once, after all steps of the iteration"
        ), Severity.WARNING

    def _fix(self, source: SourceFile, update: Event, later: Event) -> Fix | None:
        statement, last = source.statement_of(update.node), source.statement_of(later.node)
        if update.calls or later.calls or not isinstance(statement, ast.Expr) or statement.value is not update.node:
            return None
        if last not in block_of(source, statement):
            return None
        return Fix("delete the earlier update", (edits.delete_statement(source, statement),), safety=Safety.UNSAFE)


def _checking_nodes(source: SourceFile) -> frozenset[ast.AST]:
    return frozenset(event.node for event in source.events if event.kind in _CHECKS)


def _second(update: Event) -> str:
    return (
        f"second {update.scaler_name}.update() with no step in between raises AssertionError: update once per iteration"
    )


def _sets_scale(update: Event) -> bool:
    return isinstance(update.node, ast.Call) and bool(update.node.args or update.node.keywords)


def _varies(source: SourceFile, step: Event) -> bool:
    arguments = step.node.args if isinstance(step.node, ast.Call) else []
    return bool(arguments) and varies(source, arguments[0], step.calls)


def _is_filtered(source: SourceFile, step: Event) -> bool:
    """Whether the loop skips some optimizers, so that perhaps only one is stepped."""
    loops = source.loops_of(step.node)
    return bool(loops) and any(isinstance(item, ast.Continue) for part in loops[0].body for item in ast.walk(part))


def _lies_between(flow: Flow, start: Event, event: Event, end: Event) -> bool:
    return (
        flow.path(start, event, same_iteration=True) is not None
        and flow.path(event, end, same_iteration=True) is not None
    )


def _may_lie_between(flow: Flow, start: Event, event: Event, end: Event) -> bool:
    return flow.may_reach(start, event, same_iteration=True) and flow.may_reach(event, end, same_iteration=True)


def _is_other(source: SourceFile, step: Event, before: list[Event]) -> bool:
    """Whether the step is plainly of another optimizer than those stepped before."""
    if _varies(source, step) or any(_varies(source, item) for item in before):
        return False
    return not any(same_optimizer(step.optimizer, item.optimizer) for item in before)

"""AMP116: gradients are cleared after the backward, before the step that needs them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import is_gradient_scaler, receiver, varies

# Methods that use the gradients of a first backward for something else than a step: adversarial training, SAM, PCGrad.
_USES_GRADIENTS = re.compile(r"attack|backup|restore|perturb|fgsm|fgm|pgd|ascent|first_step|surgery")


class ZeroGradBetweenBackwardAndStep(SourceRule):
    """optimizer.zero_grad() runs between the scaled backward and scaler.step.

    ## What it does
    Looks for a path backward, `zero_grad`, `scaler.step` of one optimizer within an iteration, with no further backward
    behind the `zero_grad`. A warning where another backward follows it, so that the step has the second loss alone.

    ## Why is this bad
    The step sees no gradients. With `set_to_none=True` (the default) `scaler.step` raises `AssertionError: No inf
    checks were recorded for this optimizer`; with zeros the weights only move by weight decay and old momentum, and the
    loss stays where it is.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        optimizer.zero_grad()
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
    No fix. Before the backward or after the step is right as well, depending on whether gradients accumulate.

    ## References
    - https://docs.pytorch.org/tutorials/recipes/recipes/amp_recipe.html
    """

    code = "AMP116"
    name = "zero-grad-between-backward-and-step"
    severity = Severity.ERROR
    keywords = (b"caler",)

    INVALID = (
        Example(
            "cleared right after the backward",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda"):
            loss = model(x)
        scaler.scale(loss).backward()
        optimizer.zero_grad(set_to_none=True)  # <- AMP116@9
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "model.zero_grad, step in a method",
            """\
import torch

class Trainer:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def apply(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def fit(self, batches):
        for batch in batches:
            self.scaler.scale(self.model(batch)).backward()
            self.model.zero_grad()  # <- AMP116
            self.apply()
""",
        ),
    )
    VALID = (
        Example(
            "after the step",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "gradients of the other model",
            """\
import torch

def train(gen, disc, loader, opt_g, opt_d, scaler):
    for x in loader:
        opt_g.zero_grad()
        scaler.scale(disc(gen(x))).backward()
        opt_d.zero_grad()
        disc.zero_grad()
        scaler.step(opt_g)
        scaler.scale(disc(x)).backward()
        scaler.step(opt_d)
        scaler.update()
""",
        ),
        Example(
            "gradients of one layer only",
            """\
import torch

def train(model, loader, optimizer, scaler, epoch):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        if epoch < 1:
            for p in model.last_layer.parameters():
                p.grad = None
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "cleared when the batch is dropped",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        scaler.scale(model(x)).backward()
        if x.is_bad:
            optimizer.zero_grad()
            continue
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
        Example(
            "a second backward afterwards",
            """\
import torch

def train(model, loader, optimizer, scaler, perturb):
    for x in loader:
        scaler.scale(model(x)).backward()
        perturb(model)
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Clears between a backward and the step of the same optimizer."""
        for flow in source.flows:
            for cleared in flow.of("zero_grad"):
                step = next((item for item in flow.of("step") if self._is_lost(source, flow, cleared, item)), None)
                if step is None and (lost := self._replaced(source, flow, cleared)) is not None:
                    message = (
                        f"gradients of the backward in line {lost.node.lineno} are cleared before "
                        f"{lost.scaler_name}.step uses them: clear before the first backward of the iteration alone"
                    )
                    yield source.finding(self, cleared.node, message, severity=Severity.WARNING)
                if step is not None:
                    message = (
                        f"gradients are cleared between backward and {step.scaler_name}.step({step.optimizer_name}), "
                        "which then has none: clear them before the backward or after the step"
                    )
                    yield source.finding(self, cleared.node, message)

    def _replaced(self, source: SourceFile, flow: Flow, cleared: Event) -> Event | None:
        """The scaled backward whose gradients are cleared, while those of another one of the scaler are stepped.

        Only where the scaler steps nothing but what is cleared: else they may have been meant for another optimizer.
        """
        if _takes_gradients_apart(source, cleared):
            return None
        for step in flow.of("step"):
            others = {event.optimizer for event in flow.of("step", scaler=step.scaler)} - {step.optimizer}
            if others or cleared.optimizer != step.optimizer or varies(source, receiver(cleared), cleared.calls):
                continue

            def used(event: Event, step: Event = step) -> bool:
                if event.kind in ("grad_read", "autograd_grad", "wrapper"):
                    return True
                return event.kind in ("step", "optimizer_step") and event.optimizer == step.optimizer

            backwards = [event for event in flow.of("backward", scaler=step.scaler) if event.scaled]
            for lost in backwards:
                refills = [event for event in backwards if event.node is not lost.node and event is not lost]
                if flow.path(lost, cleared, without=used, same_iteration=True) and any(
                    flow.path(cleared, event, without=used, same_iteration=True)
                    and flow.path(event, step, same_iteration=True)
                    for event in refills
                ):
                    return lost
        return None

    def _is_lost(self, source: SourceFile, flow: Flow, cleared: Event, step: Event) -> bool:
        if not cleared.optimizer or not _belongs(source, flow, cleared, step):
            return False
        if not is_gradient_scaler(source, flow, step.scaler, step) or varies(source, receiver(cleared), cleared.calls):
            return False
        refilled = ("backward", "autograd_grad", "wrapper", "grad_write", "step")
        if flow.path(cleared, step, without=refilled, same_iteration=True) is None:
            return False

        def used(event: Event) -> bool:
            return event.kind in ("step", "optimizer_step") and event.optimizer == step.optimizer

        return any(
            flow.path(backward, cleared, without=used, same_iteration=True)
            for backward in flow.of("backward")
            if backward.owner == "user"
        )


def _takes_gradients_apart(source: SourceFile, cleared: Event) -> bool:
    """Whether the function around calls something that works on gradients by itself."""
    return any(
        source.function_of(call) is cleared.function and _USES_GRADIENTS.search(last_name(call.func).lower())
        for call in source.nodes(ast.Call)
    )


def _belongs(source: SourceFile, flow: Flow, cleared: Event, step: Event) -> bool:
    """Whether what is cleared is what the optimizer steps: itself, or the one model that it was made for."""
    if cleared.optimizer == step.optimizer:
        return True
    stepped = {event.optimizer for event in flow.of("step", "optimizer_step")}
    node = receiver(cleared)
    if len(stepped) > 1 or node is None or source.kind(node) == "optimizer":
        return False
    call = step.node
    made = source.kinds.constructors_of(call.args[0]) if isinstance(call, ast.Call) and call.args else []
    trained = [source.segment(model) for item in made for model in _models(item)]
    return source.segment(node) in trained or (not made and source.segment(node) in ("model", "self.model"))


def _models(made: ast.Call) -> Iterator[ast.expr]:
    """The models whose ``parameters()`` an optimizer is made with."""
    for part in ast.walk(made):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr == "parameters":
            yield part.func.value

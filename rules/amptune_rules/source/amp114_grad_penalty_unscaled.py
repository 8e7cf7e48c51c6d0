"""AMP114: a penalty on gradients is computed from gradients with the wrong scale."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._models import is_float16
from amptune_rules.source._protocol import is_gradient_scaler


class GradPenaltyUnscaled(SourceRule):
    """torch.autograd.grad for a gradient penalty without scaling, or without taking the scale out again.

    ## What it does
    Looks at `torch.autograd.grad(..., create_graph=True)` in training code with a gradient scaler. An error where the
    output is scaled and the gradients are used without `1 / scaler.get_scale()`; a warning where the output comes from
    a float16 autocast forward and is not scaled.

    ## Why is this bad
    Gradients of a scaled output are 65536 times too large, and so is their norm: a WGAN penalty of `(norm - 1) ** 2`
    consists of the scale alone, and overflows FP16 (65504). Gradients of an unscaled float16 output lose what falls
    below 3e-8 to zero, and the penalty is computed from the rest.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x))
        grads = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
        penalty = sum(g.pow(2).sum() for g in grads).sqrt()
        scaler.scale(loss + penalty).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x))
        grads = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
        grads = [g * (1.0 / scaler.get_scale()) for g in grads]
        penalty = sum(g.pow(2).sum() for g in grads).sqrt()
        scaler.scale(loss + penalty).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix. Scaling, unscaling and the penalty stand in three places; an alternative is to compute the whole penalty
    with autocast disabled.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#gradient-penalty
    """

    code = "AMP114"
    name = "grad-penalty-unscaled"
    severity = Severity.ERROR
    keywords = (b"create_graph",)
    requires = (b"caler",)

    INVALID = (
        Example(
            "scaled, never unscaled",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        weights = list(model.parameters())
        grads = torch.autograd.grad(outputs=scaler.scale(loss), inputs=weights, create_graph=True)  # <- AMP114@17
        penalty = sum(g.norm() for g in grads)
        scaler.scale(loss + penalty).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "WGAN-GP in float16, not scaled",
            """\
import torch
from torch.autograd import grad

def penalty_of(disc, mixed):
    mixed.requires_grad_(True)
    score = disc(mixed)
    found = grad(score, mixed, torch.ones_like(score), create_graph=True)[0]  # <- AMP114
    return (found.flatten(1).norm(dim=1) - 1).pow(2).mean()

def train(disc, loader, opt_d):
    scaler = torch.amp.GradScaler("cuda")
    for real, mixed in loader:
        opt_d.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = disc(real).mean() + 10 * penalty_of(disc, mixed)
        scaler.scale(loss).backward()
        scaler.step(opt_d)
        scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "as documented",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        scaled = torch.autograd.grad(scaler.scale(loss), model.parameters(), create_graph=True)
        inv_scale = 1.0 / scaler.get_scale()
        grads = [g * inv_scale for g in scaled]
        with torch.autocast("cuda"):
            loss = loss + sum(g.pow(2).sum() for g in grads).sqrt()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "autocast is off for the penalty",
            """\
import torch

def penalty_of(disc, mixed):
    with torch.autocast("cuda", enabled=False):
        score = disc(mixed.float())
        found = torch.autograd.grad(score.sum(), mixed, create_graph=True)[0]
        return (found.flatten(1).norm(dim=1) - 1).pow(2).mean()

def train(disc, loader, opt_d):
    scaler = torch.amp.GradScaler("cuda")
    for real, mixed in loader:
        opt_d.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = disc(real).mean() + penalty_of(disc, mixed)
        scaler.scale(loss).backward()
        scaler.step(opt_d)
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
        grads = torch.autograd.grad(loss, model.parameters(), create_graph=True)
        (loss + sum(g.pow(2).sum() for g in grads)).backward()
        optimizer.step()
""",
        ),
        Example(
            "bfloat16, which needs no scale",
            """\
import torch

def train(model, loader, optimizer):
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        grads = torch.autograd.grad(loss, model.parameters(), create_graph=True)
        (loss + sum(g.pow(2).sum() for g in grads)).backward()
        optimizer.step()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Double backwards under a gradient scaler."""
        for flow in source.flows:
            scales = [event for event in flow.of("scale") if is_gradient_scaler(source, flow, event.scaler, event)]
            for grad in flow.of("autograd_grad") if scales else ():
                call = grad.node
                if (
                    not isinstance(call, ast.Call)
                    or source.constant(source.argument(call, "create_graph", 4)) is not True
                ):
                    continue
                outputs = source.argument(call, "outputs", 0)
                used = [event for event in scales if flow.path(grad, event, same_iteration=True)]
                if outputs is None or not used or _is_unscaled(flow, grad):
                    continue
                if _is_scaled(source, outputs):
                    message = (
                        "gradients of a scaled output go into the penalty: "
                        f"multiply them by 1 / {used[0].scaler_name}.get_scale() first"
                    )
                    yield source.finding(self, call, message)
                elif _is_float16(source, grad, outputs):
                    message = (
                        "gradients of an unscaled float16 output go into the penalty: scale the output and divide the "
                        "gradients by the scale, or compute the penalty with autocast disabled"
                    )
                    yield source.finding(self, call, message, severity=Severity.WARNING)


def _is_unscaled(flow: Flow, grad: Event) -> bool:
    """Whether the scale is asked for in the same function, or on the way from there."""
    return any(event.function is grad.function or flow.may_reach(grad, event) for event in flow.of("get_scale"))


def _is_scaled(source: SourceFile, outputs: ast.expr) -> bool:
    """Whether the outputs are, or hold, ``scaler.scale(...)``."""
    leaves = [*source.values(outputs), *(binding.value for binding in source.bindings(outputs) if binding.value)]
    return any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr == "scale"
        and source.kind(part.func.value) == "scaler"
        for leaf in leaves
        for part in ast.walk(leaf)
    )


def _is_float16(source: SourceFile, grad: Event, outputs: ast.expr) -> bool:
    """Whether the outputs come out of a float16 autocast forward."""
    roots = [part for part in ast.walk(outputs) if isinstance(part, ast.Name) and last_name(part) != "torch"]
    made: list[ast.AST] = [binding.node for root in roots for binding in source.bindings(root)]
    places: list[ast.AST] = [node for node in made if isinstance(node, ast.Assign | ast.AnnAssign)]
    for place in places or [grad.node]:
        if (region := source.autocast(place)) is None:
            # the region may be around a call that leads here
            outer = [found for call in reversed(grad.calls) if (found := source.autocast(call)) is not None]
            region = outer[0] if outer else None
        if region is not None and region.enabled is not False and is_float16(source, region):
            return True
    return False

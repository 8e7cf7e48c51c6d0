"""AMP117: a gradient is measured or changed while it still carries the loss scale."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import is_gradient_scaler

_MEASURES = frozenset(
    {"norm", "vector_norm", "_foreach_norm", "abs", "mean", "max", "min", "amax", "amin", "sum", "std", "var", "pow",
     "square", "item", "tolist", "numpy", "median", "quantile", "histc", "clamp", "clip", "sign_norm", "float_power",
     "Histogram", "add_histogram", "add_scalar", "print"}
)  # fmt: skip
_PASSES = frozenset(
    {"data", "detach", "clone", "float", "double", "view", "flatten", "reshape", "cpu", "to", "contiguous", "ravel",
     "cuda", "stack", "cat", "norm_list", "append"}
)  # fmt: skip
_FINITE = frozenset({"isnan", "isinf", "isfinite", "any", "all", "sign", "count_nonzero", "nonzero"})
_CHANGES = frozenset({"add_", "sub_", "clamp_", "clip_", "clamp_min_", "clamp_max_", "copysign_"})


class ScaledGradRead(SourceRule):
    """p.grad is measured, clamped or added to after a scaled backward and before scaler.unscale_.

    ## What it does
    Looks for uses of `.grad` whose result depends on the size of the gradient (norms, means, histograms, `clamp_`,
    added noise) on a path from a scaled backward with no `unscale_` before them.

    ## Why is this bad
    The values are multiplied by the loss scale: a gradient norm of 0.5 is logged as 32768 and jumps by 2 whenever the
    scale changes; clamping to 1.0 acts as 1.5e-5; noise that was chosen for real gradients vanishes.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        norm = sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix. `scaler.unscale_(optimizer)` has to come first, once per optimizer and update.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/amp_examples.html#working-with-unscaled-gradients
    """

    code = "AMP117"
    name = "scaled-grad-read"
    severity = Severity.WARNING
    keywords = (b"caler",)

    INVALID = (
        Example(
            "norm for the log, in a helper",
            """\
import torch

def grad_norm(model):
    total = 0.0
    for p in model.parameters():
        if p.grad is not None:
            total += p.grad.data.norm(2).item() ** 2  # <- AMP117
    return total ** 0.5

def train(model, loader, optimizer, log):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        log(grad_norm(model))
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "clamped by hand",
            """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        for p in model.parameters():
            p.grad.clamp_(-1.0, 1.0)  # <- AMP117
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "stacked norms",
            """\
import torch

class Trainer:
    def __init__(self):
        self.scaler = torch.amp.GradScaler("cuda")

    def step(self, loss):
        self.scaler.scale(loss).backward()
        norms = torch.stack([torch.linalg.vector_norm(p.grad) for p in self.model.parameters()])  # <- AMP117
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norms
""",
        ),
        Example(
            "clamped through data",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        scaler.scale(model(x)).backward()
        for p in model.parameters():
            p.grad.data.clamp_(-1, 1)  # <- AMP117
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
    )
    VALID = (
        Example(
            "unscaled first",
            """\
import torch

def train(model, loader, optimizer, log):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.unscale_(optimizer)
        log([p.grad.norm() for p in model.parameters()])
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "divided by the scale",
            """\
import torch

def train(model, loader, optimizer, log):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        log([p.grad.norm() / scaler.get_scale() for p in model.parameters()])
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "scale does not matter: presence, finiteness, averages over processes",
            """\
import torch
import torch.distributed as dist

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        for p in model.parameters():
            if p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0:
                dist.all_reduce(p.grad)
                p.grad.div_(dist.get_world_size())
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "after the step, which unscales",
            """\
import torch

def train(model, loader, optimizer, log):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
        log([p.grad.norm() for p in model.parameters()])
""",
        ),
        Example(
            "the branch without mixed precision",
            """\
import torch

def train(model, loader, optimizer, scaler=None):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            print([p.grad.norm() for p in model.parameters()])
            optimizer.step()
""",
        ),
        Example(
            "gradients of two models are added",
            """\
import torch

def train(model, twin, loader, optimizer, scaler):
    for x in loader:
        scaler.scale(model(x) + twin(x)).backward()
        for p, q in zip(model.parameters(), twin.parameters()):
            p.grad.add_(q.grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of gradients that a scaled backward has just written."""
        for flow in source.flows:
            backwards = [
                event
                for event in flow.of("backward")
                if event.scaled and _is_on(source, flow, event) and event.owner == "user"
            ]
            for read in flow.of("grad_read", "grad_write") if backwards else ():
                if not _depends_on_scale(source, read) or _knows_scale(source, flow, read):
                    continue
                for backward in backwards:
                    if flow.path(backward, read, without=_rescales, same_iteration=True):
                        message = (
                            "the gradient is still multiplied by the loss scale here: "
                            f"call {backward.scaler_name}.unscale_(optimizer) first"
                        )
                        yield source.finding(self, read.node, message)
                        break


def _is_on(source: SourceFile, flow: Flow, backward: Event) -> bool:
    scale = next(iter(flow.of("scale", scaler=backward.scaler)), None)
    return scale is not None and is_gradient_scaler(source, flow, backward.scaler, scale)


def _rescales(event: Event) -> bool:
    if event.kind == "grad_write":
        return True
    return event.kind in ("unscale", "step", "zero_grad", "get_scale", "wrapper", "handed")


def _knows_scale(source: SourceFile, flow: Flow, read: Event) -> bool:
    """Whether the function of the read asks for the scale, or has something called scale at hand in the statement."""
    if any(event.function is read.function for event in flow.of("get_scale")):
        return True
    return any("scale" in last_name(part).lower() for part in ast.walk(source.statement_of(read.node)))


def _depends_on_scale(source: SourceFile, read: Event) -> bool:
    """Whether the use gives another answer for a gradient that is 65536 times as large."""
    node: ast.AST = read.node
    statement = source.statement_of(node)
    if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        adds = isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add | ast.Sub)
        return adds and not _mentions_grad(statement, node)
    measured = False
    while (parent := source.parent(node)) is not None and not isinstance(parent, ast.stmt):
        name = _applied(parent, node)
        if name in _FINITE or isinstance(parent, ast.Compare):
            return False
        if name in _CHANGES:
            call = parent if isinstance(parent, ast.Call) else source.parent(parent)
            return not _mentions_grad(call or parent, read.node)
        if name in _MEASURES or isinstance(parent, ast.FormattedValue):
            measured = True
        elif isinstance(parent, ast.BinOp):
            measured |= isinstance(parent.op, ast.Pow | ast.Add | ast.Sub) and not _mentions_grad(parent, read.node)
        elif not measured and name and name not in _PASSES:
            return False
        node = parent
    return measured


def _applied(parent: ast.AST, node: ast.AST) -> str:
    """The method or function that the parent applies to the node: "norm" of ``g.norm()`` and of ``torch.norm(g)``."""
    if isinstance(parent, ast.Attribute):
        return parent.attr
    if isinstance(parent, ast.Call) and node is not parent.func:
        return last_name(parent.func)
    return ""


def _mentions_grad(node: ast.AST, besides: ast.AST) -> bool:
    """Whether another gradient is part of the expression, which would carry the same scale.

    What only has the shape of a gradient, as ``torch.randn_like(p.grad)``, does not.
    """
    if isinstance(node, ast.Call) and last_name(node.func).endswith("_like"):
        return False
    if isinstance(node, ast.Attribute) and node.attr == "grad" and node is not besides:
        return True
    return any(_mentions_grad(part, besides) for part in ast.iter_child_nodes(node))

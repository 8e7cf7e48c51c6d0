"""AMP201: backward is called inside an autocast region."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile


class BackwardInAutocast(SourceRule):
    """backward runs inside an autocast region.

    ## What it does
    Flags `loss.backward()`, and `scaler.scale(loss).backward()`, inside `with torch.autocast(...)`, also when the
    region is in the function that calls a helper of the same file.

    ## Why is this bad
    Backward operations run in the dtype that autocast chose for the forward, so in eager mode the region gains nothing;
    the documentation advises against it. Under `torch.compile` it changes results: the backward graph is traced with
    autocast on, and FP32 gradient arithmetic is cast to 16 bits. There the rule is an error.

    ## Example
    ```python
    import torch
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
            loss.backward()
        optimizer.step()
    ```

    ## Use instead
    ```python
    import torch
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
    ```

    ## Fix safety
    Unsafe: the backward and all statements after it are moved out of the block; a second forward among them would then
    run without autocast.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#autocasting
    - https://docs.pytorch.org/docs/main/user_guide/torch_compiler/torch.compiler_backward.html
    """

    code = "AMP201"
    name = "backward-in-autocast"
    severity = Severity.WARNING
    keywords = (b".backward(", b"caler(")
    requires = (b"autocast",)

    INVALID = (
        Example(
            "scaled backward as the last statements of the region",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(x)
            # the scaled loss
            scaler.scale(loss).backward()  # <- AMP201@13
            scaler.step(optimizer)
        scaler.update()
""",
            fixed="""\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(x)
        # the scaled loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "decorated function, backward in a helper",
            """\
from torch import autocast as ac

def finish(loss):
    loss.backward()  # <- AMP201

@ac("cuda", dtype=__import__("torch").bfloat16)
def step(model, x):
    finish(model(x))
""",
        ),
        Example(
            "compiled step",
            """\
import torch

@torch.compile
def step(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
        loss.backward()  # <- AMP201
""",
            fixed="""\
import torch

@torch.compile
def step(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    loss.backward()
""",
        ),
        Example(
            "a wrapper scaler that runs the backward",
            """\
import torch
from ours.amp import GradScaler

def train(model, loader, optimizer, loss_fn):
    scaler = GradScaler()
    for x, y in loader:
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
            scaler(loss=loss, optimizer=optimizer, clip_grad=1.0)  # <- AMP201
""",
            fixed="""\
import torch
from ours.amp import GradScaler

def train(model, loader, optimizer, loss_fn):
    scaler = GradScaler()
    for x, y in loader:
        with torch.autocast("cuda"):
            loss = loss_fn(model(x), y)
        scaler(loss=loss, optimizer=optimizer, clip_grad=1.0)
""",
        ),
    )
    VALID = (
        Example(
            "backward after the region",
            """\
import torch

def step(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    loss.backward()
""",
        ),
        Example(
            "autocast is switched off around it",
            """\
import torch

def step(model, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
        with torch.autocast("cuda", enabled=False):
            loss.backward()
""",
        ),
        Example(
            "another context with a similar name",
            """\
from recorder import autocast_table

def step(model, x):
    with autocast_table("cuda"):
        model(x).backward()
""",
        ),
        Example(
            "gradient penalty needs the graph inside",
            """\
import torch

def penalty(net, x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = net(x).sum()
        grads = torch.autograd.grad(out, x, create_graph=True)[0]
        return grads.pow(2).mean()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Backward calls in a region of their own function or of a caller."""
        seen: set[ast.expr] = set()
        for flow in source.flows:
            for event in flow.of("backward", "wrapper"):
                region = self._region(source, event) if _runs_backward(event) else None
                if region is not None and event.node not in seen:
                    seen.add(event.node)
                    yield self._finding(source, event, region)

    def _region(self, source: SourceFile, event: Event) -> Region | None:
        """The autocast region that is on when the event runs, innermost call first."""
        for node in (event.node, *reversed(event.calls)):
            region = source.autocast(node)
            if region is not None:
                return None if region.enabled is False else region
        return None

    def _finding(self, source: SourceFile, event: Event, region: Region) -> Finding:
        compiled = any(_is_compiled(source, node) for node in (event.node, *event.calls))
        place = f"the autocast region of line {getattr(region.node, 'lineno', 0)}"
        effect = (
            "torch.compile then traces the backward with autocast on and changes its results"
            if compiled
            else "it has no use there, and changes results once the step is compiled"
        )
        return source.finding(
            self,
            event.node,
            f"backward inside {place}: {effect}; call it after the region",
            severity=Severity.ERROR if compiled else Severity.WARNING,
            fix=self._fix(source, event, region),
        )

    def _fix(self, source: SourceFile, event: Event, region: Region) -> Fix | None:
        if not isinstance(region.node, ast.With) or not source.index.is_inside(event.node, region.node):
            return None
        edit = edits.dedent_tail(source, region.node, source.statement_of(event.node))
        return Fix("move backward out of the autocast region", (edit,), Safety.UNSAFE) if edit else None


def _runs_backward(event: Event) -> bool:
    """Whether this is a backward, or a call of a wrapper scaler that does it: ``loss_scaler(loss, optimizer)``."""
    call = event.node
    if event.kind == "backward":
        return True
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and len(call.args) + len(call.keywords) > 1


def _is_compiled(source: SourceFile, node: ast.AST) -> bool:
    """Whether the function around the node is decorated with torch.compile, or handed to it in this file."""
    function = source.function_of(node)
    if function is None:
        return False
    for decorator in function.decorator_list:
        func = decorator.func if isinstance(decorator, ast.Call) else decorator
        if "torch.compile" in source.qualified(func):
            return True
    return any(call.args and source.definition(call.args[0]) is function for call in source.calls("torch.compile"))

"""AMP112: checkpoints hold the optimizer but not the gradient scaler."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.fold import UNKNOWN
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile


class ScalerStateNotSaved(SourceRule):
    """A checkpoint holds the state of the optimizer but not that of the scaler, or restores the one alone.

    ## What it does
    Flags the optimizer's entry in a checkpoint dict, in a file that makes a `GradScaler` and never calls
    `scaler.state_dict()`; and `optimizer.load_state_dict` where the scaler's state is saved but never loaded.

    ## Why is this bad
    A resumed run starts at a scale of 65536 again. Where the model had settled at 1024, the first six steps after each
    resume are skipped, and the count towards the next doubling (2000 good steps) starts from zero.

    ## Example
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    torch.save(state, "last.pt")
    ```

    ## Fix safety
    No fix. The key's name, and the code that loads it, are the program's own format.

    ## References
    - https://docs.pytorch.org/tutorials/recipes/recipes/amp_recipe.html#saving-resuming
    """

    code = "AMP112"
    name = "scaler-state-not-saved"
    severity = Severity.INFO
    keywords = (b"GradScaler",)

    INVALID = (
        Example(
            "dict given to torch.save",
            """\
import torch

def train(model, loader, path):
    optimizer = torch.optim.Adam(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),  # <- AMP112@26
        },
        path,
    )
""",
        ),
        Example(
            "built with dict(), in another function",
            """\
import torch

class Trainer:
    def __init__(self, model):
        self.model = model
        self.opt = torch.optim.Adam(model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def save(self, path, epoch):
        state = dict(epoch=epoch, model=self.model.state_dict(), optim=self.opt.state_dict())  # <- AMP112
        torch.save(state, path)
""",
        ),
        Example(
            "saved but not restored",
            """\
import torch

def save(model, optimizer, scaler, path):
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "s": scaler.state_dict()}, path)

def resume(model, optimizer, path):
    scaler = torch.amp.GradScaler("cuda")
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])  # <- AMP112
    return scaler
""",
        ),
    )
    VALID = (
        Example(
            "saved and loaded",
            """\
import torch

scaler = torch.amp.GradScaler("cuda")

def save(model, optimizer, path):
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "s": scaler.state_dict()}, path)

def resume(model, optimizer, path):
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    scaler.load_state_dict(state["s"])
""",
        ),
        Example(
            "added to the dict later",
            """\
import torch

def save(model, optimizer, path, use_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if use_amp:
        state["scaler"] = scaler.state_dict()
    torch.save(state, path)
""",
        ),
        Example(
            "weights only",
            """\
import torch

def train(model, optimizer, path):
    scaler = torch.amp.GradScaler("cuda")
    scaler.scale(model(1)).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.save({"model": model.state_dict()}, path)
""",
        ),
        Example(
            "bfloat16: the scaler is off",
            """\
import torch

def save(model, optimizer, path):
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return scaler
""",
        ),
        Example(
            "a loop over everything with a state",
            """\
import torch

def save(model, optimizer, path):
    parts = {"model": model, "optimizer": optimizer, "scaler": torch.amp.GradScaler("cuda")}
    torch.save({name: part.state_dict() for name, part in parts.items()}, path)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Optimizer states that are saved or restored without the scaler's."""
        if not any(_may_be_on(source, call) for call in source.kinds.scaler_constructors()):
            return
        saved = source.method_calls("state_dict")
        loaded = source.method_calls("load_state_dict")
        saves_scaler = any(_is_scaler(source, call) for call in saved) or _names_scaler(source)
        if not saves_scaler:
            for call in saved:
                if _is_optimizer(source, call) and _is_entry(source, call):
                    message = "the checkpoint holds the optimizer but not the scaler: add scaler.state_dict()"
                    yield source.finding(self, call, message)
        elif not any(_is_scaler(source, call) for call in loaded) and any(_is_scaler(source, call) for call in saved):
            for call in loaded:
                if _is_optimizer(source, call) and _is_restored(call):
                    message = "the scaler's state is saved but never loaded: add scaler.load_state_dict"
                    yield source.finding(self, call, message)


def _may_be_on(source: SourceFile, call: ast.Call) -> bool:
    value = source.constant(source.kinds.enabled_by(call))
    return value is UNKNOWN or bool(value)


def _object(call: ast.Call) -> ast.expr:
    assert isinstance(call.func, ast.Attribute)
    return call.func.value


def _is_scaler(source: SourceFile, call: ast.Call) -> bool:
    """Whether the state is a scaler's, or that of something that may be one: a loop variable, an item."""
    item = _object(call)
    if source.kind(item) in ("scaler", "wrapper_scaler", "accelerator", "engine") or "amp" in last_name(item).lower():
        return True
    return isinstance(item, ast.Name) and any(binding.kind == "loop" for binding in source.bindings(item))


def _names_scaler(source: SourceFile) -> bool:
    """Whether something else may save it: a call of a helper for checkpoints that is given the scaler."""
    for call in source.nodes(ast.Call):
        name = last_name(call.func).lower()
        if "save" in name or "checkpoint" in name or "state" in name:
            handed = [*call.args, *(item.value for item in call.keywords)]
            if any("scaler" in last_name(item).lower() for item in handed):
                return True
    return False


def _is_optimizer(source: SourceFile, call: ast.Call) -> bool:
    return source.kind(_object(call)) == "optimizer"


def _is_entry(source: SourceFile, call: ast.Call) -> bool:
    """Whether the state goes into a dict beside others: ``{"optimizer": ...}``, ``dict(optimizer=...)``."""
    parent = source.parent(call)
    if isinstance(parent, ast.IfExp):
        parent = source.parent(parent)
    if isinstance(parent, ast.Dict):
        return True
    if isinstance(parent, ast.keyword):
        owner = source.parent(parent)
        return isinstance(owner, ast.Call) and source.qualified(owner.func) == ("dict",)
    if isinstance(parent, ast.Assign):
        return any(isinstance(target, ast.Subscript) for target in parent.targets)
    return False


def _is_restored(call: ast.Call) -> bool:
    """Whether the state comes out of a checkpoint: an item of something."""
    return bool(call.args) and isinstance(call.args[0], ast.Subscript | ast.Call)

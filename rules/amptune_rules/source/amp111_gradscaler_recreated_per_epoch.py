"""AMP111: a GradScaler is made anew in each epoch or step, so that the scale it has found is lost."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FunctionNode, last_name
from amptune.lint.source import SourceFile

_RUNS = re.compile(r"fold|seed|trial|run|config|split|task|model|stage|phase|repeat|restart|lr$|param", re.IGNORECASE)
_REPEATED = re.compile(
    r"epoch|train_(?:one_)?(?:step|batch|iter)|(?:step|batch|iteration)$|^training_step", re.IGNORECASE
)
_MODEL_MAKERS = re.compile(r"^(?:[A-Z]\w*(?:Net|Model|Former|GAN|UNet)|(?:make|build|create|get)_(?:model|net)\w*)")


class GradscalerRecreatedPerEpoch(SourceRule):
    """A GradScaler is made inside the epoch or step loop, or in a function that is called once per epoch.

    ## What it does
    Flags a `GradScaler()` inside a loop that also steps with it but makes no optimizer of its own, and one inside a
    function that trains for an epoch or a step with an optimizer handed in from outside.

    ## Why is this bad
    The scale starts at 65536 again each time. A model that needs 1024 first overflows six times, and each overflow is a
    skipped batch; the growth counter, 2000 good steps per doubling, is lost as well. With one scaler per step the scale
    never adapts at all.

    ## Example
    ```python
    import torch
    for epoch in range(10):
        scaler = torch.amp.GradScaler("cuda")
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = loss_fn(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    scaler = torch.amp.GradScaler("cuda")
    for epoch in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = loss_fn(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    ```

    ## Fix safety
    No fix. Where the scaler belongs (before the loop, in `__init__`, an argument) the program's structure decides.

    ## References
    - https://docs.pytorch.org/tutorials/recipes/recipes/amp_recipe.html
    """

    code = "AMP111"
    name = "gradscaler-recreated-per-epoch"
    severity = Severity.WARNING
    keywords = (b"GradScaler",)

    INVALID = (
        Example(
            "in the epoch loop",
            """\
import torch

def train(model, loader, optimizer, epochs):
    for epoch in range(epochs):
        scaler = torch.amp.GradScaler("cuda")  # <- AMP111@18
        for x in loader:
            optimizer.zero_grad()
            scaler.scale(model(x)).backward()
            scaler.step(optimizer)
            scaler.update()
""",
        ),
        Example(
            "in the function of one epoch",
            """\
import torch

def train_epoch(model, loader, optimizer, use_amp):
    scaler = torch.amp.GradScaler("cuda", enabled=use_amp)  # <- AMP111
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()

def main(model, loader, args):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(args.epochs):
        train_epoch(model, loader, optimizer, args.amp)
""",
        ),
        Example(
            "in each training step of a class",
            """\
import torch

class Learner:
    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())

    def train_step(self, batch):
        self.scaler = torch.amp.GradScaler("cuda")  # <- AMP111
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(batch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
""",
        ),
    )
    VALID = (
        Example(
            "before the loop",
            """\
import torch

def train(model, loader, optimizer, epochs):
    scaler = torch.amp.GradScaler("cuda")
    for epoch in range(epochs):
        for x in loader:
            optimizer.zero_grad()
            scaler.scale(model(x)).backward()
            scaler.step(optimizer)
            scaler.update()
""",
        ),
        Example(
            "a fresh one for each independent run",
            """\
import torch

def cross_validate(make_model, folds):
    for train_set in folds:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cuda")
        for x in train_set:
            optimizer.zero_grad()
            scaler.scale(model(x)).backward()
            scaler.step(optimizer)
            scaler.update()
""",
        ),
        Example(
            "made when it is not there yet",
            """\
import torch

class Learner:
    scaler = None

    def train_step(self, batch):
        if self.scaler is None:
            self.scaler = torch.amp.GradScaler("cuda")
        self.optimizer.zero_grad()
        self.scaler.scale(self.model(batch)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
""",
        ),
        Example(
            "the function trains for all epochs",
            """\
import torch

def fit(model, loader, optimizer, epochs):
    scaler = torch.amp.GradScaler("cuda")
    for epoch in range(epochs):
        for x in loader:
            optimizer.zero_grad()
            scaler.scale(model(x)).backward()
            scaler.step(optimizer)
            scaler.update()
""",
        ),
        Example(
            "the scaler is always switched off",
            """\
import torch

def train_epoch(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Constructors that run more often than the training starts."""
        for call in source.kinds.scaler_constructors():
            enabled = source.kinds.enabled_by(call)
            off = enabled is not None and source.constant(enabled) is False
            if off or not self._is_kept(source, call):
                continue
            where = self._loop(source, call) or self._function(source, call)
            if where:
                message = f"GradScaler is made anew {where}, its scale starts at 65536 each time: make it once, before"
                yield source.finding(self, call, message)

    def _is_kept(self, source: SourceFile, call: ast.Call) -> bool:
        """Whether the scaler is stored under a name unconditionally (not only when there is none yet)."""
        statement = source.statement_of(call)
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name | ast.Attribute):
            return False
        target = last_name(statement.targets[0])
        gates = [node for node in source.ancestors(call) if isinstance(node, ast.If)]
        function = source.function_of(call)
        gates = [gate for gate in gates if source.function_of(gate) is function]
        first = any(last_name(part) in (target, "epoch", "i", "step") for gate in gates for part in ast.walk(gate.test))
        return not first and not any(_is_existence_test(gate.test) for gate in gates)

    def _loop(self, source: SourceFile, call: ast.Call) -> str:
        loops = source.loops_of(call)
        if not loops:
            return ""
        steps = [event for event in source.events if event.kind == "step"]
        loop = loops[0]
        stepped = any(source.index.is_inside(event.node, loop) for event in steps)
        if not stepped or _starts_anew(source, loop) or _RUNS.search(_loop_variables(loop)):
            return ""
        return "in each iteration of the loop"

    def _function(self, source: SourceFile, call: ast.Call) -> str:
        function = source.function_of(call)
        if function is None or function.name == "__init__" or source.loops_of(call):
            return ""
        steps = [event for event in source.events if event.kind == "step" and event.function is function]
        if not steps or not all(_comes_from_outside(source, event.node, function) for event in steps):
            return ""
        if any(_epochs_inside(source, event.node) for event in steps) or _starts_anew(source, function):
            return ""
        calls = [item for item in source.nodes(ast.Call) if source.definition(item.func) is function]
        repeated = [item for item in calls if source.loops_of(item)]
        if any(_RUNS.search(_loop_variables(source.loops_of(item)[0])) for item in repeated):
            return ""
        named = _REPEATED.search(function.name) and not function.name.startswith("test")
        if not repeated and (calls or not named):
            return ""
        return f"in each call of {function.name}"


def _is_existence_test(test: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) and last_name(part.func) in ("hasattr", "getattr") for part in ast.walk(test))


def _loop_variables(loop: ast.AST) -> str:
    target = getattr(loop, "target", None)
    return " ".join(last_name(part) for part in ast.walk(target)) if target is not None else ""


def _starts_anew(source: SourceFile, scope: ast.AST) -> bool:
    """Whether the loop or function also makes the optimizer or the model: then it is a training of its own."""
    for call in source.nodes(ast.Call):
        if source.index.is_inside(call, scope):
            names = source.qualified(call.func)
            made = any(name.startswith(("torch.optim.", "bitsandbytes.optim.")) for name in names)
            if made and not any(".lr_scheduler." in name for name in names):
                return True
            if _MODEL_MAKERS.match(last_name(call.func)) or "optim" in last_name(call.func).lower():
                return True
    return False


def _comes_from_outside(source: SourceFile, step: ast.expr, function: FunctionNode) -> bool:
    """Whether the optimizer that is stepped is a parameter of the function, or an attribute made elsewhere."""
    optimizer = step.args[0] if isinstance(step, ast.Call) and step.args else None
    if optimizer is None:
        return False
    bindings = source.bindings(optimizer)
    if isinstance(optimizer, ast.Name):
        return bool(bindings) and all(binding.kind == "parameter" for binding in bindings)
    return not any(source.function_of(binding.node) is function for binding in bindings)


def _epochs_inside(source: SourceFile, step: ast.expr) -> bool:
    """Whether the function has a loop over epochs of its own around the step."""
    loops = source.loops_of(step)
    return len(loops) > 1 or any("epoch" in _loop_variables(loop).lower() for loop in loops)

"""AMP202: autocast covers the loss, and not the forward that it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.ops import Autocast
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import METHODS
from amptune.lint.index import FunctionNode
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._models import (
    autocast_class,
    calls_in,
    is_loss_call,
    is_rework,
    is_torch_autocast,
    model_of_call,
    op_of_call,
)
from amptune_rules.source._reach import callee

# Frameworks that put autocast around the forward of a prepared model themselves.
_WRAPPING = frozenset({"accelerate", "fabric", "lightning", "deepspeed", "composer", "mmengine"})
_TRAINER_STEPS = frozenset({"compute_loss", "training_step", "prediction_step"})
_HARMLESS = frozenset({"print", "len", "float", "int", "dict", "list", "tuple", "zip", "range", "enumerate", "sum"})
_TENSOR_METHODS = frozenset(
    {"item", "detach", "cpu", "cuda", "get", "append", "items", "keys", "values", "size", "dim", "numel", "long", "int",
     "update", "is_contiguous", "max", "min", "argmax", "eq", "ne", "log", "info", "set_description", "scale",
     "backward"}
)  # fmt: skip


class ForwardOutsideAutocast(SourceRule):
    """The autocast region holds only the loss; the model ran before it.

    ## What it does
    Flags an autocast region in which nothing but a loss is computed, from the output of a model that was called before
    the region and outside of any other; and one with the backward alone, in a file whose forward has none.

    ## Why is this bad
    The forward then runs in float32: no tensor cores, twice the activation memory. The losses themselves are on
    autocast's float32 list, so the region changes nothing at all, and a GradScaler beside it only costs time.

    ## Example
    ```python
    import torch
    for x, y in loader:
        output = model(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = criterion(output, y)
        loss.backward()
    ```

    ## Use instead
    ```python
    import torch
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = model(x)
            loss = criterion(output, y)
        loss.backward()
    ```

    ## Fix safety
    No fix: the model call may have to move together with statements between it and the region.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#autocasting
    """

    code = "AMP202"
    name = "forward-outside-autocast"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "criterion alone",
            """\
import torch

def train(model, loader, criterion, optimizer):
    for x, y in loader:
        output = model(x.cuda())
        with torch.autocast("cuda", dtype=torch.bfloat16):  # <- AMP202@14
            loss = criterion(output, y.cuda())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "functional loss on parts of the output, flag on the region",
            """\
import torch
import torch.nn.functional as F
from torch import nn

class Trainer:
    def __init__(self, use_amp):
        self.net = nn.Linear(4, 4)
        self.use_amp = use_amp

    def step(self, x, y):
        logits, features = self.net(x)
        target = y.long()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.use_amp):  # <- AMP202
            loss = F.cross_entropy(logits.view(-1, 4), target) + features.pow(2).mean()
        loss.backward()
""",
        ),
    )
    VALID = (
        Example(
            "both inside",
            """\
import torch

def step(model, x, y, criterion):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(x)
        loss = criterion(output, y)
    loss.backward()
""",
        ),
        Example(
            "two regions",
            """\
import torch

def step(model, x, y, criterion):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = criterion(output, y)
    loss.backward()
""",
        ),
        Example(
            "the model has its own region",
            """\
import torch
from torch import nn

class Net(nn.Module):
    @torch.autocast("cuda", dtype=torch.bfloat16)
    def forward(self, x):
        return x

def step(x, y, criterion):
    model = Net()
    output = model(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = criterion(output, y)
    loss.backward()
""",
        ),
        Example(
            "the region switches autocast off for the loss",
            """\
import torch

def step(model, x, y, criterion):
    output = model(x)
    with torch.autocast("cuda", enabled=False):
        loss = criterion(output.float(), y)
    loss.backward()
""",
        ),
        Example(
            "teacher in full precision, student inside",
            """\
import torch

def step(teacher, student, x, distillation_loss):
    with torch.no_grad():
        target = teacher(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = distillation_loss(student(x), target)
    loss.backward()
""",
        ),
        Example(
            "the region has other work",
            """\
import torch

def step(model, head, x, y, criterion):
    features = model(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = criterion(head(features), y) + features @ y
    loss.backward()
""",
        ),
        Example(
            "the Trainer of transformers has a region around compute_loss",
            """\
import torch
from transformers import Trainer

class WithLogits(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.autocast("cuda", dtype=torch.float16):
            loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """With statements that switch autocast on, by what their bodies do."""
        if not _WRAPPING.isdisjoint(source.frameworks) or _module_has_autocast(source):
            return
        for node in source.nodes(ast.With):
            for item in node.items:
                region = source.region_stacks.as_region(item.context_expr)
                if not self._is_on(source, region) or source.no_grad(node.body[0]) or source.autocast(node):
                    continue
                model = _model_before(source, node)
                if model is None and _holds_backward_alone(source, node):
                    message = "autocast covers the backward alone: the forward ran before it in float32"
                    yield source.finding(self, item.context_expr, f"{message}; put the forward into the region")
                if model is not None and not _is_run_by_trainer(source, node):
                    text = source.segment(model.func)
                    message = (
                        f"autocast covers the loss alone: the forward {text}(...) of line {model.lineno} runs in "
                        "float32; put it into the region"
                    )
                    yield source.finding(self, item.context_expr, message)

    def _is_on(self, source: SourceFile, region: Region) -> bool:
        return region.kind == "autocast" and region.enabled is not False and is_torch_autocast(source, region)


def _holds_backward_alone(source: SourceFile, node: ast.With) -> bool:
    """Whether this and every other region of the file has a backward and no call that computes, after a model ran."""
    function = source.function_of(node)
    if node not in source.shared(_regions_of_backward_alone):
        return False
    calls = source.shared(_calls_by_function).get(function, [])
    return any(call.lineno < node.lineno and model_of_call(source, call) is not None for call in calls)


def _calls_by_function(source: SourceFile) -> dict[FunctionNode | None, list[ast.Call]]:
    found: dict[FunctionNode | None, list[ast.Call]] = {}
    for call in source.nodes(ast.Call):
        found.setdefault(source.function_of(call), []).append(call)
    return found


def _regions_of_backward_alone(source: SourceFile) -> frozenset[ast.With]:
    """The autocast regions of the file, if all of them hold a backward and no call that computes."""
    regions = [other for other in source.nodes(ast.With) if any(_is_autocast(source, item) for item in other.items)]
    alone = all(
        any(isinstance(call.func, ast.Attribute) and call.func.attr == "backward" for call in calls_in(region.body))
        and all(_is_of_step(source, call) for call in calls_in(region.body))
        for region in regions
    )
    return frozenset(regions) if alone else frozenset()


def _is_autocast(source: SourceFile, item: ast.withitem) -> bool:
    return source.region_stacks.as_region(item.context_expr).kind == "autocast"


def _is_of_step(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call belongs to the step of the optimizer, or prints."""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return method in METHODS or method == "item" or source.qualified(call.func) == ("print",)


def _is_run_by_trainer(source: SourceFile, node: ast.With) -> bool:
    """Whether the Trainer of transformers runs the code, in an autocast region of its own."""
    function = source.function_of(node)
    return "transformers" in source.frameworks and function is not None and function.name in _TRAINER_STEPS


def _module_has_autocast(source: SourceFile) -> bool:
    """Whether a forward of this file opens a region: the model may be of that class."""
    return any(
        (function := source.function_of(region.call)) is not None and function.name in ("forward", "__call__")
        for region in source.region_stacks.autocasts()
    ) or any(
        item.name == "forward"
        and any(source.region_stacks.as_region(d).kind == "autocast" for d in item.decorator_list)
        for item in source.nodes(ast.FunctionDef)
        if item.decorator_list
    )


def _model_before(source: SourceFile, node: ast.With) -> ast.Call | None:
    """The model call whose output the region turns into a loss and nothing else."""
    calls = list(calls_in(node.body))
    losses = [call for call in calls if is_loss_call(source, call)]
    if not losses or any(not _is_minor(source, call) for call in calls if call not in losses):
        return None
    if _holds_product(source, node):
        return None
    for loss in losses:
        for argument in loss.args:
            for name in ast.walk(argument):
                model = _made_by_model(source, name) if isinstance(name, ast.Name) else None
                if model is not None and not source.autocast(model) and not source.no_grad(model):
                    return model
    return None


def _holds_product(source: SourceFile, node: ast.With) -> bool:
    return any(
        isinstance(part, ast.BinOp) and autocast_class(source, part) is Autocast.LOWER
        for statement in node.body
        for part in ast.walk(statement)
    )


def _is_minor(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call is no work that autocast could be meant for."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in _TENSOR_METHODS:
        return True
    if autocast_class(source, call) is Autocast.LOWER:
        return False
    if op_of_call(source, call) is not None:
        return True
    return any(name in _HARMLESS for name in source.qualified(call.func))


def _made_by_model(source: SourceFile, name: ast.Name) -> ast.Call | None:
    """The only binding of the name, when it is the output of a model call of the same function."""
    bindings = source.bindings(name)
    bindings = [item for item in bindings if item.value is None or not is_rework(item.value, name.id)]
    if len(bindings) != 1 or bindings[0].kind not in ("assign", "unpack"):
        return None
    value = bindings[0].value
    if not isinstance(value, ast.Call) or source.function_of(value) is not source.function_of(name):
        return None
    if model_of_call(source, value) is None:
        return None
    own = callee(source, value)
    has_region = own is not None and any(
        source.function_of(region.call) is own for region in source.region_stacks.autocasts()
    )
    return None if has_region else value

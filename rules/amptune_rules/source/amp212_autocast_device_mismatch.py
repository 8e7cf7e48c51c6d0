"""AMP212: autocast for one device around a model on another."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._models import calls_in, is_torch_autocast, model_of_call
from amptune_rules.source._reach import values_through_callers

_MOVERS = {"cuda": "cuda", "cpu": "cpu", "xpu": "xpu"}
_DEVICES = frozenset({"cuda", "cpu", "mps", "xpu", "hpu"})


class AutocastDeviceMismatch(SourceRule):
    """The device of an autocast region is not the one that the model is on.

    ## What it does
    Flags an autocast region for a constant device around the call of a model that this file puts on another device,
    also constant.

    ## Why is this bad
    Autocast is switched on for one kind of device and leaves all others alone. `autocast("cuda")` around a model on a
    CPU changes nothing, silently: the model runs in float32, and nobody notices before the speed is measured.

    ## Example
    ```python
    import torch
    model = Model().to("mps")
    with torch.autocast("cuda", dtype=torch.float16):
        output = model(x)
    ```

    ## Use instead
    ```python
    import torch
    device = torch.device("mps")
    model = Model().to(device)
    with torch.autocast(device.type, dtype=torch.float16):
        output = model(x)
    ```

    ## Fix safety
    No fix: which of the two devices is meant is not known.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP212"
    name = "autocast-device-mismatch"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "CUDA autocast, model on the CPU",
            """\
import torch

device = torch.device("cpu")

def run(make, x):
    model = make().to(device)
    with torch.autocast("cuda", dtype=torch.bfloat16):  # <- AMP212@10
        return model(x.to(device))
""",
        ),
        Example(
            "CPU autocast, model on the GPU, placed in the constructor",
            """\
import torch
from torch import nn

class Runner:
    def __init__(self):
        self.net = nn.Linear(4, 4)
        self.net.cuda()

    def run(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # <- AMP212@14
            return self.net(x)
""",
        ),
        Example(
            "device handed to a function by the file itself",
            """\
import torch

def train(model, loader, device):
    model.to(device)
    for x in loader:
        with torch.autocast("cuda"):  # <- AMP212@14
            model(x.to(device))

def main(model, loader):
    train(model, loader, "mps")
""",
        ),
    )
    VALID = (
        Example(
            "the same device",
            """\
import torch

def run(make, x):
    model = make().to("cuda:1")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
        Example(
            "chosen at run time",
            """\
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"

def run(make, x):
    model = make().to(device)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x.to(device))
""",
        ),
        Example(
            "moved back afterwards",
            """\
import torch

def run(model, x):
    model.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = model(x)
    model.to("cpu")
    return y
""",
        ),
        Example(
            "switched off, or another model",
            """\
import torch

def run(model, teacher, x):
    teacher.to("cpu")
    with torch.autocast("cuda"):
        y = model(x)
    with torch.autocast("cuda", enabled=False):
        return y, teacher(x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Regions with a constant device, against the devices of the models called in them."""
        for node in source.nodes(ast.With):
            for item in node.items:
                region = source.region_stacks.as_region(item.context_expr)
                if self._counts(source, region):
                    yield from self._region(source, item.context_expr, region, node.body)
        for function in source.nodes(ast.FunctionDef):
            for decorator in function.decorator_list:
                region = source.region_stacks.as_region(decorator)
                if self._counts(source, region):
                    yield from self._region(source, decorator, region, function.body)

    def _counts(self, source: SourceFile, region: Region) -> bool:
        if region.kind != "autocast" or region.device not in _DEVICES or region.enabled is False:
            return False
        return is_torch_autocast(source, region) and region.certain

    def _region(self, source: SourceFile, place: ast.expr, region: Region, body: list[ast.stmt]) -> Iterator[Finding]:
        for call in calls_in(body):
            model = model_of_call(source, call)
            found = _device_of(source, model) if model is not None else None
            if model is not None and found is not None and found != region.device and source.in_autocast(call):
                text = source.segment(model)
                message = f'autocast("{region.device}") does nothing for {text}, which is on "{found}": use "{found}"'
                yield source.finding(self, place, message)
                return


def _device_of(source: SourceFile, model: ast.expr) -> str | None:
    """The one constant device that the file puts the model on; None when there is none, or several."""
    found: set[str | None] = set()
    text = source.segment(model)
    for call in source.method_calls("to", *_MOVERS):
        func = call.func
        if not isinstance(func, ast.Attribute) or not _is_same(source, call, func.value, model, text):
            continue
        if func.attr in _MOVERS:
            found.add(_MOVERS[func.attr])
            continue
        argument = source.argument(call, "device", 0)
        if argument is not None and not _is_dtype(source, argument):
            found.add(_constant_device(source, argument))
    return found.pop() if len(found) == 1 else None


def _is_same(source: SourceFile, call: ast.Call, receiver: ast.expr, model: ast.expr, text: str) -> bool:
    """Whether a ``.to(...)`` moves the model: the same words in the same function or class, or how it is made."""
    if call in source.values(model):
        return True
    if not isinstance(receiver, ast.Name | ast.Attribute) or source.segment(receiver) != text:
        return False
    if isinstance(receiver, ast.Name):
        return source.bindings(receiver) == source.bindings(model)
    return source.class_of(receiver) is source.class_of(model)


def _is_dtype(source: SourceFile, node: ast.expr) -> bool:
    return any(name.startswith("torch.") for name in source.qualified(node))


def _constant_device(source: SourceFile, node: ast.expr) -> str | None:
    """The type of a constant device, also one made by ``torch.device``; None when it is decided at run time."""
    found: set[str | None] = set()
    for leaf in values_through_callers(source, node):
        if isinstance(leaf, ast.Call) and source.qualified(leaf.func) == ("torch.device",) and leaf.args:
            leaf = leaf.args[0]
        value = source.constant(leaf)
        found.add(value.partition(":")[0] if isinstance(value, str) else None)
    return found.pop() if len(found) == 1 else None

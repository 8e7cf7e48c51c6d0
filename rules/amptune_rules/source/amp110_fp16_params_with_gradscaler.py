"""AMP110: the parameters that a GradScaler is to unscale the gradients of are float16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._trained import casts_back, conversions, is_in_force, trained

_OWN_SCALING = ("fp16", "mixedprecision", "deepspeed", "master")


class Fp16ParamsWithGradscaler(SourceRule):
    """A model whose weights were converted to float16 is trained through a GradScaler.

    ## What it does
    Flags `.half()`, `.to(torch.float16)` and `torch_dtype=torch.float16` on a model whose parameters go to the
    optimizer, in a file that makes a `GradScaler` (error), or makes one under another condition (info).

    ## Why is this bad
    `scaler.unscale_` and `scaler.step` raise `ValueError: Attempting to unscale FP16 gradients.`. The scaler is made
    for float32 weights: a float16 weight of 1.0 cannot take an update below 4.9e-4 (half of its last place), so most
    steps of a typical learning rate would be rounded away.

    ## Example
    ```python
    import torch
    model = Net().cuda().half()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        scaler.scale(loss_fn(model(x.half()), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Use instead
    ```python
    import torch
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    ```

    ## Fix safety
    No fix. Dropping the conversion needs autocast around the forward, and the inputs must not be converted either; a
    model that was loaded in float16 to save memory needs its trainable parameters cast to float32.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    """

    code = "AMP110"
    name = "fp16-params-with-gradscaler"
    severity = Severity.ERROR
    keywords = (b"GradScaler",)

    INVALID = (
        Example(
            "half model",
            """\
import torch

def train(make, loader):
    model = make()
    model.half()  # <- AMP110@5
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "converted to a dtype that has a name, filtered parameters",
            """\
import torch

class Trainer:
    def __init__(self, model, device):
        dtype = torch.float16
        self.model = model.to(device, dtype=dtype)  # <- AMP110
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)
        self.scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "loaded in float16",
            """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)  # <- AMP110
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "converted under another flag",
            """\
import torch

def train(model, args):
    if args.half_weights:
        model = model.half()  # <- AMP110
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=args.amp)
    return optimizer, scaler
""",
        ),
    )
    VALID = (
        Example(
            "float32 weights and autocast",
            """\
import torch

def train(model, loader):
    model = model.to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x.to("cuda", torch.float16))  # <- AMP209
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
""",
        ),
        Example(
            "the half model is a frozen teacher",
            """\
import torch

def train(student, teacher):
    teacher = teacher.half().eval()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    return teacher, optimizer, torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "trainable parameters cast back",
            """\
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)
for p in model.parameters():
    if p.requires_grad:
        p.data = p.data.float()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "converted for export after the training",
            """\
import torch

def train(model, loader, path):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        optimizer.zero_grad()
        scaler.scale(model(x)).backward()
        scaler.step(optimizer)
        scaler.update()
    model.half()
    torch.save(model, path)
""",
        ),
        Example(
            "adapters in float32 on a half model",
            """\
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("gpt2", torch_dtype=torch.float16)
model = get_peft_model(model, LoraConfig())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
scaler = torch.amp.GradScaler("cuda")
""",
        ),
        Example(
            "scaler only without half weights",
            """\
import torch

def prepare(model, half):
    if half:
        model = model.half()
        scaler = None
    else:
        scaler = torch.amp.GradScaler("cuda")
    return torch.optim.SGD(model.parameters(), 0.1), scaler
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Conversions to float16 of what the optimizer trains."""
        scalers = [call for call in source.kinds.scaler_constructors() if _may_be_on(source, call)]
        if not scalers or casts_back(source):
            return
        for optimizer, model in trained(source):
            for conversion in conversions(source, model, "float16"):
                if not is_in_force(source, conversion, optimizer):
                    continue
                related = [call for call in scalers if not _excludes(source, conversion, call)]
                if not related:
                    continue
                certain = any(_goes_with(source, conversion, call) for call in related)
                message = (
                    f"{source.segment(model)} has float16 weights here, scaler.step raises 'Attempting to unscale FP16 "
                    "gradients': keep float32 weights and use autocast"
                )
                yield source.finding(self, conversion, message, severity=Severity.ERROR if certain else Severity.INFO)


def _may_be_on(source: SourceFile, call: ast.Call) -> bool:
    enabled = source.kinds.enabled_by(call)
    return enabled is None or source.constant(enabled) is not False


def _gates(source: SourceFile, node: ast.AST) -> list[tuple[ast.If, bool]]:
    """The conditions around a node in its function, each with the side that the node is on."""
    found: list[tuple[ast.If, bool]] = []
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.FunctionDef | ast.AsyncFunctionDef):
            break
        if isinstance(ancestor, ast.If):
            found.append((ancestor, child in ancestor.body))
        child = ancestor
    return found


def _excludes(source: SourceFile, conversion: ast.Call, scaler: ast.Call) -> bool:
    """Whether the two are on different sides of one condition."""
    sides = dict(_gates(source, scaler))
    return any(sides.get(gate, side) is not side for gate, side in _gates(source, conversion))


def _goes_with(source: SourceFile, conversion: ast.Call, scaler: ast.Call) -> bool:
    """Whether the scaler is sure to be on when the weights are converted."""
    around = {(ast.dump(gate.test), side) for gate, side in _gates(source, scaler)}
    own = {(ast.dump(gate.test), side) for gate, side in _gates(source, conversion)}
    choice = isinstance(source.parent(scaler), ast.IfExp) or isinstance(source.parent(conversion), ast.IfExp)
    enabled = source.kinds.enabled_by(scaler)
    switched = enabled is not None and source.constant(enabled) is not True
    if switched and own:
        return any(ast.dump(enabled) == test for test, side in own if side) if enabled is not None else False
    return own <= around and not choice

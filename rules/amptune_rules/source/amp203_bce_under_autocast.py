"""AMP203: binary cross entropy on probabilities runs under CUDA autocast."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._formula import is_fixed_name
from amptune_rules.source._models import unwrapped
from amptune_rules.source._reach import callers, regions_reaching, values_through_callers

_FUNCTION = "torch.nn.functional.binary_cross_entropy"
_MODULE = "torch.nn.BCELoss"
_SIGMOIDS = ("torch.sigmoid", "torch.special.expit")
_SAFE_DEVICES = ("cpu", "mps", "xla")
_HALF_TRAINERS = (16, "16", "16-mixed", "bf16", "bf16-mixed", "16-true", "bf16-true")


class BceUnderAutocast(SourceRule):
    """BCELoss or binary_cross_entropy runs under CUDA autocast.

    ## What it does
    Flags calls of `F.binary_cross_entropy`, and of `nn.BCELoss` objects, that run in an autocast region for CUDA, also
    when the region is in a caller in the same file, or is made by a Lightning Trainer with 16-bit precision. Where the
    device is chosen at run time it is a warning; in a module that other files may call under autocast, info.

    ## Why is this bad
    It raises: "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast", also for float32
    inputs, because the gradient of log(p) near 0 or 1 is outside the range of float16. The form with logits
    does not have this problem, and is more exact in float32 as well. (Under CPU autocast BCELoss runs in float32.)

    ## Example
    ```python
    import torch
    import torch.nn.functional as F
    with torch.autocast("cuda"):
        loss = F.binary_cross_entropy(torch.sigmoid(model(x)), y)
    ```

    ## Use instead
    ```python
    import torch
    import torch.nn.functional as F
    with torch.autocast("cuda"):
        loss = F.binary_cross_entropy_with_logits(model(x), y)
    ```

    ## Fix safety
    Unsafe: the sigmoid is dropped and the loss changed to the form with logits, which gives the same value with less
    rounding. Offered only where the sigmoid stands right before the loss. A model that ends in a sigmoid has to return
    logits instead, or the loss has to run in `torch.autocast("cuda", enabled=False)` on `.float()` inputs.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#prefer-binary-cross-entropy-with-logits-over-binary-cross-entropy
    """

    code = "AMP203"
    name = "bce-under-autocast"
    severity = Severity.ERROR
    keywords = (b"BCELoss", b"binary_cross_entropy")

    INVALID = (
        Example(
            "sigmoid right before the functional loss",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cuda", dtype=torch.float16):
        probability = torch.sigmoid(model(x))
        return F.binary_cross_entropy(probability, y, reduction="sum")  # <- AMP203@16
""",
        ),
        Example(
            "sigmoid of a name",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cuda", dtype=torch.float16):
        logits = model(x)
        p = logits.sigmoid()
        a = F.binary_cross_entropy(p, y)  # <- AMP203@13
        return a + F.binary_cross_entropy(torch.sigmoid(logits[0]), y[0])  # <- AMP203@20
""",
            fixed="""\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cuda", dtype=torch.float16):
        logits = model(x)
        p = logits.sigmoid()
        a = F.binary_cross_entropy_with_logits(logits, y)
        return a + F.binary_cross_entropy_with_logits(logits[0], y[0])
""",
        ),
        Example(
            "criterion handed to the training function",
            """\
import torch
from torch import nn

def train(model, loader, criterion):
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = criterion(torch.sigmoid(model(x)), y)  # <- AMP203@20
        loss.backward()

def main(model, loader):
    train(model, loader, nn.BCELoss(reduction="sum"))
""",
            fixed="""\
import torch
from torch import nn

def train(model, loader, criterion):
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = criterion(model(x), y)
        loss.backward()

def main(model, loader):
    train(model, loader, nn.BCEWithLogitsLoss(reduction="sum"))
""",
        ),
        Example(
            "the region is in the caller, the device is chosen at run time",
            """\
import torch
from torch import nn

class Trainer:
    def __init__(self, model, device):
        self.model, self.device = model, device
        self.bce = nn.BCELoss()

    def loss(self, x, y):
        return self.bce(self.model(x), y)  # <- AMP203

    def step(self, x, y):
        with torch.autocast(self.device.type):
            return self.loss(x, y)
""",
        ),
        Example(
            "Lightning module under a 16-bit trainer",
            """\
import lightning
import torch

class Net(lightning.LightningModule):
    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.binary_cross_entropy(self(x), y)  # <- AMP203

trainer = lightning.Trainer(precision="16-mixed")
""",
        ),
        Example(
            "a module that may run under autocast elsewhere, at severity info",
            """\
import torch.nn.functional as F
from torch import nn

class Heatmap(nn.Module):
    def forward(self, probability, target):
        return F.binary_cross_entropy(probability, target)  # <- AMP203
""",
        ),
    )
    VALID = (
        Example(
            "with logits",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        return F.binary_cross_entropy_with_logits(model(x), y) + torch.nn.BCEWithLogitsLoss()(model(x), y)
""",
        ),
        Example(
            "autocast switched off around it",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        p = model(x)
        with torch.autocast("cuda", enabled=False):
            return F.binary_cross_entropy(p.float(), y.float())
""",
        ),
        Example(
            "after the region",
            """\
import torch
from torch import nn

criterion = nn.BCELoss()

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        p = model(x)
    return criterion(p.float(), y)
""",
        ),
        Example(
            "CPU autocast runs it in float32",
            """\
import torch
import torch.nn.functional as F

def loss_of(model, x, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.binary_cross_entropy(model(x), y)
""",
        ),
        Example(
            "a float32 training script",
            """\
from torch import nn

def train(model, loader, optimizer):
    criterion = nn.BCELoss()
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "the helper is called outside the region only",
            """\
import torch
import torch.nn.functional as F

def bce(p, y):
    return F.binary_cross_entropy(p, y)

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        p = model(x)
    return bce(p.float(), y)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of the loss, by the regions that reach them."""
        objects = source.calls(_MODULE)
        uses = _uses(source, objects) if objects else {}
        for call in (*source.calls(_FUNCTION), *uses):
            found = _verdict(source, call)
            if found is None:
                continue
            severity, where = found
            what = "BCELoss" if call in uses else "binary_cross_entropy"
            message = f"{what} {where}: use the form with logits, without the sigmoid"
            fix = _object_fix(source, uses[call], uses) if call in uses else _function_fix(source, call)
            yield source.finding(self, call, message, severity=severity, fix=fix)


def _uses(source: SourceFile, objects: Sequence[ast.Call]) -> dict[ast.Call, ast.Call]:
    """Calls of BCELoss objects -> where the object is made."""
    found: dict[ast.Call, ast.Call] = {}
    for call in source.nodes(ast.Call):
        if not call.args or call in objects:
            continue
        for value in values_through_callers(source, call.func):
            leaf = unwrapped(value)
            if isinstance(leaf, ast.Call) and leaf in objects:
                found[call] = leaf
    return found


def _verdict(source: SourceFile, call: ast.Call) -> tuple[Severity, str] | None:
    """How bad it is, and in which words; None when the call is fine."""
    regions = list(regions_reaching(source, call))
    on = [region for region in regions if region and region.enabled is not False and region.device not in _SAFE_DEVICES]
    if on:
        line = getattr(on[0].call, "lineno", 0)
        if all(_is_off_by_default(source, region) for region in on):
            return Severity.INFO, f"raises RuntimeError when the autocast of line {line} is switched on for a GPU"
        if any(region.device == "cuda" for region in on):
            return Severity.ERROR, f"raises RuntimeError under the CUDA autocast of line {line}"
        return Severity.WARNING, f"raises RuntimeError under the autocast of line {line} on a GPU"
    if any(regions):
        return None
    if _is_lightning(source, call):
        if any(_is_half_trainer(source, trainer) for trainer in _trainers(source)):
            return Severity.ERROR, "raises RuntimeError under the autocast of the Trainer's precision"
        return Severity.INFO, "raises RuntimeError under CUDA autocast"
    return (Severity.INFO, "raises RuntimeError under CUDA autocast") if _is_for_others(source, call) else None


def _is_off_by_default(source: SourceFile, region: Region) -> bool:
    """Whether the region's switch is a parameter with the default False that no caller of this file sets."""
    if region.enabled is not None or not isinstance(region.enabled_by, ast.Name):
        return False
    bindings = source.bindings(region.enabled_by)
    default = bindings[0].value if len(bindings) == 1 and bindings[0].kind == "parameter" else None
    return source.constant(default) is False and source.values(region.enabled_by) == values_through_callers(
        source, region.enabled_by
    )


def _trainers(source: SourceFile) -> list[ast.Call]:
    named = source.calls("lightning.pytorch.Trainer", "pytorch_lightning.Trainer", "lightning.Trainer")
    return [*named, *source.method_calls("Trainer")]


def _is_half_trainer(source: SourceFile, trainer: ast.Call) -> bool:
    return source.constant(source.argument(trainer, "precision")) in _HALF_TRAINERS


def _is_lightning(source: SourceFile, call: ast.Call) -> bool:
    cls = source.class_of(call)
    bases = [name for base in cls.bases for name in source.qualified(base)] if cls else []
    return any(base.endswith("LightningModule") for base in bases)


def _is_for_others(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call is in a forward or a loss function that nobody in a file without a training loop calls."""
    function = source.function_of(call)
    if function is None or not ("loss" in function.name or function.name in ("forward", "__call__")):
        return False
    if any(source.function_of(region.call) is function for region in source.region_stacks.autocasts()):
        return False  # it has a region of its own, and keeps this call out of it
    return not callers(source, function) and not source.method_calls("backward")


def _logits(source: SourceFile, call: ast.Call) -> tuple[ast.expr, str] | None:
    """The loss's first argument and the text of the logits that it is the sigmoid of."""
    argument = source.argument(call, "input", 0)
    if argument is None:
        return None
    made = argument
    if isinstance(argument, ast.Name):
        bindings = source.bindings(argument)
        if len(bindings) != 1 or bindings[0].kind != "assign" or bindings[0].value is None:
            return None
        made = bindings[0].value
    inner = _sigmoid_operand(source, made)
    if inner is None or (made is not argument and not is_fixed_name(source, inner)):
        return None
    return argument, source.segment(inner)


def _sigmoid_operand(source: SourceFile, node: ast.expr) -> ast.expr | None:
    if not isinstance(node, ast.Call):
        return None
    if not set(_SIGMOIDS).isdisjoint(source.qualified(node.func)) and len(node.args) == 1:
        return node.args[0]
    is_method = isinstance(node.func, ast.Attribute) and node.func.attr == "sigmoid" and not node.args
    return node.func.value if is_method and isinstance(node.func, ast.Attribute) else None


def _function_fix(source: SourceFile, call: ast.Call) -> Fix | None:
    found = _logits(source, call)
    if found is None:
        return None
    argument, text = found
    changes = (
        edits.replace(source, call.func, f"{source.segment(call.func)}_with_logits"),
        edits.replace(source, argument, text),
    )
    if not source.segment(call.func).endswith("binary_cross_entropy") or isinstance(call.func, ast.Name):
        return None
    return Fix("use the loss with logits and drop the sigmoid", changes, Safety.UNSAFE)


def _object_fix(source: SourceFile, made: ast.Call, uses: dict[ast.Call, ast.Call]) -> Fix | None:
    """One fix for an object and all its uses; None when one of them has no sigmoid to drop."""
    if not isinstance(made.func, ast.Attribute):
        return None
    name = edits.replace(source, made.func, f"{source.segment(made.func.value)}.BCEWithLogitsLoss")
    changes: list[Edit] = [name]
    for call, origin in uses.items():
        if origin is made:
            found = _logits(source, call)
            if found is None:
                return None
            changes.append(edits.replace(source, *found))
    return Fix("use BCEWithLogitsLoss and drop the sigmoid", tuple(changes), Safety.UNSAFE)

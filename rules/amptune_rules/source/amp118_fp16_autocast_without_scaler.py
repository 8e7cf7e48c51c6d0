"""AMP118: float16 autocast in training without a gradient scaler."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.events import Event
from amptune.lint.index import last_name
from amptune.lint.regions import Region
from amptune.lint.source import SourceFile
from amptune_rules.source._models import is_float16

_SCALING = re.compile(
    r"(?:grad|loss|amp|native|dynamic)_?scal|^scalers?$|scale_loss|^_?scaler|fp16_optim", re.IGNORECASE
)
_OWNERS = frozenset({"deepspeed", "apex", "colossalai", "composer", "mmengine"})


class Fp16AutocastWithoutScaler(SourceRule):
    """A training loop runs the forward in float16 autocast and calls backward with no gradient scaler.

    ## What it does
    Flags a float16 autocast region (float16 is CUDA's default, also for a device chosen at run time) whose loss goes to
    `loss.backward()` and `optimizer.step()`, in a file where no gradient scaler is used.

    ## Why is this bad
    Gradients of activations are computed in FP16 as well, where everything below 3e-8 becomes zero and everything below
    6e-5 loses precision. Layers whose gradients fall there stop learning, without an error. BF16, with the range of
    FP32, needs no scaler.

    ## Example
    ```python
    import torch
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
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
    No fix. A scaler has to be made once, saved with the checkpoints, and used in three places; `dtype=torch.bfloat16`
    is the short way where the GPU has it.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html
    """

    code = "AMP118"
    name = "fp16-autocast-without-scaler"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "default dtype of CUDA",
            """\
import torch

def train(model, loader, optimizer, loss_fn):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):  # <- AMP118@14
            logits = model(x)
        loss = loss_fn(logits, y)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "the forward is in a method",
            """\
import torch

class Trainer:
    def forward(self, batch):
        with torch.autocast(device_type="cuda", dtype=torch.float16, enabled=self.amp):  # <- AMP118
            return self.model(batch).loss

    def fit(self, batches):
        for batch in batches:
            loss = self.forward(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
""",
        ),
        Example(
            "device chosen at run time, float16 on a GPU",
            """\
import torch

def train(model, loader, optimizer, device):
    for x, y in loader:
        with torch.autocast(device_type=device.type):  # <- AMP118
            loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
        ),
    )
    VALID = (
        Example(
            "bfloat16",
            """\
import torch

def train(model, loader, optimizer):
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "evaluation only",
            """\
import torch

def train(model, loader, optimizer, held_out):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        optimizer.step()
    with torch.no_grad(), torch.autocast("cuda"):
        loss = model(held_out)
    return loss
""",
        ),
        Example(
            "the caller's scaler",
            """\
import torch

def train(model, loader, optimizer, scaler):
    for x in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda"):
            loss = model(x)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler(loss, optimizer)
""",
        ),
        Example(
            "the framework scales",
            """\
import torch
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="fp16")

def train(model, loader, optimizer):
    for x in loader:
        with torch.autocast("cuda"):
            loss = model(x)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "a frozen encoder runs in float16",
            """\
import torch

def train(encoder, head, loader, optimizer, loss_fn):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.no_grad():
            with torch.autocast("cuda"):
                features = encoder(x)
        loss = loss_fn(head(features.float()), y)
        loss.backward()
        optimizer.step()
""",
        ),
        Example(
            "scaled by hand",
            """\
import torch

def train(model, loader, optimizer, loss_scale):
    for x in loader:
        with torch.autocast("cuda"):
            loss = model(x)
        (loss * loss_scale).backward()
        for p in model.parameters():
            p.grad.div_(loss_scale)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "a scaler of another name, or none, from the caller",
            """\
import torch

def train_one_epoch(student, loader, optimizer, fp16_scaler):
    for x in loader:
        with torch.autocast("cuda", enabled=fp16_scaler is not None):
            loss = student(x)
        optimizer.zero_grad()
        if fp16_scaler is None:
            loss.backward()
            optimizer.step()
        else:
            fp16_scaler.scale(loss).backward()
            fp16_scaler.step(optimizer)
            fp16_scaler.update()
""",
        ),
        Example(
            "dtype chosen at run time",
            """\
import torch

def train(model, loader, optimizer, device, dtype):
    for x, y in loader:
        with torch.autocast(device_type=device.type, dtype=dtype):
            loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Float16 regions that feed a plain backward."""
        if source.frameworks & _OWNERS or not any(event.kind == "backward" for event in source.events):
            return
        if not any(is_float16(source, region) for region in source.region_stacks.autocasts()) or _has_scaler(source):
            return
        reported: set[ast.AST] = set()
        for flow in source.flows:
            for backward in flow.of("backward"):
                if backward.owner != "user" or backward.scaled or "scal" in backward.subject.lower():
                    continue
                if not any(flow.path(backward, step) for step in flow.of("optimizer_step")):
                    continue
                for region in _regions_of_loss(source, backward):
                    if region.call not in reported:
                        reported.add(region.call)
                        message = (
                            "float16 autocast without a gradient scaler, small gradients become zero: "
                            "add torch.amp.GradScaler, or use bfloat16"
                        )
                        yield source.finding(self, region.call, message)


def _has_scaler(source: SourceFile) -> bool:
    """Whether anything in the file looks like loss scaling, or sets another dtype for autocast.

    A scaler that is only made, under a name that nobody reads, does not count.
    """
    if any(event.kind == "scale" for event in source.events):
        return True
    for node in (*source.nodes(ast.Name), *source.nodes(ast.Attribute)):
        name = last_name(node)
        unused = isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
        if name in ("set_autocast_dtype", "set_autocast_gpu_dtype"):
            return True
        if _SCALING.search(name) and not unused and not name.endswith("GradScaler"):
            return True
    return any(_SCALING.search(node.arg) for node in source.nodes(ast.arg))


def _regions_of_loss(source: SourceFile, backward: Event) -> list[Region]:
    """The float16 regions in which the loss, or what it is computed from, is made."""
    call = backward.node
    assert isinstance(call, ast.Call)
    loss = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr == "backward" else None
    loss = call.args[0] if loss is None and call.args else loss
    places: list[ast.AST] = [call]
    pending = [(loss, 0)] if loss is not None else []
    while pending:
        expression, depth = pending.pop()
        leaves = [*source.values(expression), *(part for part in ast.walk(expression) if isinstance(part, ast.Name))]
        for leaf in leaves:
            places.append(leaf)
            for binding in source.bindings(leaf) if depth < 3 else ():
                if binding.kind in ("assign", "unpack", "update") and binding.node not in places:
                    places.append(binding.node)
                    pending += [(binding.value, depth + 1)] if binding.value is not None else []
    found = [source.autocast(place) for place in places if not source.no_grad(place)]
    regions = [region for region in found if region is not None and region.enabled is not False]
    return [region for region in dict.fromkeys(regions) if is_float16(source, region)]

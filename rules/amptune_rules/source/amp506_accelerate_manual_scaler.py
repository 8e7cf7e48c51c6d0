"""AMP506: a loop that Accelerate scales gradients for also has a GradScaler, or clips gradients by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.fold import UNKNOWN
from amptune.lint.source import SourceFile

_CONSTRUCTORS = ("accelerate.Accelerator", "accelerate.accelerator.Accelerator")
_CLIPS = {
    "clip_grad_norm_": frozenset({"parameters", "max_norm", "norm_type"}),
    "clip_grad_value_": frozenset({"parameters", "clip_value"}),
}
# What only an Accelerator has, in files that are handed one.
_ATTRIBUTES = frozenset(
    {"prepare", "accumulate", "sync_gradients", "is_main_process", "unwrap_model", "gather_for_metrics"}
)


class AccelerateManualScaler(SourceRule):
    """A GradScaler of one's own, or torch's gradient clipping, next to accelerator.backward.

    ## What it does
    In code that calls `accelerator.backward(loss)`, flags a `GradScaler` that scales or steps in the same loop, and
    `torch.nn.utils.clip_grad_norm_` or `clip_grad_value_` between that backward and the step. Silent when the
    `Accelerator` is made with `mixed_precision="no"`, and, for clipping, with a precision that needs no scaler; a
    warning when the precision comes from elsewhere.

    ## Why is this bad
    With float16 the Accelerator has a GradScaler and scales the loss itself (65536 at first). A second one scales it
    twice, and unscales what the first one unscaled. torch's clipping sees gradients that are still scaled: a limit of
    1.0 is one of 1/65536, and almost nothing is trained.

    ## Example
    ```python
    import torch
    from accelerate import Accelerator
    accelerator = Accelerator(mixed_precision="fp16")
    for x, y in loader:
        accelerator.backward(loss_fn(model(x), y))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ```

    ## Use instead
    ```python
    import torch
    from accelerate import Accelerator
    accelerator = Accelerator(mixed_precision="fp16")
    for x, y in loader:
        accelerator.backward(loss_fn(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    ```

    ## Fix safety
    Safe for clipping: the Accelerator's method unscales, then clips as torch's does. No fix for a GradScaler: delete it
    with its calls, and step the optimizer.

    ## References
    - https://huggingface.co/docs/accelerate/package_reference/accelerator#accelerate.Accelerator.clip_grad_norm_
    - https://huggingface.co/docs/accelerate/quicktour
    """

    code = "AMP506"
    name = "accelerate-manual-scaler"
    severity = Severity.ERROR
    keywords = (b"clip_grad_", b"caler")
    requires = (b"ccelerator.backward",)

    INVALID = (
        Example(
            "torch's clipping",
            """\
import torch
from accelerate import Accelerator

class Trainer:
    def __init__(self, model, optimizer):
        self.accelerator = Accelerator(mixed_precision="fp16")
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def step(self, x):
        self.accelerator.backward(self.model(x))
        if self.accelerator.sync_gradients:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)  # <- AMP506@13
        self.optimizer.step()
        self.optimizer.zero_grad()
""",
            fixed="""\
import torch
from accelerate import Accelerator

class Trainer:
    def __init__(self, model, optimizer):
        self.accelerator = Accelerator(mixed_precision="fp16")
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def step(self, x):
        self.accelerator.backward(self.model(x))
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
""",
        ),
        Example(
            "precision decided by accelerate config, at severity warning",
            """\
from accelerate import Accelerator
from torch.nn.utils import clip_grad_value_

def train(model, loader, optimizer):
    accelerator = Accelerator()
    for x in loader:
        accelerator.backward(model(x))
        clip_grad_value_(model.parameters(), 0.5)  # <- AMP506@9
        optimizer.step()
        optimizer.zero_grad()
""",
            fixed="""\
from accelerate import Accelerator
from torch.nn.utils import clip_grad_value_

def train(model, loader, optimizer):
    accelerator = Accelerator()
    for x in loader:
        accelerator.backward(model(x))
        accelerator.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "a GradScaler as well",
            """\
import torch
from accelerate import Accelerator

def train(model, loader, optimizer):
    accelerator = Accelerator(mixed_precision="fp16")
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        with accelerator.autocast():
            loss = model(x)
        accelerator.backward(scaler.scale(loss))  # <- AMP506@30
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
""",
        ),
    )
    VALID = (
        Example(
            "the accelerator clips",
            """\
from accelerate import Accelerator

def train(model, loader, optimizer):
    accelerator = Accelerator(mixed_precision="fp16")
    for x in loader:
        accelerator.backward(model(x))
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "nothing is scaled",
            """\
import torch
from accelerate import Accelerator

def train(model, loader, optimizer):
    accelerator = Accelerator(mixed_precision="bf16")
    for x in loader:
        accelerator.backward(model(x))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "unscaled by the accelerator first",
            """\
import torch
from accelerate import Accelerator

def train(model, loader, optimizer):
    accelerator = Accelerator(mixed_precision="fp16")
    for x in loader:
        accelerator.backward(model(x))
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
""",
        ),
        Example(
            "either the accelerator or the scaler",
            """\
import torch
from accelerate import Accelerator

def train(model, loader, optimizer, accelerator: Accelerator | None):
    scaler = torch.amp.GradScaler("cuda")
    for x in loader:
        if accelerator is not None:
            accelerator.backward(model(x))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        else:
            with torch.autocast("cuda"):
                loss = model(x)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Clips and scalers on a path from the accelerator's backward."""
        seen: set[object] = set()
        for flow in source.flows:
            for backward in flow.of("backward"):
                precision = _precision(source, backward) if _is_accelerator(source, backward) else "no"
                if precision == "no":
                    continue
                for finding, key in [*self._clips(source, flow, backward, precision),
                                     *self._scalers(source, flow, backward, precision)]:  # fmt: skip
                    if key not in seen:
                        seen.add(key)
                        yield finding

    def _clips(
        self, source: SourceFile, flow: Flow, backward: Event, precision: str
    ) -> Iterator[tuple[Finding, ast.AST]]:
        if precision not in ("fp16", "?") or source.method_calls("unscale_gradients"):
            return
        for clip in flow.of("clip"):
            blockers = ("unscale", "optimizer_step", "step", "zero_grad")
            if (
                clip.owner == "user"
                and _clip_name(source, clip)
                and flow.path(backward, clip, without=blockers, same_iteration=True)
            ):
                message = (
                    "clips gradients that the Accelerator has scaled (by 65536 at first): "
                    "call clip_grad_norm_ or clip_grad_value_ of the accelerator, which unscale first"
                )
                severity = None if precision == "fp16" else Severity.WARNING
                fix = _fix(source, backward, clip)
                yield source.finding(self, clip.node, message, severity=severity, fix=fix), clip.node

    def _scalers(
        self, source: SourceFile, flow: Flow, backward: Event, precision: str
    ) -> Iterator[tuple[Finding, str]]:
        severity = None if precision == "fp16" else Severity.WARNING
        for event in [*flow.of("scale"), *flow.of("step")]:
            receiver = event.receiver
            if receiver is None or not _is_torch_scaler(source, receiver):
                continue
            nested = event.kind == "scale" and any(item is backward.node for item in source.ancestors(event.node))
            if nested or (event.kind == "step" and flow.path(backward, event, same_iteration=True)):
                message = (
                    f"{event.scaler_name} scales beside the GradScaler of the Accelerator: "
                    "delete it, pass the plain loss to backward and call optimizer.step()"
                )
                yield source.finding(self, event.node, message, severity=severity), event.scaler


def _is_accelerator(source: SourceFile, backward: Event) -> bool:
    """Whether the backward is that of an Accelerator, and not of something else with such a name."""
    node = backward.receiver
    if node is None or source.kind(node) != "accelerator":
        return False
    if "accelerate" in source.frameworks:
        return True
    if "lightning" in source.frameworks:
        return False
    attributes = (item for item in source.nodes(ast.Attribute) if item.attr in _ATTRIBUTES)
    return any(source.kind(item.value) == "accelerator" for item in attributes)


def _precision(source: SourceFile, backward: Event) -> str:
    """The precision of the Accelerator: "fp16", "bf16", "fp8", "no", or "?" when it is not known."""
    makers = source.kinds.constructors_of(backward.receiver) if backward.receiver is not None else []
    makers = [call for call in makers if set(_CONSTRUCTORS) & set(source.qualified(call.func))]
    found = {_precision_of(source, call) for call in makers or source.calls(*_CONSTRUCTORS)}
    return found.pop() if len(found) == 1 else "?"


def _precision_of(source: SourceFile, call: ast.Call) -> str:
    argument = source.argument(call, "mixed_precision", 2)
    if argument is None:
        return "fp16" if source.constant(source.argument(call, "fp16")) is True else "?"
    value = source.constant(argument)
    return value if value is not UNKNOWN and isinstance(value, str) else "?"


def _is_torch_scaler(source: SourceFile, receiver: ast.expr) -> bool:
    made = any(source.kinds.is_scaler_constructor(call) for call in source.kinds.constructors_of(receiver))
    return made and not source.kinds.is_switched_off(receiver)


def _clip_name(source: SourceFile, clip: Event) -> str:
    """The name of a clip that the Accelerator has too; "" for others, by norms that were computed elsewhere say."""
    func = clip.node.func if isinstance(clip.node, ast.Call) else None
    name = next((item.rpartition(".")[2] for item in source.qualified(func)), "")
    return name if name in _CLIPS else ""


def _fix(source: SourceFile, backward: Event, clip: Event) -> Fix | None:
    """The accelerator's method of the same name; None where it takes other arguments or is not at hand."""
    call, accelerator = clip.node, backward.receiver
    assert isinstance(call, ast.Call)
    name = _clip_name(source, clip)
    if not name or accelerator is None or backward.function is not clip.function or source.has_splat(call):
        return None
    if not all(keyword.arg in _CLIPS[name] for keyword in call.keywords):
        return None
    new = f"{source.segment(accelerator)}.{name}"
    return Fix(f"call {new}", (edits.replace(source, call.func, new),))

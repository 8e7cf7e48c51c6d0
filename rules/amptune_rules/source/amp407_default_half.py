"""AMP407: float16 is made the default dtype of a program that trains."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile

_HALF_TYPES = ("torch.cuda.HalfTensor", "torch.HalfTensor")
_TRAINING = ("backward", "manual_backward", "zero_grad")
_INFERENCE = ("torch.no_grad", "torch.inference_mode")


class DefaultHalf(SourceRule):
    """float16 is made the default dtype.

    ## What it does
    Flags `torch.set_default_dtype(torch.float16)` and `torch.set_default_tensor_type` of a half tensor type: a warning
    where the file trains, info where it does not show, nothing where the file only runs inference or sets the default
    back.

    ## Why is this bad
    Weights, optimizer state and every constant are then made in float16. An update below 1/2048 of its weight is lost,
    Adam's second moment (squares of gradients) underflows below 3e-8, its eps of 1e-8 becomes 0 and the division gives
    infinities. Autocast keeps all of these in float32 and is as fast.

    ## Example
    ```python
    import torch
    torch.set_default_dtype(torch.float16)
    model = Model()
    model(x).backward()
    ```

    ## Use instead
    ```python
    import torch
    model = Model()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(x)
    loss.backward()
    ```

    ## Fix safety
    No fix: autocast has to be put around the forward.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html
    """

    code = "AMP407"
    name = "default-half"
    severity = Severity.WARNING
    keywords = (b"set_default_dtype", b"set_default_tensor_type")

    INVALID = (
        Example(
            "before training",
            """\
import torch

torch.set_default_dtype(torch.float16)  # <- AMP407@1

def step(model, x, optimizer):
    model(x).sum().backward()
    optimizer.step()
""",
        ),
        Example(
            "tensor types, by name and by object",
            """\
import torch

def main(model, x, gpu):
    if gpu:
        torch.set_default_tensor_type(torch.cuda.HalfTensor)  # <- AMP407
    else:
        torch.set_default_tensor_type("torch.HalfTensor")  # <- AMP407
    model(x).sum().backward()
""",
        ),
        Example(
            "whether it trains does not show, so severity info",
            """\
import torch

DTYPE = torch.half
torch.set_default_dtype(DTYPE)  # <- AMP407
""",
        ),
    )
    VALID = (
        Example(
            "other dtypes",
            """\
import torch

torch.set_default_dtype(torch.float32)
torch.set_default_tensor_type(torch.cuda.FloatTensor)

def step(model, x):
    model(x).sum().backward()
""",
        ),
        Example(
            "inference",
            """\
import torch

torch.set_default_tensor_type(torch.cuda.HalfTensor)

@torch.inference_mode()
def generate(model, x):
    return model(x)
""",
        ),
        Example(
            "set back afterwards",
            """\
import torch

def build(make, x):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        model = make()
    finally:
        torch.set_default_dtype(before)
    return model
""",
        ),
        Example(
            "dtype from the caller",
            """\
import torch

def setup(dtype, model, x):
    torch.set_default_dtype(dtype)
    model(x).sum().backward()
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls that make float16 the default and leave it so."""
        calls = source.calls("torch.set_default_dtype", "torch.set_default_tensor_type")
        found = [call for call in calls if call.args or call.keywords]
        for call in found:
            value = call.args[0] if call.args else call.keywords[0].value
            if not _is_half(source, value) or _is_set_back(source, call, found):
                continue
            severity = _severity(source)
            if severity is not None:
                message = (
                    f"{source.segment(call)} makes weights and optimizer state float16: updates under 1/2048 of a "
                    "weight are lost; keep float32 and use torch.autocast"
                )
                yield source.finding(self, call, message, severity=severity)


def _is_half(source: SourceFile, value: ast.expr) -> bool:
    text = source.constant(value)
    if isinstance(text, str):
        return text in _HALF_TYPES
    leaves = source.values(value)
    names = {name for leaf in leaves for name in source.qualified(leaf)}
    return bool(names) and (names <= set(_HALF_TYPES) or source.dtypes(value) == {"float16"})


def _is_set_back(source: SourceFile, call: ast.Call, calls: list[ast.Call]) -> bool:
    """Whether a later call of the same function sets another default."""
    function = source.function_of(call)
    if function is None:
        later = [other for other in calls if source.function_of(other) is None and other.lineno > call.lineno]
    else:
        later = [other for other in calls if source.function_of(other) is function and other.lineno > call.lineno]
    branch = source.enclosing(call, ast.If)
    return any(
        not _is_half(source, other.args[0]) and (branch is None or not source.index.is_inside(other, branch))
        for other in later
        if other.args
    )


def _severity(source: SourceFile) -> Severity | None:
    """Warning for a file that trains, none for one that only runs inference, info for what does not show."""
    if source.method_calls(*_TRAINING):
        return Severity.WARNING
    is_inference = source.references(*_INFERENCE) or source.method_calls("eval", "generate")
    return None if is_inference else Severity.INFO

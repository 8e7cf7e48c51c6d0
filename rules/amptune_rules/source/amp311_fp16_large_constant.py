"""AMP311: a constant beyond 65504 is put into a float16 tensor."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import HALF, has_large_number, makes_half
from amptune_rules.source._constants import overflows, shown
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import is_guarded
from amptune_rules.source._precision import precision

# Constructors -> the place of the value among the positional arguments.
_MADE = {
    "torch.tensor": 0, "torch.as_tensor": 0, "torch.scalar_tensor": 0, "torch.full": 1, "torch.HalfTensor": 0,
    "torch.cuda.HalfTensor": 0,
}  # fmt: skip
_NAMES = {"torch.full": "fill_value", "torch.scalar_tensor": "s"}


class Fp16LargeConstant(SourceRule):
    """A constant beyond 65504 is put into a float16 tensor, added to one, or multiplied with one.

    ## What it does
    Flags a finite number beyond 65504 in `torch.tensor`, `full`, `scalar_tensor` or `HalfTensor` with dtype float16,
    and one that is added to or subtracted from a tensor that is float16 for certain: errors. A float16 tensor
    multiplied with such a number is a warning, as values below 65504 divided by it survive.

    ## Why is this bad
    The largest float16 is 65504 and what rounds above it is inf: `torch.tensor(1e5, dtype=torch.float16)` is inf,
    `torch.full` raises RuntimeError. An inf in a network is NaN after the next subtraction or normalisation.

    ## Example
    ```python
    import torch
    scale = torch.tensor(1e5, dtype=torch.float16)
    ```

    ## Use instead
    ```python
    import torch
    scale = torch.tensor(1e5, dtype=torch.float32)
    ```

    ## Fix safety
    No fix. A float32 tensor, bfloat16 or a smaller constant are all possible.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    """

    code = "AMP311"
    name = "fp16-large-constant"
    severity = Severity.ERROR
    keywords = HALF
    requires = (b"torch",)

    INVALID = (
        Example(
            "constructors",
            """\
import torch

BIG = 2**17
a = torch.tensor([1.0, 1e5], dtype=torch.float16)  # <- AMP311
b = torch.full((4,), fill_value=BIG, dtype=torch.half)  # <- AMP311
c = torch.tensor(-1e9).half()  # <- AMP311
d = torch.cuda.HalfTensor([70000])  # <- AMP311
""",
        ),
        Example(
            "arithmetic with a float16 tensor",
            """\
import torch

def scaled(x, loss):
    h = x.to(torch.float16)
    y = h + 1e6  # <- AMP311
    return y, 1e5 * loss.half()  # <- AMP311
""",
        ),
        Example(
            "an annotated parameter, a tensor and a dtype on self",
            """\
import torch
from jaxtyping import Float16
from torch import Tensor

class Scores:
    def __init__(self, x):
        self.dtype = torch.float16
        self.kept = x.half()
        self.floor = torch.full((1,), -1e6, dtype=self.dtype)  # <- AMP311

    def shifted(self, logits: Float16[Tensor, "batch words"]):
        return logits - 1e5, self.kept + 1e5  # <- AMP311, AMP311
""",
        ),
    )
    VALID = (
        Example(
            "numbers that fit, or are infinite",
            """\
import torch

a = torch.tensor([65504.0, 1e4], dtype=torch.float16)
b = torch.full((4,), float("-inf"), dtype=torch.half)
""",
        ),
        Example(
            "other dtypes",
            """\
import torch

a = torch.tensor([100000], dtype=torch.int64)
b = torch.full((4,), 1e9, dtype=torch.bfloat16)
c = torch.tensor(1e9)
d = torch.ones(4).half().float() * 1e6
""",
        ),
        Example(
            "divided by, or a number that is no tensor",
            """\
import torch

def show(x, seconds):
    h = x.half()
    return h / 1e6, seconds * 1e9, h.numel() * 1e6, h.sum().item() + 1e6
""",
        ),
        Example(
            "annotated as float32, and dtypes that may be another",
            """\
import torch
from jaxtyping import Float, Float16
from torch import Tensor

class Scores:
    def __init__(self, x, dtype=torch.float16):
        self.dtype = dtype
        self.kept = x
        self.floor = torch.full((1,), -1e6, dtype=self.dtype)

    def shifted(self, logits: Float[Tensor, "batch words"], small: Float16[Tensor, "batch"]):
        return logits - 1e5, self.kept + 1e5, small.float() + 1e5
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return has_large_number(data) and makes_half(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Constants in constructors and in sums and products."""
        for call in source.calls(*_MADE):
            number = _made_of(source, call)
            if number is not None and _is_half(source, call) and not is_guarded(source, call):
                yield source.finding(
                    self, call, f"{shown(number)} does not fit float16 (largest 65504) and becomes inf or raises: "
                    "use float32 or a smaller number", evidence={"value": number, "max": 65504.0},
                )  # fmt: skip
        for node in source.nodes(ast.BinOp):
            yield from self._arithmetic(source, node)

    def _arithmetic(self, source: SourceFile, node: ast.BinOp) -> Iterator[Finding]:
        if not isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            return
        for tensor, value in ((node.left, node.right), (node.right, node.left)):
            if isinstance(value, ast.Call) or source.number(tensor) is not None:
                continue
            number = overflows(source, value)
            if number is None or _is_mask(source, tensor) or precision(source, tensor) is not Fact.HALF:
                continue
            if not is_guarded(source, node):
                is_product = isinstance(node.op, ast.Mult)
                effect = f"is inf where a value passes {65504 / abs(number):.2g}" if is_product else "is inf"
                yield source.finding(
                    self, node, f"a float16 tensor with {shown(number)} {effect} (largest 65504): compute in float32",
                    severity=Severity.WARNING if is_product else Severity.ERROR,
                    evidence={"value": number, "max": 65504.0},
                )  # fmt: skip


def _made_of(source: SourceFile, call: ast.Call) -> float | None:
    """The number too large for float16 that a constructor gets, alone or in a list."""
    name = next((item for item in source.qualified(call.func) if item in _MADE), "")
    value = source.argument(call, _NAMES.get(name, "data"), _MADE.get(name, 0))
    items: list[ast.expr] = [value] if value is not None else []
    while items:
        item = items.pop()
        if isinstance(item, ast.List | ast.Tuple):
            items += item.elts
        elif not isinstance(item, ast.Call) and (number := overflows(source, item)) is not None:
            return number
    return None


def _is_half(source: SourceFile, call: ast.Call) -> bool:
    """Whether the tensor is float16 from the start, or cast in the same expression."""
    if any("HalfTensor" in name for name in source.qualified(call.func)):
        return isinstance(source.argument(call, "data", 0), ast.List | ast.Tuple)
    if source.argument(call, "dtype") is not None:
        return precision(source, call) is Fact.HALF and source.dtypes(source.argument(call, "dtype")) == {"float16"}
    method = source.parent(call)
    cast = source.parent(method) if isinstance(method, ast.Attribute) else None
    return isinstance(cast, ast.Call) and cast.func is method and precision(source, cast) is Fact.HALF


def _is_mask(source: SourceFile, node: ast.expr) -> bool:
    """Whether this is a mask, which AMP301 speaks of."""
    is_inverse = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and source.number(node.left) == 1
    return is_inverse or "mask" in source.segment(node)

"""AMP301: a tensor that may be float16 is masked with a number beyond 65504."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import masks_with_large_number
from amptune_rules.source._constants import overflows, shown
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import Chance, Risk, half_risk, is_guarded
from amptune_rules.source._numbers import number_of

_ONES = ("torch.ones_like", "torch.full_like")


@dataclasses.dataclass(frozen=True)
class _Masking:
    """One place that writes a large number into a tensor.

    Attributes:
        node: what is flagged.
        tensor: the expression whose precision decides.
        value: the number's expression.
        number: the number.
        raises: whether torch raises for float16, rather than storing an infinity.
    """

    node: ast.AST
    tensor: ast.expr
    value: ast.expr
    number: float
    raises: bool
    what: str


class Fp16MaskOverflow(SourceRule):
    """A tensor that may be float16 is masked with a number that float16 cannot hold.

    ## What it does
    Flags `masked_fill`, `fill_`, `full_like`, `pad`, `where`, `x[mask] = ...` and `(1 - mask) * -1e9` with a finite
    number beyond 65504. An error where the tensor is float16 for certain and torch raises; a warning where it is under
    float16 autocast or in a half model, or becomes -inf; info where the code runs in float16 only if its user does so.

    ## Why is this bad
    The largest float16 is 65504. `masked_fill(mask, -1e9)` raises "value cannot be converted to type c10::Half without
    overflow"; the forms that multiply or assign store -inf. A row that is masked everywhere is then -inf
    throughout, and its softmax NaN. Attention scores are float16 under CUDA autocast, because matmul is.

    ## Example
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        scores = torch.matmul(query, key)
        scores = scores.masked_fill(mask, -1e9)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        scores = torch.matmul(query, key)
        scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
    ```

    ## Fix safety
    Unsafe: the number changes to the smallest of the tensor's dtype. After a softmax the result is the same; where two
    masks are added, the sum overflows and has to be clamped.

    ## References
    - https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html
    - https://github.com/huggingface/transformers/pull/17306
    """

    code = "AMP301"
    name = "fp16-mask-overflow"
    severity = Severity.ERROR
    keywords = (
        b"1e5", b"1e6", b"1e7", b"1e8", b"1e9", b"1e1", b"1e2", b"1e3", b"9e15", b"1E", b"e+", b"0e", b"100000",
        b"99999", b"65536", b"2**", b"2 ** ", b"finfo(torch.float",
    )  # fmt: skip
    requires = (b"torch",)

    INVALID = (
        Example(
            "scores of a matmul under autocast",
            """\
import torch

NEG = -1e9

def attend(query, key, mask):
    with torch.autocast("cuda", dtype=torch.float16):
        scores = torch.matmul(query, key.transpose(-2, -1)) / 8.0
        scores = scores.masked_fill(mask == 0, -1e9)  # <- AMP301@18
        return (query @ key).masked_fill_(mask, NEG).softmax(dim=-1)  # <- AMP301
""",
            fixed="""\
import torch

NEG = -1e9

def attend(query, key, mask):
    with torch.autocast("cuda", dtype=torch.float16):
        scores = torch.matmul(query, key.transpose(-2, -1)) / 8.0
        scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        return (query @ key).masked_fill_(mask, NEG).softmax(dim=-1)  # <- AMP301
""",
        ),
        Example(
            "mask added in the dtype of the model",
            """\
import torch

def bias(model, scores, mask):
    model = model.half()
    mask = (1.0 - mask.to(torch.float16)) * -1e10  # <- AMP301@12
    return scores + mask
""",
        ),
        Example(
            "the region is in the training step, the mask in the attention module",
            """\
import torch
from torch import nn

class Attention(nn.Module):
    def __init__(self, neg=-1e30):
        super().__init__()
        self.neg = neg
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x, mask):
        scores = self.q(x) @ self.k(x).mT
        return torch.where(mask, scores, self.neg)  # <- AMP301@16

model = Attention()

def step(x, mask, target):
    with torch.cuda.amp.autocast():  # <- AMP401
        return (model(x, mask) - target).abs().mean()
""",
        ),
        Example(
            "a module that its user may run in float16, at severity info",
            """\
import torch
from torch import nn

class Pointer(nn.Module):
    def forward(self, query, keys, visited):
        logits = torch.einsum("bd,bnd->bn", query, keys)
        logits[visited] = -1e6  # <- AMP301@9
        return logits
""",
        ),
    )
    VALID = (
        Example(
            "the smallest number of the dtype, -inf, or one that fits",
            """\
import torch

def attend(query, key, mask):
    with torch.autocast("cuda", dtype=torch.float16):
        scores = query @ key.mT
        a = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
        b = scores.masked_fill(mask, float("-inf"))
        return a + b + (1.0 - mask) * -10000.0
""",
        ),
        Example(
            "float32 scores",
            """\
import torch

def attend(query, key, mask):
    with torch.autocast("cuda", dtype=torch.float16):
        scores = (query @ key.mT).float()
        a = scores.masked_fill(mask, -1e9)
        return a + torch.log_softmax(query @ key, dim=-1).masked_fill(mask, -1e9)
""",
        ),
        Example(
            "bfloat16 has the range of float32",
            """\
import torch

def attend(query, key, mask):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return (query @ key.mT).masked_fill(mask, -1e9)
""",
        ),
        Example(
            "chosen by the dtype",
            """\
import torch

def attend(scores, mask):
    if scores.dtype == torch.float16:
        return scores.half().masked_fill(mask, -6e4)
    if scores.dtype != torch.float16:
        return scores.masked_fill(mask, -1e9)
    return scores.masked_fill(mask, -1e4 if scores.dtype == torch.float16 else -1e9)
""",
        ),
        Example(
            "float32 mask of a float32 input",
            """\
import torch

def attend(query, key, lengths):
    with torch.autocast("cuda", dtype=torch.float16):
        mask = torch.zeros(len(lengths), int(lengths.max()))
        mask = (1.0 - mask) * -1e9
        return query @ key + mask
""",
        ),
        Example(
            "large numbers that are no mask",
            """\
import torch
import numpy as np

def schedule(cost, done, table):
    best = 1e9
    table[done] = 1e9
    cost = np.where(done, 1e9, cost)
    return cost / 1e6, best, torch.full((4,), 1e9)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return masks_with_large_number(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Large numbers that are written into tensors which may be float16."""
        for masking in _maskings(source):
            if is_guarded(source, masking.node):
                continue
            risk = half_risk(source, masking.tensor)
            if risk is None or not _is_worth(masking, risk):
                continue
            yield source.finding(
                self, masking.node, _message(source, masking, risk), severity=_severity(masking, risk),
                evidence={"value": masking.number, "max": 65504.0}, fix=_fix(source, masking),
            )  # fmt: skip


def _severity(masking: _Masking, risk: Risk) -> Severity:
    if risk.chance is Chance.POSSIBLE:
        return Severity.INFO
    return Severity.ERROR if masking.raises and risk.chance is Chance.CERTAIN else Severity.WARNING


def _message(source: SourceFile, masking: _Masking, risk: Risk) -> str:
    effect = (
        "raises on float16" if masking.raises else "is -inf in float16" if masking.number < 0 else "is inf in float16"
    )
    text = source.segment(masking.tensor)
    tensor = text if isinstance(masking.tensor, ast.Name | ast.Attribute) else "the tensor"
    may = "is" if risk.chance is Chance.CERTAIN else "can be"
    end = "min" if masking.number < 0 else "max"
    return (
        f"{masking.what} with {shown(masking.number)} {effect} (largest 65504), and {tensor} {may} {risk.why}: "
        f"use torch.finfo({tensor if tensor == text else 'x'}.dtype).{end}"
    )


def _is_worth(masking: _Masking, risk: Risk) -> bool:
    """Whether a mere possibility is worth a word: for what is a torch op by its name, or a value of a network."""
    if risk.chance is not Chance.POSSIBLE:
        return True
    return risk.fact is Fact.FOLLOWS or (risk.fact is Fact.UNKNOWN and masking.what == "masked_fill")


def _maskings(source: SourceFile) -> Iterator[_Masking]:
    for call in source.method_calls("masked_fill", "masked_fill_", "index_fill", "index_fill_", "fill_", "new_full"):
        yield from _filled(source, call)
    for call in source.calls("torch.full_like", "torch.full"):
        yield from _made(source, call)
    for call in source.calls("torch.nn.functional.pad"):
        number = overflows(source, source.argument(call, "value", 3))
        if number is not None and call.args:
            yield _Masking(call, call.args[0], call.args[0], number, True, "pad")
    for call in source.method_calls("where"):
        yield from _chosen(source, call)
    for product in source.nodes(ast.BinOp):
        if isinstance(product.op, ast.Mult):
            yield from _multiplied(source, product)
    for statement in source.nodes(ast.Assign):
        target = statement.targets[0]
        if isinstance(target, ast.Subscript) and (number := overflows(source, statement.value)) is not None:
            yield _Masking(statement, target.value, statement.value, number, False, "assignment")


def _filled(source: SourceFile, call: ast.Call) -> Iterator[_Masking]:
    """``x.masked_fill(mask, value)``, ``torch.masked_fill(x, mask, value)`` and their like."""
    assert isinstance(call.func, ast.Attribute)
    name = call.func.attr.removesuffix("_")
    position = {"masked_fill": 1, "index_fill": 2, "fill": 0, "new_full": 1}[name]
    is_function = any(path.startswith("torch.") for path in source.qualified(call.func))
    if is_function and not call.args:
        return
    tensor = call.args[0] if is_function else call.func.value
    keyword = "fill_value" if name == "new_full" else "value"
    value = source.argument(call, keyword, position + is_function)
    number = overflows(source, value)
    if value is not None and number is not None and source.argument(call, "dtype") is None:
        yield _Masking(call, tensor, value, number, True, name)


def _made(source: SourceFile, call: ast.Call) -> Iterator[_Masking]:
    """``torch.full_like(x, value)`` and ``torch.full(size, value, dtype=x.dtype)``."""
    value, dtype = source.argument(call, "fill_value", 1), source.argument(call, "dtype")
    number = overflows(source, value)
    if value is None or number is None or not call.args:
        return
    if isinstance(dtype, ast.Attribute) and dtype.attr == "dtype":
        yield _Masking(call, dtype.value, value, number, True, "full")
    elif dtype is None and "torch.full_like" in source.qualified(call.func):
        yield _Masking(call, call.args[0], value, number, True, "full_like")


def _chosen(source: SourceFile, call: ast.Call) -> Iterator[_Masking]:
    """``torch.where(mask, x, -1e9)`` and ``x.where(mask, -1e9)``; the number may be times ``ones_like``."""
    is_torch = source.qualified(call.func) == ("torch.where",)
    if source.qualified(call.func) and not is_torch:
        return
    assert isinstance(call.func, ast.Attribute)
    options = call.args[1:3] if is_torch else [call.func.value, *call.args[1:2]]
    if len(options) != 2:
        return
    for tensor, value in (options, options[::-1]):
        number = _chosen_number(source, value)
        if number is not None and number_of(source, tensor) is None:
            yield _Masking(call, tensor, value, number, False, "where")


def _chosen_number(source: SourceFile, value: ast.expr) -> float | None:
    for leaf in source.values(value):
        if isinstance(leaf, ast.BinOp) and isinstance(leaf.op, ast.Mult):
            for side, other in ((leaf.left, leaf.right), (leaf.right, leaf.left)):
                if isinstance(other, ast.Call) and not set(_ONES).isdisjoint(source.qualified(other.func)):
                    return overflows(source, side)
    return overflows(source, value)


def _multiplied(source: SourceFile, product: ast.BinOp) -> Iterator[_Masking]:
    """``(1 - mask) * -1e9``, and ``1e9 * (1 - mask)`` that is subtracted."""
    for mask, value in ((product.left, product.right), (product.right, product.left)):
        number = overflows(source, value)
        if number is None or not _is_mask(source, mask):
            continue
        parent = source.parent(product)
        is_subtracted = isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Sub) and parent.right is product
        if number < 0 or is_subtracted:
            yield _Masking(product, mask, value, -abs(number), False, "mask")


def _is_mask(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is ``1 - x``, or is called a mask."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and number_of(source, node.left) == 1:
        return True
    return "mask" in source.segment(node) and not isinstance(node, ast.BinOp)


def _fix(source: SourceFile, masking: _Masking) -> Fix | None:
    """The smallest or largest number of the dtype, where the tensor has a name and the number stands in the call."""
    is_literal = not any(isinstance(item, ast.Name | ast.Call | ast.Attribute) for item in ast.walk(masking.value))
    if not masking.raises or not is_literal or not isinstance(masking.tensor, ast.Name | ast.Attribute):
        return None
    end = "min" if masking.number < 0 else "max"
    text = f"torch.finfo({source.segment(masking.tensor)}.dtype).{end}"
    return Fix(f"use {text}", (edits.replace(source, masking.value, text),), Safety.UNSAFE, ("import torch",))

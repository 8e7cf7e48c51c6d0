"""AMP308: a running sum or mean is kept in float16 or bfloat16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import mentions_sixteen_bits
from amptune_rules.source._half_risk import is_guarded
from amptune_rules.source._precision import Fact, precision

_MADE = frozenset({"zeros", "zeros_like", "new_zeros", "tensor", "full", "full_like", "new_full"})
_FEW = 16


class AccumulateInHalf(SourceRule):
    """A tensor of zeros in float16 or bfloat16 is added to in a loop.

    ## What it does
    Flags `total += x`, `total = total + x` and `total.add_(x)` in a loop, where `total` is made before the loop by
    `zeros`, `zeros_like`, `full` or `tensor` with a 16-bit dtype. Loops that are seen to have at most 16 rounds are
    fine.

    ## Why is this bad
    float16 has 11 significant bits and bfloat16 8: adding 1 to 2048 (256 in bfloat16) changes nothing, so the sum stops
    growing, and float16 overflows at 65504. The mean of 10,000 values near 1 comes out as 0.2.

    ## Example
    ```python
    import torch
    total = torch.zeros((), dtype=torch.float16)
    for batch in loader:
        total += batch.mean()
    ```

    ## Use instead
    ```python
    import torch
    total = torch.zeros((), dtype=torch.float32)
    for batch in loader:
        total += batch.mean()
    ```

    ## Fix safety
    No fix. A float32 accumulator changes the dtype of what is computed from it.

    ## References
    - https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/index.html
    """

    code = "AMP308"
    name = "accumulate-in-half"
    severity = Severity.WARNING
    keywords = (b"float16", b"half", b"HalfTensor")
    requires = (b"torch", b"for ")

    INVALID = (
        Example(
            "sum over a loader",
            """\
import torch

def mean(loader, model):
    total = torch.zeros(10, device="cuda", dtype=torch.float16)
    count = torch.zeros(1).half()
    for x in loader:
        total += model(x).mean(0)  # <- AMP308
        count = count + 1  # <- AMP308
    return total / count
""",
        ),
        Example(
            "in place by a method, in bfloat16",
            """\
import torch

def total_of(batches):
    total = torch.tensor(0.0, dtype=torch.bfloat16)
    for batch in batches:
        if batch is not None:
            total.add_(batch.sum())  # <- AMP308
    return total
""",
        ),
    )
    VALID = (
        Example(
            "float32 accumulator",
            """\
import torch

def total_of(batches):
    total = torch.zeros(1)
    for batch in batches:
        total += batch.half().sum()
    return total.half()
""",
        ),
        Example(
            "few rounds",
            """\
import torch

def total_of(x):
    total = torch.zeros(1, dtype=torch.float16)
    for index in range(4):
        total += x[index]
    return total
""",
        ),
        Example(
            "made anew in every round",
            """\
import torch

def sums(batches):
    for batch in batches:
        total = torch.zeros(1, dtype=torch.float16)
        total += batch.sum()
        yield total
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return mentions_sixteen_bits(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Additions to an accumulator in loops."""
        for target, node in _additions(source):
            loops = source.loops_of(node)
            if not loops or is_guarded(source, node) or all(_is_short(source, loop) for loop in loops):
                continue
            fact = _made_in(source, target, loops[0])
            if fact is not None:
                yield source.finding(
                    self, node, f"{target.id} is a running sum in {fact.value}, which stops growing at "
                    f"{2048 if fact is Fact.HALF else 256} times what is added: make it float32",
                )  # fmt: skip


def _additions(source: SourceFile) -> Iterator[tuple[ast.Name, ast.stmt | ast.Call]]:
    for update in source.nodes(ast.AugAssign):
        if isinstance(update.op, ast.Add) and isinstance(update.target, ast.Name):
            yield update.target, update
    for assign in source.nodes(ast.Assign):
        target, value = assign.targets[0], assign.value
        if isinstance(target, ast.Name) and isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            names = [side.id for side in (value.left, value.right) if isinstance(side, ast.Name)]
            if target.id in names:
                yield target, assign
    for call in source.method_calls("add_"):
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            yield call.func.value, call


def _made_in(source: SourceFile, target: ast.Name, loop: ast.stmt) -> Fact | None:
    """The 16-bit dtype that the accumulator is made in before the loop; None when it is another or not known."""
    made = [
        binding.value
        for binding in source.bindings(target)
        if binding.kind == "assign" and isinstance(binding.value, ast.Call) and _is_maker(binding.value)
    ]
    others = [
        binding
        for binding in source.bindings(target)
        if binding.kind != "update" and binding.value not in made and not isinstance(binding.value, ast.BinOp)
    ]
    if len(made) != 1 or others or loop in source.ancestors(made[0]):
        return None
    fact = precision(source, made[0])
    return fact if fact in (Fact.HALF, Fact.BF16) else None


def _is_maker(call: ast.Call) -> bool:
    """Whether the call makes a tensor of one number, casts and moves behind it included."""
    node: ast.expr = call
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in _MADE:
            return True
        node = node.func.value
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _MADE


def _is_short(source: SourceFile, loop: ast.stmt) -> bool:
    """Whether the loop has few rounds, by a range or a literal list."""
    if not isinstance(loop, ast.For):
        return False
    if isinstance(loop.iter, ast.List | ast.Tuple):
        return True
    is_range = isinstance(loop.iter, ast.Call) and source.qualified(loop.iter.func) == ("range",)
    if not is_range or not isinstance(loop.iter, ast.Call) or not loop.iter.args:
        return False
    end = source.number(loop.iter.args[min(1, len(loop.iter.args) - 1)])
    return end is not None and end <= _FEW

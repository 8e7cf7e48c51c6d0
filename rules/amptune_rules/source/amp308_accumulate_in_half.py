"""AMP308: a running sum or mean is kept in float16 or bfloat16."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import accumulates, makes_sixteen_bits
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import is_guarded
from amptune_rules.source._precision import precision

_MADE = frozenset({"zeros", "zeros_like", "new_zeros", "tensor", "full", "full_like", "new_full"})
_FEW = 16
_METER = re.compile(r"update|accumulate|add|observe|record|__call__|forward|step|on_\w*batch", re.IGNORECASE)
_Target = ast.Name | ast.Attribute


class AccumulateInHalf(SourceRule):
    """A tensor of zeros in float16 or bfloat16 is added to in a loop.

    ## What it does
    Flags `total += x`, `total = total + x` and `total.add_(x)` in a loop, where `total` is made before the loop by
    `zeros`, `zeros_like`, `full` or `tensor` with a 16-bit dtype; also `self.total`, and then in methods called
    `update` and the like as well. Loops that are seen to have at most 16 rounds are fine.

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
    requires = (b"torch", (b"zeros", b"tensor", b"full"))

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
        Example(
            "kept on self, added to for each batch",
            """\
import torch

class MeanLoss:
    def __init__(self, device):
        self.total: torch.Tensor = torch.zeros((), dtype=torch.float16, device=device)
        self.count = 0

    def update(self, loss):
        self.total += loss  # <- AMP308
        self.count += 1
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
        Example(
            "on self, made anew in each call, or in float32",
            """\
import torch

class Blocks:
    def __init__(self, dim):
        self.bias = torch.zeros(dim, dtype=torch.float32)

    def forward(self, xs):
        self.out = torch.zeros(len(xs), dtype=torch.float16)
        self.out += xs[0]
        self.bias += xs[0].float()
        return self.out
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return makes_sixteen_bits(data) and accumulates(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Additions to an accumulator in loops, and to one that the object keeps between calls."""
        for target, node in _additions(source):
            if is_guarded(source, node) or not _is_repeated(source, target, node):
                continue
            fact = _made_in(source, target, node)
            if fact is not None:
                yield source.finding(
                    self, node, f"{source.segment(target)} is a running sum in {fact.value}, which stops growing at "
                    f"{2048 if fact is Fact.HALF else 256} times what is added: make it float32",
                )  # fmt: skip


def _additions(source: SourceFile) -> Iterator[tuple[_Target, ast.stmt | ast.Call]]:
    for update in source.nodes(ast.AugAssign):
        if isinstance(update.op, ast.Add) and isinstance(update.target, _Target):
            yield update.target, update
    for assign in source.nodes(ast.Assign):
        target, value = assign.targets[0], assign.value
        if isinstance(target, _Target) and isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            text = source.segment(target)
            if any(isinstance(side, _Target) and source.segment(side) == text for side in (value.left, value.right)):
                yield target, assign
    for call in source.method_calls("add_"):
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, _Target):
            yield call.func.value, call


def _is_repeated(source: SourceFile, target: _Target, node: ast.AST) -> bool:
    """Whether the addition runs many times: in a loop of more than a few rounds, or in a method for each batch."""
    loops = source.loops_of(node)
    if loops:
        return not all(_is_short(source, loop) for loop in loops)
    function = source.function_of(node)
    return isinstance(target, ast.Attribute) and function is not None and _METER.search(function.name) is not None


def _made_in(source: SourceFile, target: _Target, node: ast.AST) -> Fact | None:
    """The 16-bit dtype that the accumulator is made in before the loop; None when it is another or not known."""
    bindings = [binding for binding in source.bindings(target) if binding.kind != "update"]
    made = [
        binding.value
        for binding in bindings
        if binding.kind == "assign" and isinstance(binding.value, ast.Call) and _is_maker(binding.value)
    ]
    others = [item for item in bindings if item.value not in made and not isinstance(item.value, ast.BinOp)]
    if not made or others or (isinstance(target, ast.Name) and len(made) > 1):
        return None
    if any(_is_inside(source, call, node) for call in made):
        return None
    facts = {precision(source, call) for call in made}
    fact = facts.pop() if len(facts) == 1 else None
    return fact if fact in (Fact.HALF, Fact.BF16) else None


def _is_inside(source: SourceFile, call: ast.Call, node: ast.AST) -> bool:
    """Whether the accumulator is made anew in each round, or by the method that adds to it."""
    loops = source.loops_of(node)
    if loops:
        return loops[0] in source.ancestors(call)
    return source.function_of(call) is source.function_of(node)


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

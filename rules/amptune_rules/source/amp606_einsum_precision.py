"""AMP606: an einsum of three or more operands in 16 bits."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._models import is_torch_autocast
from amptune_rules.source._reach import regions_reaching

_EINSUM = ("torch.einsum", "torch.functional.einsum", "einops.einsum")
_MANY = 3
# All but an equation of one or two operands at the beginning.
_OF_MANY = re.compile(rb"einsum\((?!\s*+[\"'][^\"',]*+(?:,[^\"',]*+)?[\"'])")
_HALF = frozenset({"float16", "bfloat16"})


class EinsumPrecision(SourceRule):
    """An einsum of three or more operands runs in 16 bits.

    ## What it does
    Flags `torch.einsum` with at least three operands that runs under autocast, or on operands that are cast to a 16-bit
    dtype in the call.

    ## Why is this bad
    Two operands are one matmul, which accumulates in float32. With three, torch chooses an order (another one when
    opt_einsum is installed), and each product in between is rounded to the 16-bit dtype: in float16 it overflows at
    65504, and whether it does depends on the order and on the shapes.

    ## Example
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        y = torch.einsum("bi,ij,bj->b", x, weight, z)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda", dtype=torch.float16):
        projected = torch.einsum("bi,ij->bj", x, weight)
        y = torch.einsum("bj,bj->b", projected.float(), z.float())
    ```

    ## Fix safety
    No fix: which two operands belong together, and which product needs float32, depends on their sizes.

    ## References
    - https://docs.pytorch.org/docs/stable/generated/torch.einsum.html
    - https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference
    """

    code = "AMP606"
    name = "einsum-precision"
    severity = Severity.INFO
    keywords = (b"autocast", b".half()", b"bfloat16", b"float16")
    requires = (b"einsum",)

    INVALID = (
        Example(
            "under autocast, through a function",
            """\
import torch

def energy(x, weight, z):
    return torch.einsum("bi,ij,bj->b", x, weight, z)  # <- AMP606@12

def loss_of(batch, weight):
    with torch.autocast("cuda", dtype=torch.float16):
        return energy(batch["x"], weight, batch["z"]).mean()
""",
        ),
        Example(
            "operands in half, the equation last in a list of letters",
            """\
import torch
from torch import einsum

def mix(a, b, c):
    return einsum("ij,jk,kl->il", [a.half(), b.half(), c.half()])  # <- AMP606@12
""",
        ),
    )
    VALID = (
        Example(
            "two operands",
            """\
import torch

def scores(q, k):
    with torch.autocast("cuda", dtype=torch.float16):
        return torch.einsum("bhid,bhjd->bhij", q, k)
""",
        ),
        Example(
            "in float32",
            """\
import torch

def energy(x, weight, z):
    with torch.autocast("cuda", enabled=False):
        return torch.einsum("bi,ij,bj->b", x.float(), weight.float(), z.float())
""",
        ),
        Example(
            "nothing in 16 bits",
            """\
import torch

def energy(x, weight, z):
    return torch.einsum("bi,ij,bj->b", x, weight, z)
""",
        ),
        Example(
            "on the outside of the region",
            """\
import torch

def energy(model, x, weight, z):
    with torch.autocast("cuda", dtype=torch.float16):
        y = model(x)
    return torch.einsum("bi,ij,bj->b", y.float(), weight, z)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return _OF_MANY.search(data) is not None

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls with many operands."""
        for call in source.calls(*_EINSUM):
            operands = _operands(call)
            if len(operands) < _MANY:
                continue
            if _is_half(source, operands) or _runs_in_autocast(source, call):
                message = (
                    f"einsum of {len(operands)} operands in 16 bits: the products in between are rounded, and overflow "
                    "in float16, by an order that torch chooses; split it, or compute it in float32"
                )
                yield source.finding(self, call, message)


def _operands(call: ast.Call) -> list[ast.expr]:
    """The tensors of an einsum; [] where they are not written one by one."""
    items = [item for item in call.args if not (isinstance(item, ast.Constant) and isinstance(item.value, str))]
    if len(items) == 1 and isinstance(items[0], ast.List | ast.Tuple):
        items = items[0].elts
    if any(isinstance(item, ast.Starred | ast.List) for item in items):
        return []
    return items if any(isinstance(item, ast.Constant) for item in call.args) else []


def _is_half(source: SourceFile, operands: list[ast.expr]) -> bool:
    """Whether every operand is cast to a 16-bit dtype."""
    return all(_cast_dtypes(source, leaf) <= _HALF for item in operands for leaf in source.values(item))


def _cast_dtypes(source: SourceFile, node: ast.expr) -> frozenset[str]:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return frozenset("?")
    if node.func.attr in ("half", "bfloat16", "float"):
        return frozenset({{"half": "float16", "float": "float32"}.get(node.func.attr, "bfloat16")})
    if node.func.attr in ("to", "type") and len(node.args) == 1:
        return source.dtypes(node.args[0]) or frozenset("?")
    return frozenset("?")


def _runs_in_autocast(source: SourceFile, call: ast.Call) -> bool:
    """Whether some way to the call goes through an autocast region to a 16-bit dtype that is on."""
    reaching = list(regions_reaching(source, call))
    if reaching == [None] and _is_forward(source, call):  # run by a model that somebody makes and calls
        reaching = [region for region in source.region_stacks.autocasts() if is_torch_autocast(source, region)]
    return any(region is not None and region.enabled is not False and region.dtypes <= _HALF for region in reaching)


def _is_forward(source: SourceFile, call: ast.Call) -> bool:
    function = source.function_of(call)
    return function is not None and function.name == "forward" and source.class_of(call) is not None

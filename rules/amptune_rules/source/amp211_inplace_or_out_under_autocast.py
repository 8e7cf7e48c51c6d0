"""AMP211: in-place and out= forms of ops that autocast does not cast in these forms."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.ops import OPS, Autocast
from amptune.core.rule import Example, SourceRule
from amptune.core.spellings import op_of_function, op_of_name
from amptune.lint.fold import UNKNOWN_DTYPE
from amptune.lint.source import SourceFile

_LISTED = (Autocast.LOWER, Autocast.FP32, Autocast.FP32_OUT)
_PRODUCTS = ("addmm_", "addmv_", "addr_", "addbmm_", "baddbmm_", "sspaddmm_")
_WIDE = ("exp_", "expm1_", "log_", "log2_", "log10_", "log1p_", "pow_", "rsqrt_", "reciprocal_", "sinh_", "tan_",
         "acos_", "asin_", "erfinv_", "cumsum_", "cumprod_")  # fmt: skip
_MAKERS = frozenset(
    {"arange", "zeros", "ones", "empty", "full", "rand", "randn", "linspace", "tensor", "eye", "zeros_like",
     "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
)  # fmt: skip
_TO_FLOAT = frozenset({"float", "double"})


class InplaceOrOutUnderAutocast(SourceRule):
    """An in-place or out= form of an op on autocast's lists is used inside a region.

    ## What it does
    Flags `torch.mm(a, b, out=c)` and the like, `c.addmm_(a, b)`, and in-place forms of the float32 list (`x.exp_()`,
    `x.pow_(2)`) inside an autocast region.

    ## Why is this bad
    Autocast casts for plain calls only. The in-place and `out=` forms run on the dtypes they get: half activations with
    float32 weights raise a dtype error, and `exp_` of a float16 activation overflows above 11.09, where `exp` runs in
    float32.

    ## Example
    ```python
    import torch
    with torch.autocast("cuda"):
        torch.mm(model(x), weight, out=result)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda"):
        result = torch.mm(model(x), weight)
    ```

    ## Fix safety
    No fix: other names may share the tensor that is written.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#autocast-op-reference
    """

    code = "AMP211"
    name = "inplace-or-out-under-autocast"
    severity = Severity.WARNING
    keywords = (b"autocast",)

    INVALID = (
        Example(
            "out=",
            """\
import torch

def scores(q, k, buffer):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        torch.bmm(q, k, out=buffer)  # <- AMP211@9
        torch.softmax(buffer, dim=-1, out=buffer)  # <- AMP211@9
    return buffer
""",
        ),
        Example(
            "in place",
            """\
import torch
from torch import nn

class Head(nn.Module):
    @torch.autocast("cuda")
    def forward(self, x, a, b):
        x.addmm_(a, b)  # <- AMP211@9
        return self.scale(x).exp_()  # <- AMP211@16
""",
        ),
    )
    VALID = (
        Example(
            "plain forms",
            """\
import torch

def scores(q, k, x):
    with torch.autocast("cuda"):
        return torch.bmm(q, k), x.addmm(q, k), x.exp()
""",
        ),
        Example(
            "ops on no list",
            """\
import torch

def scores(a, b, mask, buffer):
    with torch.autocast("cuda"):
        a.add_(b).mul_(2).masked_fill_(mask, 0.0)
        return torch.add(a, b, out=buffer)
""",
        ),
        Example(
            "outside, where it is off, and on float32",
            """\
import torch

def scores(a, b, c, x):
    c.addmm_(a, b)
    with torch.autocast("cuda"):
        frequencies = torch.arange(8, device="cuda").mul(-0.1).exp_()
        wide = x.float().exp_()
        with torch.autocast("cuda", enabled=False):
            return c.addmm_(a, b), frequencies, wide
""",
        ),
        Example(
            "other objects",
            """\
import torch

def scores(logger, numpy, a, b):
    with torch.autocast("cuda"):
        logger.log_("step")
        return numpy.matmul(a, b, out=a)
""",
        ),
        Example(
            "an optimizer's update, without gradients",
            """\
import torch

@torch.no_grad()
@torch.autocast("cuda")
def update(state, grad):
    state.addmm_(grad, grad)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls with out=, and in-place methods, inside a region."""
        for call in source.nodes(ast.Call):
            what = self._form(source, call)
            if what is None or not source.in_autocast(call) or source.no_grad(call):
                continue
            region = source.autocast(call)
            if region is not None and region.device == "cpu" and what[1] is not Autocast.LOWER:
                continue
            effect = "mixed dtypes raise" if what[1] is Autocast.LOWER else "half inputs stay half and may overflow"
            message = f"{what[0]} is not cast by autocast, so {effect}: use the plain form, {what[2]}"
            yield source.finding(self, call, message)

    def _form(self, source: SourceFile, call: ast.Call) -> tuple[str, Autocast, str] | None:
        """The form that is not cast: its words, the list of its op, and the plain form."""
        if any(keyword.arg == "out" for keyword in call.keywords):
            for name in source.qualified(call.func):
                policy = _policy(op_of_function(name))
                if policy in _LISTED:
                    return f"{name}(..., out=)", policy, f"{name}(...)"
            return None
        for name in source.qualified(call.func):
            policy = _policy(op_of_function(name)) if name.endswith("_") else None
            return (
                (name, policy, name[:-1])
                if policy in _LISTED and call.args and _is_activation(source, call.args[0])
                else None
            )
        func = call.func
        if not isinstance(func, ast.Attribute) or func.attr not in (*_PRODUCTS, *_WIDE):
            return None
        policy = _policy(op_of_name(func.attr[:-1])) or Autocast.LOWER
        if func.attr in _WIDE and (
            not _is_activation(source, func.value) or isinstance(source.parent(call), ast.Await)
        ):
            return None
        return f".{func.attr}()", policy, f".{func.attr[:-1]}()"


def _policy(op: str | None) -> Autocast | None:
    return OPS[op].cuda if op in OPS else None


def _is_activation(source: SourceFile, node: ast.expr) -> bool:
    """Whether the tensor may be half: no constructor and no cast to float32 is at its root."""
    for leaf in source.values(node):
        if isinstance(leaf, ast.Constant):
            return False
        current: ast.expr = leaf
        while isinstance(current, ast.Call) and isinstance(current.func, ast.Attribute):
            if current.func.attr in _TO_FLOAT or _is_float_maker(source, current):
                return False
            dtypes = (
                frozenset().union(*(source.dtypes(item) for item in current.args)) if current.func.attr == "to" else ()
            )
            if "float32" in dtypes:
                return False
            current = current.func.value
        if isinstance(current, ast.Name) and current is leaf and not _is_tensor(source, current):
            return False
    return True


def _is_float_maker(source: SourceFile, call: ast.Call) -> bool:
    names = source.qualified(call.func)
    made = any(name.startswith("torch.") and name.rpartition(".")[2] in _MAKERS for name in names)
    dtypes = source.dtypes(source.argument(call, "dtype"))
    return made and not dtypes & {"float16", "bfloat16", UNKNOWN_DTYPE}


def _is_tensor(source: SourceFile, name: ast.Name) -> bool:
    """Whether a bare name may be a tensor: ``logger.log_()`` and modules are none."""
    return not source.qualified(name) and "log" not in name.id

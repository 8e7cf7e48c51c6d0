"""AMP210: a region with autocast off works on half precision tensors that were made with autocast on."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.ops import Autocast
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import FUNCTIONS
from amptune.lint.source import SourceFile
from amptune_rules.source._models import (
    autocast_class,
    is_layer_call,
    is_loss_call,
    is_rework,
    last_word,
    makes_half,
)
from amptune_rules.source._reach import callee

_CASTS = frozenset({"float", "double", "type", "type_as", "to"})
# Methods that leave the dtype alone, so that what is done with their result counts.
_SHAPERS = frozenset(
    {"view", "reshape", "squeeze", "unsqueeze", "transpose", "permute", "contiguous", "detach", "flatten", "t", "clone",
     "expand", "repeat", "chunk", "mean", "requires_grad_", "cuda", "view_as", "reshape_as", "expand_as"}
)  # fmt: skip
_SCALES = frozenset({"scale", "temperature", "scaling", "softmax_scale", "norm_factor"})
_COMPUTING = (Autocast.LOWER, Autocast.FP32, Autocast.FP32_OUT)


class AutocastDisabledWithoutFloatCast(SourceRule):
    """A region with autocast off uses tensors from an autocast region without casting them to float32.

    ## What it does
    Flags tensors that a model or a matrix product made under autocast, and that go into a model, a loss, or an op of
    autocast's lists inside `autocast(enabled=False)` with no `.float()`. In a module's forward that has no region of
    its own but switches a caller's off, it is info.

    ## Why is this bad
    Switching autocast off stops casts, it does not undo them: the tensor stays float16 or bfloat16. With float32
    weights the next matrix product raises a dtype error; without weights the block computes in half precision, which is
    what it was written to prevent (exp of a float16 value above 11.09 is infinite).

    ## Example
    ```python
    import torch
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            loss = loss_fn(logits, y)
    ```

    ## Use instead
    ```python
    import torch
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            loss = loss_fn(logits.float(), y)
    ```

    ## Fix safety
    No fix: where the cast belongs, and whether float64 is wanted, is for a person to say.

    ## References
    - https://docs.pytorch.org/docs/stable/amp.html#torch.autocast
    """

    code = "AMP210"
    name = "autocast-disabled-without-float-cast"
    severity = Severity.WARNING
    keywords = (b"autocast",)
    requires = (b"autocast",)

    INVALID = (
        Example(
            "nested",
            """\
import torch

def loss_of(model, criterion, x, y):
    with torch.autocast("cuda", dtype=torch.float16):
        logits, features = model(x)
        with torch.autocast("cuda", enabled=False):
            return criterion(logits, y) + features.view(-1).softmax(-1).sum()  # <- AMP210@30, AMP210@43
""",
        ),
        Example(
            "one after the other",
            """\
import torch

class Head(torch.nn.Module):
    def forward(self, q, k):
        with torch.cuda.amp.autocast():  # <- AMP401
            scores = q @ k
        with torch.cuda.amp.autocast(enabled=False):  # <- AMP401
            return torch.softmax(scores[:, 0], dim=-1)  # <- AMP210@34
""",
        ),
        Example(
            "decorated function, exponent by hand",
            """\
import torch
import torch.nn.functional as F

@torch.autocast("cuda")
def weights(x, w, scale):
    scores = F.linear(x, w)
    with torch.autocast("cuda", enabled=False):
        scale = scale.float()
        return torch.exp(scores) / scale  # <- AMP210@26
""",
        ),
        Example(
            "the region is a caller's, at severity info",
            """\
import torch
from torch import nn

class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 8)

    def forward(self, x):
        scores = self.gate(x)
        with torch.autocast("cuda", enabled=False):
            return scores.softmax(-1)  # <- AMP210@20
""",
        ),
    )
    VALID = (
        Example(
            "cast where it is used",
            """\
import torch

def loss_of(model, criterion, x, y):
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            return criterion(logits.view(-1).float(), y) + logits.to(torch.float32).exp().sum()
""",
        ),
        Example(
            "cast first",
            """\
import torch

def loss_of(model, criterion, x, y):
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            logits = logits.float()
            return criterion(logits, y)
""",
        ),
        Example(
            "indices and shapes only",
            """\
import torch

def pick(model, x):
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            best = logits.argmax(-1)
            return best, torch.zeros(logits.shape, device=logits.device), logits > 0
""",
        ),
        Example(
            "the op computes in float32, or the helper casts",
            """\
import torch

def stable_loss(logits, y):
    return torch.nn.functional.cross_entropy(logits.float(), y)

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        logits = model(x)
        with torch.autocast("cuda", enabled=False):
            return stable_loss(logits, y) + torch.softmax(logits, -1, dtype=torch.float32).sum()
""",
        ),
        Example(
            "made without autocast",
            """\
import torch

def loss_of(model, criterion, x, y):
    logits = model(x)
    with torch.autocast("cuda", enabled=False):
        return criterion(logits, y)
""",
        ),
        Example(
            "made in float32 under autocast",
            """\
import torch

def loss_of(model, x, y):
    with torch.autocast("cuda"):
        p = torch.softmax(model(x), dim=-1)
        with torch.autocast("cuda", enabled=False):
            return torch.log(p)  # <- AMP304
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Regions that are off, and the names that are used in them."""
        for node in source.nodes(ast.With):
            regions = [source.region_stacks.as_region(item.context_expr) for item in node.items]
            if not any(region.kind == "autocast" and region.enabled is False for region in regions):
                continue
            seen: set[str] = set()
            for name in _names_in(node):
                region = source.autocast(name)
                if name.id in seen or region is None or region.enabled is not False:
                    continue
                made = _half_made(source, name, node)
                use = _raw_use(source, name) if made else None
                if made and use:
                    seen.add(name.id)
                    yield self._finding(source, name, made, use)

    def _finding(self, source: SourceFile, name: ast.Name, made: str, use: str) -> Finding:
        if made == "under autocast":
            message = f"{name.id} was made under autocast and is half precision in {use}: use {name.id}.float()"
            return source.finding(self, name, message)
        message = f"{name.id} is half precision in {use} when a caller has autocast on: use {name.id}.float()"
        return source.finding(self, name, message, severity=Severity.INFO)


def _names_in(node: ast.With) -> list[ast.Name]:
    """Names that are read in the body, in source order, nested functions left out."""
    found: list[ast.Name] = []
    stack: list[ast.AST] = list(node.body)
    while stack:
        item = stack.pop()
        if isinstance(item, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Load):
            found.append(item)
        stack.extend(ast.iter_child_nodes(item))
    return sorted(found, key=lambda name: (name.lineno, name.col_offset))


def _half_made(source: SourceFile, name: ast.Name, block: ast.With) -> str | None:
    """Where every binding of the name in this function is a half precision result: "under autocast", or "anywhere".

    "anywhere" is a module's forward without a region of its own, which switches autocast off for fear of a caller's.
    None when the name may hold something else, or is made or cast in the block before this use.
    """
    places: set[str] = set()
    for binding in source.bindings(name):
        value = binding.value
        if binding.kind not in ("assign", "unpack") or value is None:
            return None
        if source.function_of(value) is not source.function_of(name):
            return None
        if source.index.is_inside(value, block):
            if (value.end_lineno or 0) < source.statement_of(name).lineno:
                return None
        elif not _keeps_dtype(source, value, name.id):
            region = source.autocast(value)
            if (region is not None and region.enabled is False) or not makes_half(source, value):
                return None
            places.add("under autocast" if region is not None else "anywhere")
    if places == {"anywhere"}:
        function = source.function_of(name)
        return "anywhere" if function is not None and function.name == "forward" else None
    return places.pop() if len(places) == 1 else None


def _keeps_dtype(source: SourceFile, value: ast.expr, name: str) -> bool:
    """Whether the value is the named tensor reshaped, averaged, or scaled by a number."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult | ast.Div):
        left = isinstance(value.left, ast.Name) and value.left.id == name
        return left and (source.number(value.right) is not None or last_word(value.right) in _SCALES)
    if not is_rework(value, name):
        return False
    calls = [part for part in ast.walk(value) if isinstance(part, ast.Call)]
    return all(isinstance(call.func, ast.Attribute) and call.func.attr in _SHAPERS for call in calls)


def _raw_use(source: SourceFile, name: ast.Name) -> str | None:
    """The computation that gets the tensor as it is, as text; None when it is cast, or nothing is computed."""
    node: ast.expr = name
    while True:
        parent = source.parent(node)
        if isinstance(parent, ast.Subscript) and parent.value is node:
            node = parent
        elif isinstance(parent, ast.Attribute):
            call = source.parent(parent)
            if not isinstance(call, ast.Call) or call.func is not parent or parent.attr in _CASTS:
                return None
            if parent.attr not in _SHAPERS:
                return _computation(source, call)
            node = call
        elif isinstance(parent, ast.keyword):
            owner = source.parent(parent)
            return _computation(source, owner) if isinstance(owner, ast.Call) else None
        elif isinstance(parent, ast.Call) and parent.func is not node:
            return _computation(source, parent)
        elif isinstance(parent, ast.BinOp):
            if autocast_class(source, parent) is Autocast.LOWER:
                return source.segment(parent)
            other = parent.right if parent.left is node else parent.left
            if source.number(other) is None and last_word(other) not in _SCALES:
                return None
            node = parent  # scaled by a number, it keeps its dtype
        else:
            return None


def _computation(source: SourceFile, call: ast.Call) -> str | None:
    """The call as text, when it computes in the dtype of its arguments."""
    if source.argument(call, "dtype") is not None:
        return None
    own = callee(source, call)
    if own is not None and any(isinstance(item, ast.Attribute) and item.attr in _CASTS for item in ast.walk(own)):
        return None
    computes = autocast_class(source, call) in _COMPUTING or is_loss_call(source, call)
    return f"{source.segment(call.func)}(...)" if computes or is_layer_call(source, call) else None

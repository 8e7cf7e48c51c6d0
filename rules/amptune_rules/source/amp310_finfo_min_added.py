"""AMP310: two masks filled with the smallest number of a dtype are added."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._numbers import number_of
from amptune_rules.source._reach import callee, returned
from amptune_rules.source._reaching import reaching

_LOWEST = (-65504.0, -3.4028234663852886e38, -3.3895313892515355e38)
_SAME_VALUES = frozenset(
    {"to", "expand", "unsqueeze", "squeeze", "view", "reshape", "contiguous", "clone", "triu", "triu_", "tril",
     "repeat", "type_as", "half", "float", "cuda", "permute", "transpose", "masked_fill", "masked_fill_",
     "fill_diagonal_", "detach", "type", "expand_as", "repeat_interleave", "zero_", "index_select", "narrow", "flip",
     "mul_", "fill_"}
)  # fmt: skip
_FILLS = {"masked_fill": 1, "masked_fill_": 1, "fill_": 0, "mul_": 0}
_MAKERS = {"torch.full": 1, "torch.full_like": 1}
_DEPTH = 10


class FinfoMinAdded(SourceRule):
    """Two masks filled with torch.finfo(dtype).min are added.

    ## What it does
    Flags `a + b` and `a += b` where both sides hold the smallest number of a dtype at masked places: by `masked_fill`,
    `torch.full`, `torch.where` or `(1 - mask) * torch.finfo(dtype).min`, also through variables and functions of the
    same file, unless the sum is clamped.

    ## Why is this bad
    min + min is below the smallest number, so it is -inf, in float32 as well as in float16. A row that both masks
    hide everywhere, such as a padded query of an empty sequence, is -inf throughout, and its softmax NaN; one NaN row
    spoils the gradient of every weight. A causal mask leaves each position to itself, so that no row is hidden
    everywhere by it and another mask: there the finding is an info.

    ## Example
    ```python
    import torch
    queries = (1.0 - query_mask[:, :, None]) * torch.finfo(dtype).min
    keys = (1.0 - key_mask[:, None, :]) * torch.finfo(dtype).min
    weights = torch.softmax(scores + (queries + keys), dim=-1)
    ```

    ## Use instead
    ```python
    import torch
    allowed = query_mask[:, :, None].bool() & key_mask[:, None, :].bool()
    weights = torch.softmax(scores.masked_fill(~allowed, torch.finfo(dtype).min), dim=-1)
    ```

    ## Fix safety
    No fix: combine boolean masks and fill once, or clamp the sum to `torch.finfo(dtype).min`.

    ## References
    - https://github.com/huggingface/transformers/pull/17306
    """

    code = "AMP310"
    name = "finfo-min-added"
    severity = Severity.WARNING
    keywords = (b"finfo", b"65504", b"3.4028")
    requires = (b"torch",)

    INVALID = (
        Example(
            "causal and padding mask from helper functions",
            """\
import torch

def causal(n, dtype):
    mask = torch.full((n, n), torch.finfo(dtype).min)
    return mask.triu(1)[None, None].to(dtype)

def expand(mask, dtype):
    inverted = 1.0 - mask[:, None, None, :].to(dtype)
    return inverted.masked_fill(inverted.to(torch.bool), torch.finfo(dtype).min)

def combined(mask, x):
    both = None
    if x.shape[1] > 1:
        both = causal(x.shape[1], x.dtype)
    padding = expand(mask, x.dtype)
    return padding if both is None else padding + both  # <- AMP310@41
""",
        ),
        Example(
            "scores filled and then added to a mask",
            """\
import torch

def attend(scores, mask, padding):
    low = torch.finfo(scores.dtype).min
    bias = (1.0 - padding) * low
    scores = torch.where(mask, scores, low)
    scores += bias  # <- AMP310
    return scores.softmax(-1)
""",
        ),
    )
    VALID = (
        Example(
            "the attention keeps the scores above the minimum",
            """\
import torch

class Decoder:
    def mask(self, causal, padding, dtype):
        lowest = torch.finfo(dtype).min
        a = torch.zeros_like(causal, dtype=dtype).masked_fill(causal, lowest)
        b = torch.zeros_like(padding, dtype=dtype).masked_fill(padding, lowest)
        return a + b

    def attend(self, scores, mask):
        scores = torch.max(scores + mask, torch.tensor(torch.finfo(scores.dtype).min))
        return scores.softmax(-1, dtype=torch.float32)
""",
        ),
        Example(
            "clamped sum",
            """\
import torch

def combined(a, b, dtype):
    low = torch.finfo(dtype).min
    a = (1.0 - a) * low
    b = (1.0 - b) * low
    total = a + b
    total = torch.clamp(total, min=low)
    return total, torch.max(a + b, torch.tensor(low)), (a + b).clamp(min=low)
""",
        ),
        Example(
            "one mask added to scores",
            """\
import torch

def attend(scores, mask, position_bias):
    bias = (1.0 - mask) * torch.finfo(scores.dtype).min
    return (scores + bias + position_bias).softmax(-1)
""",
        ),
        Example(
            "boolean masks, -inf and moderate numbers",
            """\
import torch

def combined(a, b, scores):
    low = torch.finfo(scores.dtype).min / 2
    both = (1.0 - a) * low + (1.0 - b) * low
    return both + scores.masked_fill(a.bool() | b.bool(), torch.finfo(scores.dtype).min)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return b".min" in data or b"65504" in data or b"3.4028" in data

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Sums of two masks."""
        for node, left, right in _sums(source):
            if (
                _is_filled(source, left)
                and _is_filled(source, right)
                and not _is_clamped(source, node)
                and not _clamps_scores(source)
            ):
                is_causal = _is_causal(source, left) or _is_causal(source, right)
                effect = (
                    "a causal mask keeps its diagonal, so no row is hidden everywhere, until a third mask is added"
                    if is_causal
                    else "softmax of a row that both hide is NaN"
                )
                message = (
                    f"both sides hold finfo.min at masked places, and min + min is -inf: {effect}; "
                    "combine boolean masks, or clamp the sum to finfo.min"
                )
                yield source.finding(self, node, message, severity=Severity.INFO if is_causal else None)


def _sums(source: SourceFile) -> Iterator[tuple[ast.AST, ast.expr, ast.expr]]:
    for node in source.nodes(ast.BinOp):
        if isinstance(node.op, ast.Add) and number_of(source, node) is None:
            yield node, node.left, node.right
    for update in source.nodes(ast.AugAssign):
        if isinstance(update.op, ast.Add) and isinstance(update.target, ast.Name):
            yield update, update.target, update.value


def _is_filled(source: SourceFile, node: ast.expr, depth: int = 0) -> bool:
    """Whether the value may hold the smallest number of a dtype where it is masked."""
    if depth > _DEPTH:
        return False
    match node:
        case ast.Name():
            bindings = [item for item in reaching(source, node) if item.kind in ("assign", "update")]
            values = [item.value for item in bindings if item.kind == "assign" and item.value is not None]
            return any(_is_filled(source, value, depth + 1) for value in values)
        case ast.Subscript(value=value):
            return _is_filled(source, value, depth + 1)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_filled(source, body, depth + 1) or _is_filled(source, orelse, depth + 1)
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return any(_is_lowest(source, side) for side in (left, right)) and number_of(source, node) is None
        case ast.Call():
            return _is_filled_by_call(source, node, depth)
    return False


def _is_filled_by_call(source: SourceFile, call: ast.Call, depth: int) -> bool:
    names = source.qualified(call.func)
    for name in names:
        if name in _MAKERS:
            return _is_lowest(source, source.argument(call, "fill_value", _MAKERS[name]))
        if name == "torch.where":
            return any(_is_lowest(source, item) for item in call.args[1:3])
        if name in ("torch.masked_fill", "torch.triu", "torch.tril") and call.args:
            filled = name == "torch.masked_fill" and _is_lowest(source, source.argument(call, "value", 2))
            return filled or _is_filled(source, call.args[0], depth + 1)
    function = callee(source, call)
    if function is not None:
        return any(_is_filled(source, value, depth + 3) for value in returned(function))
    if names or not isinstance(call.func, ast.Attribute) or call.func.attr not in _SAME_VALUES:
        return False
    position = _FILLS.get(call.func.attr)
    if position is not None and _is_lowest(source, source.argument(call, "value", position)):
        return True
    return call.func.attr != "zero_" and _is_filled(source, call.func.value, depth + 1)


def _is_causal(source: SourceFile, node: ast.expr, depth: int = 0) -> bool:
    """Whether the mask hides later positions alone, and none from itself: by a name, or by ``triu(1)``."""
    match node:
        case _ if depth > _DEPTH:
            return False
        case ast.Name() | ast.Attribute() if "causal" in last_name(node).lower():
            return True
        case ast.Name():
            values = [item.value for item in reaching(source, node) if item.kind == "assign"]
            return any(_is_causal(source, value, depth + 1) for value in values if value is not None)
        case ast.Subscript(value=value):
            return _is_causal(source, value, depth + 1)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_causal(source, body, depth + 1) or _is_causal(source, orelse, depth + 1)
        case ast.Call(func=func):
            if "causal" in last_name(func).lower():
                return True
            of_torch = bool(source.qualified(func))
            if last_name(func) in ("triu", "triu_"):
                diagonal = number_of(source, source.argument(node, "diagonal", int(of_torch)))
                return diagonal is not None and diagonal >= 1
            inner = node.args[0] if of_torch and node.args else func.value if isinstance(func, ast.Attribute) else None
            function = callee(source, node)
            parts = returned(function) if function is not None else [inner] if inner is not None else []
            return any(_is_causal(source, part, depth + 1) for part in parts)
    return False


def _is_lowest(source: SourceFile, node: ast.expr | None) -> bool:
    """Whether the expression is ``torch.finfo(dtype).min``, or that number."""
    if node is None:
        return False
    if isinstance(node, ast.Call) and source.qualified(node.func) in (("torch.tensor",), ("float",)) and node.args:
        node = node.args[0]
    if number_of(source, node) in _LOWEST:
        return True
    return any(
        isinstance(leaf, ast.Attribute)
        and leaf.attr == "min"
        and isinstance(leaf.value, ast.Call)
        and source.qualified(leaf.value.func) == ("torch.finfo",)
        for leaf in source.values(node)
    )


def _is_clamped(source: SourceFile, node: ast.AST) -> bool:
    """Whether the sum, or the name it is given, goes into a clamp or maximum in the same function."""
    statement = source.statement_of(node)
    words = ("clamp", "clip", "maximum", "torch.max(", "nan_to_num", "isinf")
    if any(word in source.segment(statement) for word in words):
        return True
    target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
    if not isinstance(target, ast.Name):
        return False
    calls = source.method_calls("clamp", "clamp_", "clip", "maximum", "max", "nan_to_num", "clamp_min", "isinf")
    function = source.function_of(node)
    return any(source.function_of(call) is function and target.id in source.segment(call) for call in calls)


def _clamps_scores(source: SourceFile) -> bool:
    """Whether the file keeps sums above finfo.min where it adds the masks: ``torch.max(scores + mask, finfo.min)``."""
    calls = source.method_calls("clamp", "clamp_", "clamp_min", "maximum", "max")
    return any(_is_lowest(source, item) for call in calls for item in (*call.args, *(k.value for k in call.keywords)))

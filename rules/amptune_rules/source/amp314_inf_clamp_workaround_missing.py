"""AMP314: a T5-style residual stack runs in float16 without a clamp of what overflows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import HALF, makes_half
from amptune_rules.source._half_models import constructor, converted_to
from amptune_rules.source._half_risk import evidence_at, is_guarded, is_module_class
from amptune_rules.source._models import last_word

_T5 = re.compile(r"(?:^|[a-z_])U?M?T5(?!\d)(?!.*Tokenizer)|^U?MT5(?!.*Tokenizer)")
_STYLE = re.compile(r"T5|RMS_?Norm|rms_norm|rsqrt")
_FEED_FORWARD = re.compile(r"(?:\b|_)(?:ff|ffn|mlp|feed_?forward|dense_?relu_?dense|wo)\b", re.IGNORECASE)
_BOUNDED = re.compile(r"clamp|clip|isinf|isfinite|nan_to_num|\.float\(|float32")


class InfClampWorkaroundMissing(SourceRule):
    """A T5-style residual stack runs in float16 and nothing clamps its activations.

    ## What it does
    Flags, at severity info, a pre-norm residual block with an RMS norm and a feed-forward layer whose weights the file
    makes float16 and which does not clamp, and a T5 of transformers that is cast to float16 after it is loaded.

    ## Why is this bad
    Nothing normalises the residual stream of such a block: it grows with every layer, and T5's feed-forward output
    passes 65504, the largest float16. One inf makes every later layer, and the loss, NaN. `from_pretrained` keeps T5's
    `wo` layers in float32 for that reason; a later `.half()` casts them as well.

    ## Example
    ```python
    import torch
    from transformers import T5ForConditionalGeneration
    model = T5ForConditionalGeneration.from_pretrained("t5-large").half()
    ```

    ## Use instead
    ```python
    import torch
    from transformers import T5ForConditionalGeneration
    model = T5ForConditionalGeneration.from_pretrained("t5-large", dtype=torch.bfloat16)
    ```

    ## Fix safety
    No fix. bfloat16, float32 weights or a clamp to `torch.finfo(x.dtype).max - 1000` where the sum is inf are all good,
    and the choice depends on the hardware.

    ## References
    - https://github.com/huggingface/transformers/issues/9295
    - https://github.com/huggingface/transformers/pull/10956
    - https://github.com/huggingface/transformers/issues/19229
    """

    code = "AMP314"
    name = "inf-clamp-workaround-missing"
    severity = Severity.INFO
    keywords = (b"T5", b"rms_norm", b"rsqrt", b"RMSNorm", b"RMS_Norm")
    requires = (HALF,)

    INVALID = (
        Example(
            "T5 cast after loading",
            """\
from transformers import MT5ForConditionalGeneration, T5Model

def load(name, device):
    model = T5Model.from_pretrained(name)
    model.half()  # <- AMP314
    return model, MT5ForConditionalGeneration.from_pretrained(name).to(device).half()  # <- AMP314
""",
        ),
        Example(
            "own pre-norm block with an RMS norm in float16",
            """\
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))  # <- AMP314@16

block = Block(64).half()
""",
        ),
    )
    VALID = (
        Example(
            "clamped where it overflows",
            """\
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(width), nn.Linear(width, width)

    def forward(self, x):
        x = x + self.mlp(self.norm(x))
        if torch.isinf(x).any():
            x = torch.clamp(x, min=-64504, max=64504)
        return x

block = Block(64).half()
""",
        ),
        Example(
            "bfloat16, and float16 that the loader knows how to keep in range",
            """\
import torch
from transformers import T5Model

half = torch.half
a = T5Model.from_pretrained("t5-base", dtype=torch.float16)
b = T5Model.from_pretrained("t5-base").to(torch.bfloat16)
""",
        ),
        Example(
            "the block stays in float32",
            """\
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.mlp(self.norm(x))

block = Block(64)
image = nn.Conv2d(3, 8, 3).half()
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return makes_half(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """T5 models that are cast, and blocks of the file that run in float16."""
        for call in source.method_calls("half", "to"):
            if converted_to(source, call) == {"float16"} and not is_guarded(source, call) and _is_t5(source, call):
                yield source.finding(
                    self, call, "T5's activations pass 65504, and this also casts the layers kept in float32: "
                    "use bfloat16, or pass the dtype to from_pretrained",
                )  # fmt: skip
        for cls in source.nodes(ast.ClassDef):
            addition = _unclamped_residual(source, cls)
            if addition is not None:
                evidence = evidence_at(source, addition)
                if evidence.weights:
                    yield source.finding(
                        self, addition, f"the residual stream is float16 {evidence.why} and is never clamped: "
                        "clamp it where it is inf, keep it in float32, or use bfloat16",
                    )  # fmt: skip


def _is_t5(source: SourceFile, call: ast.Call) -> bool:
    """Whether what is cast comes from ``T5....from_pretrained``."""
    assert isinstance(call.func, ast.Attribute)
    for leaf in source.values(constructor(call.func.value)):
        made = constructor(leaf)
        if isinstance(made, ast.Call) and isinstance(made.func, ast.Attribute) and made.func.attr == "from_pretrained":
            return _T5.search(last_word(made.func.value)) is not None
    return False


def _unclamped_residual(source: SourceFile, cls: ast.ClassDef) -> ast.BinOp | None:
    """The last sum ``x + self.layer(...)`` in the forward of a T5-style block that bounds nothing."""
    forward = next((item for item in cls.body if isinstance(item, ast.FunctionDef) and item.name == "forward"), None)
    if forward is None or not is_module_class(source, cls):
        return None
    text = source.segment(cls)
    if not _STYLE.search(text) or not _FEED_FORWARD.search(text) or _BOUNDED.search(text):
        return None
    sums = [node for node in ast.walk(forward) if isinstance(node, ast.BinOp) and _is_residual(node)]
    return max(sums, key=lambda node: (node.lineno, node.col_offset), default=None)


def _is_residual(node: ast.BinOp) -> bool:
    """Whether the node is ``x + self.layer(...)``."""
    if not isinstance(node.op, ast.Add) or not isinstance(node.left, ast.Name) or not isinstance(node.right, ast.Call):
        return False
    func = node.right.func
    return isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "self"

"""AMP303: normalize or cosine_similarity of float16 values with an eps that is 0 there."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import makes_half
from amptune_rules.source._constants import FP16_TINY, number_or_default, shown
from amptune_rules.source._half_risk import Chance, Risk, evidence_at, half_risk, is_cast_up, is_guarded

_NORMALIZE = "torch.nn.functional.normalize"
_COSINE = ("torch.nn.functional.cosine_similarity", "torch.cosine_similarity")
_MODULE = "torch.nn.CosineSimilarity"
_DEFAULTS = {"normalize": 1e-12, "cosine_similarity": 1e-8}


class NormalizeDefaultEps(SourceRule):
    """F.normalize or cosine_similarity of float16 values with an eps that float16 rounds to 0.

    ## What it does
    Flags `F.normalize`, `F.cosine_similarity` and `nn.CosineSimilarity` with their default eps, or another one under
    3e-8, on values that are float16: of a model with float16 weights, after `.half()`, or under float16 autocast on the
    CPU. CUDA autocast computes all of them in float32, so they are fine there.

    ## Why is this bad
    The default eps is 1e-12 for normalize and 1e-8 for cosine_similarity; the smallest float16 is 6e-8. A zero
    vector, such as padding or a dead row, is then divided by 0 and becomes NaN. bfloat16 holds both numbers.

    ## Example
    ```python
    import torch.nn.functional as F
    features = F.normalize(encoder(images).half(), dim=-1)
    ```

    ## Use instead
    ```python
    import torch.nn.functional as F
    features = F.normalize(encoder(images).float(), dim=-1).half()
    ```

    ## Fix safety
    Unsafe: the norm is computed in float32, and the result rounded back; values change in the last bits.

    ## References
    - https://github.com/pytorch/pytorch/issues/32137
    - https://github.com/pytorch/pytorch/issues/151110
    """

    code = "AMP303"
    name = "normalize-default-eps"
    severity = Severity.WARNING
    keywords = (b".half(", b"torch.float16", b"torch.half", b"import float16", b"import half")
    requires = (b"torch", (b"normalize", b"osine"))

    INVALID = (
        Example(
            "half tensors",
            """\
import torch
import torch.nn.functional as F

cosine = torch.nn.CosineSimilarity(dim=1)

def similarity(a, b, images):
    a = a.half()
    b = b.to(torch.float16)
    x = F.normalize(a, dim=-1)  # <- AMP303@9
    y = F.cosine_similarity(a, b, dim=-1, eps=1e-9)  # <- AMP303@9
    return x + y + cosine(a, b)  # <- AMP303@20
""",
            fixed="""\
import torch
import torch.nn.functional as F

cosine = torch.nn.CosineSimilarity(dim=1)

def similarity(a, b, images):
    a = a.half()
    b = b.to(torch.float16)
    x = F.normalize(a.float(), dim=-1).to(a.dtype)
    y = F.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-9).to(a.dtype)
    return x + y + cosine(a.float(), b.float()).to(a.dtype)
""",
        ),
        Example(
            "a head in a model with float16 weights",
            """\
import torch.nn.functional as F
from torch import nn

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.normalize(self.fc(x), dim=1)  # <- AMP303

head = Head().cuda().half()
""",
        ),
        Example(
            "float16 autocast on the CPU",
            """\
import torch
from torch.nn.functional import normalize

def embed(x, w):
    with torch.autocast("cpu", dtype=torch.float16):
        y = x @ w
        return normalize(y)  # <- AMP303
""",
            fixed="""\
import torch
from torch.nn.functional import normalize

def embed(x, w):
    with torch.autocast("cpu", dtype=torch.float16):
        y = x @ w
        return normalize(y.float()).to(y.dtype)
""",
        ),
    )
    VALID = (
        Example(
            "CUDA autocast",
            """\
import torch
import torch.nn.functional as F

def embed(x, w):
    with torch.autocast("cuda", dtype=torch.float16):
        y = x @ w
        return F.normalize(y, dim=-1) + F.cosine_similarity(y.half(), y.half())
""",
        ),
        Example(
            "float32 and bfloat16",
            """\
import torch.nn.functional as F

def embed(x, model):
    return F.normalize(x), F.normalize(x.half().float()), F.normalize(x.bfloat16()), F.normalize(model(x), dim=1)
""",
        ),
        Example(
            "an eps that float16 holds",
            """\
import torch.nn.functional as F

def embed(x):
    return F.normalize(x.half(), dim=-1, eps=1e-6), F.cosine_similarity(x.half(), x.half(), 1, 1e-5)
""",
        ),
        Example(
            "other functions of that name",
            """\
from torchvision.transforms.functional import normalize

def prepare(image, mean, std):
    return normalize(image.half(), mean, std)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return makes_half(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of the functions and of CosineSimilarity objects, by the precision of their input."""
        if not any(word in source.text for word in ("normalize", "osine")):
            return
        for call, inputs, eps, name in _calls(source):
            if not 0 < eps <= FP16_TINY / 2 or is_guarded(source, call) or is_cast_up(source, call):
                continue
            risks = [risk for item in inputs if (risk := half_risk(source, item)) is not None]
            if len(risks) < len(inputs):
                continue  # one is float32, and so is the result
            risk = max(risks, key=lambda risk: risk.chance)
            if risk.chance is Chance.CERTAIN or _has_half_weights(source, call, risk):
                message = (
                    f"{name} of float16 values with eps {shown(eps)}, which is 0 in float16: a zero vector gives NaN; "
                    "compute it in float32, or use an eps of 1e-6"
                )
                yield source.finding(self, call, message, evidence={"eps": eps}, fix=_fix(source, call, inputs))


def _calls(source: SourceFile) -> Iterator[tuple[ast.Call, list[ast.expr], float, str]]:
    """Calls with the tensors they normalise, their eps, and their name."""
    for call in source.calls(_NORMALIZE):
        tensor = source.argument(call, "input", 0)
        if tensor is not None and not source.has_splat(call):
            yield call, [tensor], _eps(source, call, 3, "normalize"), "normalize"
    for call in source.calls(*_COSINE):
        tensors = [source.argument(call, "x1", 0), source.argument(call, "x2", 1)]
        found = [item for item in tensors if item is not None]
        if found and not source.has_splat(call):
            yield call, found, _eps(source, call, 3, "cosine_similarity"), "cosine_similarity"
    made = source.calls(_MODULE)
    for call in source.nodes(ast.Call) if made else ():
        for leaf in source.values(call.func) if call.args else ():
            if isinstance(leaf, ast.Call) and leaf in made:
                yield call, call.args[:2], _eps(source, leaf, 1, "cosine_similarity"), "CosineSimilarity"


def _eps(source: SourceFile, call: ast.Call, position: int, name: str) -> float:
    """The eps of a call; 1.0, which is never too small, when it cannot be told."""
    written = source.argument(call, "eps", position)
    if written is None:
        return _DEFAULTS[name]
    value = number_or_default(source, written)
    return 1.0 if value is None else value


def _has_half_weights(source: SourceFile, call: ast.Call, risk: Risk) -> bool:
    return risk.chance is Chance.LIKELY and evidence_at(source, call).weights


def _fix(source: SourceFile, call: ast.Call, inputs: list[ast.expr]) -> Fix | None:
    if not all(isinstance(item, ast.Name | ast.Attribute) for item in inputs):
        return None
    casts = [edits.wrap(source, item, "", ".float()") for item in inputs]
    span = source.span(call)
    back = edits.insert(span.end_line, span.end_column, f".to({source.segment(inputs[0])}.dtype)")
    return Fix("compute it in float32", (*casts, back), Safety.UNSAFE)

"""AMP312: positions or rotary angles are computed in float16 or bfloat16."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.code_only import code_only
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import has_module, makes_sixteen_bits
from amptune_rules.source._facts import Fact
from amptune_rules.source._half_risk import Chance, half_risk, is_cast_up, is_guarded, is_network_code
from amptune_rules.source._models import last_word
from amptune_rules.source._numbers import number_of
from amptune_rules.source._precision import precision, precision_of_dtype
from amptune_rules.source._reach import callers
from amptune_rules.source._ways import autocast_ways

_EXACT_UP_TO = {Fact.HALF: 2048, Fact.BF16: 256}
_NAMES = {Fact.HALF: "float16", Fact.BF16: "bfloat16"}
_FREQUENCY = re.compile(r"inv_?freq|(?:^|_)freqs?(?:_|$)|(?:^|_)theta|rope|rotary|angles?$", re.IGNORECASE)
_ACTIVATION = re.compile(
    r"^(?:x|h|q|k|v|query|key|value|hidden|hidden_states?|inputs?|inputs_embeds|embeds?|embeddings?|feats?|features?)$"
)
_DTYPE = re.compile(rb"\.dtype\b")
_FREQUENCY_PARTS = (b"freq", b"theta", b"rope", b"rotary", b"angle")
# A tensor of which one of the two patterns above holds, before its dtype is taken.
_OF_ACTIVATION = re.compile(
    rb"\b(?:x|h|q|k|v|query|key|value|hidden\w*|inputs?|inputs_embeds|embeds?|embeddings?|feats?|features?"
    rb"|(?i:\w*(?:freq|theta|rope|rotary|angle)\w*))[^=\n]{0,60}\Z"
)
_ENDS = ("half", "bfloat16", "to", "type", "type_as")
_PRODUCTS = ("torch.einsum", "torch.matmul", "torch.bmm", "torch.mm")
# A range whose dtype is written and is neither an integer's nor float32.
_TYPED_RANGE = re.compile(
    rb"arange\((?<!np\.arange\()(?<!numpy\.arange\()(?:[^()]|\((?:[^()]|\([^()]*\))*\)){0,400}?"
    rb"(?:dtype\s*=\s*(?!(?:torch|np|numpy)\.(?:u?int|long|float32|float64|float\b|bool)|int\b|bool\b)"
    rb"|\)\s*\.(?:to|type_as|type|half|bfloat16)\()"
)


class PositionsInLowPrecision(SourceRule):
    """Positions or rotary angles are computed in 16 bits.

    ## What it does
    Flags `torch.arange` in float16 or bfloat16 unless it ends by 2048 or 256; `dtype=x.dtype` of activations, or of a
    buffer of rotary frequencies, as info; products of rotary frequencies with positions by `@` or `einsum` under
    autocast; and `cos` and `sin` of frequencies in 16 bits.

    ## Why is this bad
    bfloat16 has 8 bits: 257 becomes 256, and from 1024 on only every eighth position exists. float16 skips every second
    one from 2048 on. Tokens then share their position, and the angle position * frequency is off by whole turns. The
    damage grows with the length of the sequence and shows in no unit test. Autocast casts `einsum` and `@` down, also
    for float32 inputs.

    ## Example
    ```python
    import torch
    def angles(inv_freq, length):
        t = torch.arange(length, dtype=torch.bfloat16)
        return t[:, None] * inv_freq[None, :]
    ```

    ## Use instead
    ```python
    import torch
    def angles(inv_freq, length):
        t = torch.arange(length, dtype=torch.float32)
        return t[:, None] * inv_freq.float()[None, :]
    ```

    ## Fix safety
    Unsafe: the positions become float32, and so does what is made of them; cast the cos and sin to the activations'
    dtype at the end. Products under autocast have no fix: wrap them in `torch.autocast(device_type, enabled=False)`.

    ## References
    - https://github.com/huggingface/transformers/pull/29285
    - https://github.com/NVIDIA/Megatron-LM/issues/535
    - https://github.com/huggingface/diffusers/issues/13922
    """

    code = "AMP312"
    name = "positions-in-low-precision"
    severity = Severity.WARNING
    keywords = (b"arange(", b"inv_freq")
    requires = (b"torch", b"dtype")

    INVALID = (
        Example(
            "positions in 16 bits",
            """\
import torch

def positions(length, x, dtype=None):
    a = torch.arange(length, dtype=torch.bfloat16)  # <- AMP312@9
    b = torch.arange(0, 4096, device=x.device, dtype=torch.half)  # <- AMP312@9
    y = x.half()
    c = torch.arange(length).to(y.dtype)  # <- AMP312@9
    return a, b, c, torch.arange(length).half()  # <- AMP312@21
""",
            fixed="""\
import torch

def positions(length, x, dtype=None):
    a = torch.arange(length, dtype=torch.float32)
    b = torch.arange(0, 4096, device=x.device, dtype=torch.float32)
    y = x.half()
    c = torch.arange(length).to(torch.float32)
    return a, b, c, torch.arange(length).float()
""",
        ),
        Example(
            "rotary frequencies under autocast",
            """\
import torch
from torch import nn

class Rotary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        inv_freq = 1.0 / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        self.register_buffer("inv_freq", inv_freq)

    def forward(self, length):
        t = torch.arange(length, device=self.inv_freq.device, dtype=self.inv_freq.dtype)  # <- AMP312
        freqs = torch.einsum("i,j->ij", t, self.inv_freq)  # <- AMP312@17
        return freqs.cos(), freqs.sin()

rotary = Rotary(64)

def step(x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return rotary(x.shape[1])
""",
            fixed="""\
import torch
from torch import nn

class Rotary(nn.Module):
    def __init__(self, dim):
        super().__init__()
        inv_freq = 1.0 / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        self.register_buffer("inv_freq", inv_freq)

    def forward(self, length):
        t = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        freqs = torch.einsum("i,j->ij", t, self.inv_freq)  # <- AMP312@17
        return freqs.cos(), freqs.sin()

rotary = Rotary(64)

def step(x):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return rotary(x.shape[1])
""",
        ),
        Example(
            "frequencies cast before the cosine",
            """\
import torch

def cache(inv_freq, length, x):
    t = torch.arange(length, dtype=torch.float32)
    freqs = torch.outer(t, inv_freq).to(torch.bfloat16)
    return freqs.cos(), torch.sin(freqs)  # <- AMP312@12, AMP312@25
""",
        ),
    )
    VALID = (
        Example(
            "float32 angles, cast at the end",
            """\
import torch

def cache(inv_freq, length, x):
    t = torch.arange(length, device=x.device, dtype=torch.float32)
    freqs = torch.outer(t, inv_freq.float())
    with torch.autocast("cuda", enabled=False):
        freqs = inv_freq.float()[:, None] @ t[None, :]
    return freqs.cos().to(x.dtype), freqs.sin().to(x.dtype)
""",
        ),
        Example(
            "integers",
            """\
import torch

def mask(lengths, labels):
    lengths = lengths.long()
    steps = torch.arange(4096, dtype=lengths.dtype)
    return steps[None, :] < lengths[:, None], torch.arange(9, dtype=torch.int64), torch.arange(9).to(labels.device)
""",
        ),
        Example(
            "short ranges",
            """\
import torch

def grid(x):
    return torch.arange(128, dtype=torch.bfloat16), torch.arange(0, 2048, 2, dtype=torch.float16)
""",
        ),
        Example(
            "other products under autocast",
            """\
import torch

def attend(q, k, inv_freq):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        t = torch.arange(q.shape[1], device=q.device)
        return torch.einsum("bid,bjd->bij", q, k), torch.outer(t, inv_freq), q.dtype
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        code = code_only(data)
        is_typed = _TYPED_RANGE.search(code) is not None
        if makes_sixteen_bits(data):
            return is_typed or any(word in data.lower() for word in _FREQUENCY_PARTS)
        return is_typed and has_module(data) and (b".type_as(" in code or _takes_dtype_of_activation(code))

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Ranges, products and angles."""
        for call in source.calls("torch.arange"):
            yield from self._range(source, call)
        if not _FREQUENCY.search(source.text):
            return
        for product in source.calls(*_PRODUCTS):
            yield from self._product(source, product, product.args)
        for operator in source.nodes(ast.BinOp):
            if isinstance(operator.op, ast.MatMult):
                yield from self._product(source, operator, [operator.left, operator.right])
        for call in source.method_calls("cos", "sin"):
            yield from self._angle(source, call)

    def _range(self, source: SourceFile, call: ast.Call) -> Iterator[Finding]:
        outer, place = _dtype_of(source, call)
        if place is None or is_guarded(source, call) or _is_in_init(source, call):
            return
        of_tensor = isinstance(outer, ast.Call) and _last(outer) == "type_as"
        fact = precision(source, place) if of_tensor else precision_of_dtype(source, place)
        if _last(outer) in _NAMES.values() or _last(outer) == "half":
            fact = Fact.HALF if _last(outer) == "half" else Fact.BF16
        end = number_of(source, source.argument(call, "end", 1 if len(call.args) > 1 else 0))
        if fact in _EXACT_UP_TO:
            if end is None or end > _EXACT_UP_TO[fact]:
                what = f"positions in {_NAMES[fact]} are exact up to {_EXACT_UP_TO[fact]} only"
                yield self._finding(source, outer, what, Severity.WARNING, _fix(source, outer, place))
            return
        tensor = place if of_tensor else place.value if isinstance(place, ast.Attribute) else None
        severity = _severity(source, call, tensor) if fact not in (Fact.WIDE, Fact.EXACT, Fact.SCALAR) else None
        if severity is not None and tensor is not None and (end is None or end > 256):
            what = f"positions take the dtype of {source.segment(tensor)}, and bfloat16 counts to 256 only"
            yield self._finding(source, outer, what, severity, _fix(source, outer, place))

    def _product(self, source: SourceFile, node: ast.expr, operands: list[ast.expr]) -> Iterator[Finding]:
        """``einsum("i,j->ij", t, inv_freq)`` under autocast, which casts both sides down."""
        if not any(_is_frequency(item) for item in operands) or is_guarded(source, node):
            return
        regions = [region for region in autocast_ways(source, node) if region is not None]
        if any(region.enabled is not False and region.dtypes & {"float16", "bfloat16"} for region in regions):
            what = "autocast computes this product of positions and frequencies in 16 bits, also for float32 inputs"
            yield self._finding(source, node, what, Severity.WARNING)

    def _angle(self, source: SourceFile, call: ast.Call) -> Iterator[Finding]:
        assert isinstance(call.func, ast.Attribute)
        value = call.args[0] if source.qualified(call.func) and call.args else call.func.value
        fact = precision(source, value) if _is_frequency(value) else Fact.UNKNOWN
        if fact in _NAMES and not is_guarded(source, call) and not is_cast_up(source, call):
            what = f"angles in {_NAMES[fact]} are off by whole turns at large positions"
            yield self._finding(source, call, what, Severity.WARNING)

    def _finding(
        self, source: SourceFile, node: ast.AST, what: str, severity: Severity, fix: Fix | None = None
    ) -> Finding:
        message = f"{what}: compute positions and angles in float32 with autocast off"
        return source.finding(self, node, message, severity=severity, fix=fix)


def _takes_dtype_of_activation(code: bytes) -> bool:
    places = (found.start() for found in _DTYPE.finditer(code))
    return any(_OF_ACTIVATION.search(code, max(0, place - 80), place) is not None for place in places)


def _dtype_of(source: SourceFile, call: ast.Call) -> tuple[ast.Call, ast.expr | None]:
    """The call that gives the range its dtype, and the expression of the dtype: ``arange(...).to(x.dtype)``."""
    written = source.argument(call, "dtype")
    if written is not None:
        return call, written
    attribute = source.parent(call)
    outer = source.parent(attribute) if isinstance(attribute, ast.Attribute) else None
    if not isinstance(outer, ast.Call) or not isinstance(attribute, ast.Attribute) or attribute.attr not in _ENDS:
        return call, None
    if attribute.attr in ("half", "bfloat16"):
        return outer, outer.func
    places = [*outer.args, *(keyword.value for keyword in outer.keywords)]
    named = [item for item in places if precision_of_dtype(source, item) is not Fact.UNKNOWN]
    named += [item for item in places if isinstance(item, ast.Attribute) and item.attr == "dtype"]
    if attribute.attr == "type_as":
        named = places
    return outer, next(iter(named), None)


def _last(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _severity(source: SourceFile, call: ast.Call, tensor: ast.expr | None) -> Severity | None:
    """How sure it is that the tensor whose dtype is taken has 16 bits."""
    if tensor is None or not is_network_code(source, call):
        return None
    if _is_frequency(tensor):
        return Severity.INFO
    if not _ACTIVATION.search(last_word(tensor)) or precision(source, tensor) is Fact.PROMOTED:
        return None
    risk = half_risk(source, tensor)
    if risk is None:
        return None
    return Severity.INFO if risk.chance is Chance.POSSIBLE else Severity.WARNING


def _is_frequency(node: ast.expr) -> bool:
    """Whether a name of the expression says that it holds rotary frequencies."""
    names = {last_word(item) for item in ast.walk(node) if isinstance(item, ast.Name | ast.Attribute)}
    return any(_FREQUENCY.search(name) for name in names)


def _is_in_init(source: SourceFile, node: ast.AST) -> bool:
    """Whether the code runs when a module is made, where buffers are still float32: in ``__init__`` or from it alone.

    A dtype that is written there counts all the same.
    """
    function = source.function_of(node)
    if function is None or not is_network_code(source, node):
        return False
    if isinstance(node, ast.Call) and source.dtypes(source.argument(node, "dtype")) & {"float16", "bfloat16"}:
        return False
    if function.name in ("__init__", "reset_parameters", "_init_weights"):
        return True
    outer = [source.function_of(call) for call in callers(source, function)]
    return bool(outer) and all(item is not None and item.name == "__init__" for item in outer)


def _fix(source: SourceFile, outer: ast.Call, place: ast.expr) -> Fix:
    if place is outer.func:
        assert isinstance(outer.func, ast.Attribute)
        text = f"{source.segment(outer.func.value)}.float"
        return Fix("make the positions float32", (edits.replace(source, outer.func, text),), Safety.UNSAFE)
    if _last(outer) == "type_as":
        assert isinstance(outer.func, ast.Attribute)
        text = f"{source.segment(outer.func.value)}.float()"
        return Fix("make the positions float32", (edits.replace(source, outer, text),), Safety.UNSAFE)
    change = edits.replace(source, place, "torch.float32")
    return Fix("make the positions float32", (change,), Safety.UNSAFE, ("import torch",))

"""AMP601: a vocabulary whose size is no multiple of 8."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.code_only import code_only
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import SIXTEEN_BITS, mentions_sixteen_bits
from amptune_rules.source._mixed import ALIGNED, next_multiple

_SMALLEST = 1000  # below it a last dimension is one of classes, not of words
_PADDED = 64
_NAMES = frozenset({"vocab_size", "n_vocab", "num_tokens", "vocabulary_size", "padded_vocab_size"})
_SIXTEEN_BITS = re.compile(r"autocast|bfloat16|float16|fp16|bf16|mixed_precision")
# The size is another's then, or made up for: a checkpoint's, or padded by what compiles the model.
_FIXED = re.compile(rb"from_pretrained|load_state_dict|torch\.compile|pretrained|checkpoint|pad_vocab|multiple_of")
_SIZE = re.compile(rb"\d{4}|\d_\d{3}")


class MisalignedVocab(SourceRule):
    """The literal size of a vocabulary is no multiple of 8.

    ## What it does
    Flags `vocab_size=50257` and the like, as an argument, a field of a class or a default, and the output size of a
    `Linear` onto a vocabulary, where the number is 1000 or more and no multiple of 8, in a file that speaks of 16-bit
    precision. Silent where a checkpoint fixes the size, where the file compiles the model, and in the file of a
    library's configuration class, which does not speak of precision.

    ## Why is this bad
    The product with the output matrix is often the largest of a small language model. Tensor Core kernels want rows
    that start at multiples of 16 bytes, which is 8 elements of 16 bits; with 50257 columns cuBLAS takes slower kernels.

    ## Example
    ```python
    import torch
    from torch import nn
    head = nn.Linear(768, 50257, bias=False)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = head(x)
    ```

    ## Use instead
    ```python
    import torch
    from torch import nn
    head = nn.Linear(768, 50304, bias=False)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logits = head(x)
    ```

    ## Fix safety
    No fix: the tokenizer, stored weights and the loss may rely on the number.

    ## References
    - https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
    """

    code = "AMP601"
    name = "misaligned-vocab"
    severity = Severity.INFO
    keywords = (b"vocab", b"num_tokens", b"Linear")
    requires = (b"torch", SIXTEEN_BITS)

    INVALID = (
        Example(
            "field and default of a model that is trained from scratch",
            """\
import dataclasses
import torch

@dataclasses.dataclass
class Config:
    vocab_size: int = 50257  # <- AMP601
    dtype: torch.dtype = torch.bfloat16

def make(build, n_vocab=30522):  # <- AMP601
    return build(n_vocab)
""",
        ),
        Example(
            "argument and head",
            """\
import torch
from torch import nn

VOCAB_SIZE = 50257

def step(Model, x):
    model = Model(vocab_size=VOCAB_SIZE)  # <- AMP601
    head = nn.Linear(768, VOCAB_SIZE)  # <- AMP601
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return head(model(x))
""",
        ),
    )
    VALID = (
        Example(
            "multiples of 8, or classes",
            """\
import torch
from torch import nn

def step(Model, x):
    model = Model(vocab_size=50304)
    head = nn.Linear(768, 10)
    letters = Model(vocab_size=97)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return head(letters(model(x)))
""",
        ),
        Example(
            "fixed by a checkpoint",
            """\
import torch

def step(Model, x, path):
    model = Model(vocab_size=50257)
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
        Example(
            "no sign of 16 bits, or not known",
            """\
import torch

class Config:
    vocab_size: int = 50257
""",
        ),
        Example(
            "size known at run time",
            """\
import torch

def make(Model, tokenizer, x):
    model = Model(vocab_size=len(tokenizer))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return model(x)
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return mentions_sixteen_bits(data) and not _FIXED.search(data) and _SIZE.search(code_only(data)) is not None

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Literal sizes in arguments, fields, defaults and output layers."""
        if not _SIXTEEN_BITS.search(source.text):
            return
        for value in _sizes(source):
            number = source.number(value)
            if number is None or number < _SMALLEST or not number.is_integer() or int(number) % ALIGNED == 0:
                continue
            size = int(number)
            message = (
                f"a vocabulary of {size} is no multiple of {ALIGNED}, which slows the output layer in 16 bits: "
                f"pad it to {next_multiple(size, _PADDED)}"
            )
            yield source.finding(self, value, message, evidence={"size": size, "padded": next_multiple(size, _PADDED)})


def _sizes(source: SourceFile) -> Iterator[ast.expr]:
    """Expressions that say how large a vocabulary is."""
    for call in source.nodes(ast.Call):
        yield from (keyword.value for keyword in call.keywords if keyword.arg in _NAMES)
    for field in source.nodes(ast.AnnAssign):
        is_field = isinstance(source.parent(field), ast.ClassDef) and isinstance(field.target, ast.Name)
        if is_field and isinstance(field.target, ast.Name) and field.target.id in _NAMES and field.value is not None:
            yield field.value
    for function in source.nodes(ast.FunctionDef):
        yield from _defaults(function)
    for call in source.calls("torch.nn.Linear"):
        size = source.argument(call, "out_features", 1)
        if size is not None and _is_vocabulary(source, size):
            yield size


def _defaults(function: ast.FunctionDef) -> Iterator[ast.expr]:
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults = function.args.defaults
    pairs = list(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    pairs += [(a, d) for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if d is not None]
    yield from (default for argument, default in pairs if argument.arg in _NAMES)


def _is_vocabulary(source: SourceFile, size: ast.expr) -> bool:
    """Whether an output size is that of a vocabulary: by its name, or because it is larger than sets of classes."""
    number = source.number(size)
    return number is not None and ("vocab" in source.segment(size).lower() or number >= 25_000)

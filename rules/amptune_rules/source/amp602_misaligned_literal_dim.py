"""AMP602: layer sizes that are no multiples of 8, in 16-bit code."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._bytes import TRAINS, may_train_in_16_bits
from amptune_rules.source._mixed import ALIGNED, next_multiple, trains_in_16_bits

_SMALLEST = 64  # channels of images and numbers of classes are below it, and cost little
_LARGEST = 25_000  # a vocabulary from here on: AMP601
_LAYERS: dict[str, tuple[tuple[str, int], ...]] = {
    "Linear": (("in_features", 0), ("out_features", 1)),
    "Conv1d": (("in_channels", 0), ("out_channels", 1)),
    "Conv2d": (("in_channels", 0), ("out_channels", 1)),
    "Conv3d": (("in_channels", 0), ("out_channels", 1)),
    "MultiheadAttention": (("embed_dim", 0),),
    "TransformerEncoderLayer": (("d_model", 0), ("dim_feedforward", 2)),
    "TransformerDecoderLayer": (("d_model", 0), ("dim_feedforward", 2)),
}
_NAMES = tuple(f"torch.nn.{name}" for name in _LAYERS)


class MisalignedLiteralDim(SourceRule):
    """Literal sizes of layers are no multiples of 8, in a file that switches 16-bit precision on.

    ## What it does
    Looks at the sizes of `Linear`, `Conv`, `MultiheadAttention` and transformer layers that are numbers in the file,
    from 64 up, in a file that runs models in 16 bits. One finding a class or function, at the first such size, says how
    many there are. Input channels of images and heads with few classes are not counted.

    ## Why is this bad
    Tensor Core kernels want rows that start at multiples of 16 bytes, which is 8 elements of 16 bits. With other sizes
    cuBLAS and cuDNN choose slower kernels, or pad at each call.

    ## Example
    ```python
    import torch
    from torch import nn
    layer = nn.Linear(768, 1001)
    with torch.autocast("cuda", dtype=torch.float16):
        y = layer(x)
    ```

    ## Use instead
    ```python
    import torch
    from torch import nn
    layer = nn.Linear(768, 1008)
    with torch.autocast("cuda", dtype=torch.float16):
        y = layer(x)
    ```

    ## Fix safety
    No fix: other layers, data and stored weights have the same size.

    ## References
    - https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
    - https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional/index.html
    """

    code = "AMP602"
    name = "misaligned-literal-dim"
    severity = Severity.INFO
    keywords = TRAINS
    requires = (b"torch", (b"Linear", b"Conv", b"MultiheadAttention", b"Transformer"))

    INVALID = (
        Example(
            "one finding a class",
            """\
import torch
from torch import nn

HIDDEN = 300

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(128, HIDDEN)  # <- AMP602
        self.second = nn.Linear(HIDDEN, 10)

    def forward(self, x):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return self.second(self.first(x))
""",
        ),
        Example(
            "convolution and attention",
            """\
import torch
import torch.nn as nn

def build():
    return nn.Sequential(nn.Conv2d(3, 100, 3), nn.MultiheadAttention(embed_dim=100, num_heads=4))  # <- AMP602

def run(x):
    with torch.autocast("cuda"):
        return build()(x)
""",
        ),
    )
    VALID = (
        Example(
            "images, few classes, multiples of 8",
            """\
import torch
from torch import nn

def run(x):
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64, 10))
    with torch.autocast("cuda", dtype=torch.float16):
        return net(x)
""",
        ),
        Example(
            "float32",
            """\
import torch
from torch import nn

def run(x):
    return nn.Linear(300, 100)(x)
""",
        ),
        Example(
            "sizes known at run time, or autocast off",
            """\
import torch
from torch import nn

def run(x, width):
    net = nn.Sequential(nn.Linear(width, 2 * width))
    with torch.autocast("cuda", enabled=False):
        return nn.Linear(300, 100)(net(x))
""",
        ),
    )

    def may_concern(self, data: bytes) -> bool:
        """See the base class."""
        return may_train_in_16_bits(data)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Literal sizes, collected by class or function."""
        groups: dict[ast.AST | None, list[tuple[ast.expr, int]]] = {}
        for call in source.calls(*_NAMES):
            owner = source.class_of(call) or source.function_of(call)
            groups.setdefault(owner, []).extend(_misaligned(source, call))
        if not any(groups.values()) or not trains_in_16_bits(source):
            return
        for found in groups.values():
            if found:
                yield self._report(source, found)

    def _report(self, source: SourceFile, found: list[tuple[ast.expr, int]]) -> Finding:
        sizes = sorted({size for _, size in found})
        advice = ", ".join(f"{size} -> {next_multiple(size)}" for size in sizes)
        message = f"layer sizes that are no multiple of {ALIGNED} are slower on Tensor Cores: {advice}"
        return source.finding(self, found[0][0], message, evidence={"sizes": sizes, "count": len(found)})


def _misaligned(source: SourceFile, call: ast.Call) -> list[tuple[ast.expr, int]]:
    """The sizes of a layer that are known and no multiple of 8."""
    found = []
    for name in source.qualified(call.func):
        for argument, position in _LAYERS.get(name.rpartition(".")[2], ()):
            node = source.argument(call, argument, position)
            number = source.number(node)
            if node is None or number is None or not _SMALLEST <= number < _LARGEST or not number.is_integer():
                continue
            if int(number) % ALIGNED:
                found.append((node, int(number)))
    return found

"""AMP605: FP8 is switched on whatever the GPU is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.fold import UNKNOWN
from amptune.lint.source import SourceFile
from amptune_rules.source._identifiers import identifiers, strings

_CONVERT = (
    "torchao.float8.convert_to_float8_training",
    "torchao.float8.float8_linear_utils.convert_to_float8_training",
)
_AUTOCAST = ("transformer_engine.pytorch.fp8_autocast", "transformer_engine.pytorch.autocast",
             "transformer_engine.pytorch.fp8.fp8_autocast",
             "transformer_engine.pytorch.quantization.autocast")  # fmt: skip
_MATMUL = ("torch._scaled_mm", "torch.nn.functional.scaled_mm")
_ACCELERATORS = ("accelerate.Accelerator", "accelerate.accelerator.Accelerator")
# Names by which programs ask what the GPU can do.
_CHECK = re.compile(
    r"capability|is_sm_?\d|sm_?(?:89|9\d|100)|(?:support|availab|has|can|check)\w*(?:fp8|float8)|"
    r"(?:fp8|float8)\w*(?:support|availab|capable)|device_properties|get_device_name|arch_list",
    re.IGNORECASE,
)
_GPU = re.compile(r"\b(?:sm_?(?:89|9\d|10\d)|H100|H200|B200|Hopper|Ada Lovelace|Blackwell)\b", re.IGNORECASE)
_MAX_TEXT = 400


class Fp8WithoutCapabilityCheck(SourceRule):
    """FP8 matmuls are switched on without asking whether the GPU has them.

    ## What it does
    Flags torchao's `convert_to_float8_training`, TransformerEngine's FP8 autocast, `torch._scaled_mm` and
    `Accelerator(mixed_precision="fp8")` in files that never ask for the compute capability, or anything called like a
    test for FP8. Info where an option switches it on, and in modules that others call; a function around the matmul is
    left alone there.

    ## Why is this bad
    FP8 tensor cores begin with compute capability 8.9 (Ada; 9.0 is Hopper). On an A100 (8.0) the matmul raises
    `torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9`, often after the model
    has been loaded and sharded.

    ## Example
    ```python
    import torch
    from torchao.float8 import convert_to_float8_training
    model = convert_to_float8_training(model)
    ```

    ## Use instead
    ```python
    import torch
    from torchao.float8 import convert_to_float8_training
    if torch.cuda.get_device_capability() >= (8, 9):
        model = convert_to_float8_training(model)
    ```

    ## Fix safety
    No fix: what to do on other GPUs (bfloat16, or `Float8LinearConfig(emulate=True)` to test) is the program's choice.

    ## References
    - https://docs.nvidia.com/deeplearning/transformer-engine/user-guide/
    - https://github.com/pytorch-labs/float8_experimental/issues/236
    """

    code = "AMP605"
    name = "fp8-without-capability-check"
    severity = Severity.WARNING
    keywords = (b"convert_to_float8_training", b"fp8_autocast", b"transformer_engine", b"scaled_mm", b'"fp8"', b"'fp8'")

    INVALID = (
        Example(
            "torchao",
            """\
import torch
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

def prepare(model):
    config = Float8LinearConfig.from_recipe_name("rowwise")
    convert_to_float8_training(model, config=config)  # <- AMP605@5
    return torch.compile(model)
""",
        ),
        Example(
            "TransformerEngine, always and by an option",
            """\
import transformer_engine.pytorch as te
from transformer_engine.common import recipe

def loss_of(model, x, args):
    with te.fp8_autocast(enabled=True, fp8_recipe=recipe.DelayedScaling()):  # <- AMP605@10
        y = model(x)
    with te.fp8_autocast(enabled=args.fp8):  # <- AMP605@10
        return model(y)
""",
        ),
        Example(
            "the matmul itself, and Accelerate",
            """\
import torch
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="fp8")  # <- AMP605@15

def matmul(a, b, scale):
    return torch._scaled_mm(a, b.t(), scale_a=scale, scale_b=scale)  # <- AMP605@12
""",
        ),
    )
    VALID = (
        Example(
            "asked first",
            """\
import torch
from torchao.float8 import convert_to_float8_training

def prepare(model):
    if torch.cuda.get_device_capability() >= (8, 9):
        convert_to_float8_training(model)
    return model
""",
        ),
        Example(
            "asked by TransformerEngine",
            """\
import transformer_engine.pytorch as te
from transformer_engine.pytorch.fp8 import check_fp8_support

FP8, _ = check_fp8_support()

def loss_of(model, x):
    with te.fp8_autocast(enabled=FP8):
        return model(x)
""",
        ),
        Example(
            "emulated, and switched off",
            """\
import transformer_engine.pytorch as te
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

def prepare(model):
    return convert_to_float8_training(model, config=Float8LinearConfig(emulate=True))

def exact(layer, x):
    with te.fp8_autocast(enabled=False):
        return layer(x)
""",
        ),
        Example(
            "float8 only as storage",
            """\
import torch

def pack(x):
    return x.to(torch.float8_e4m3fn)  # not scaled_mm
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls that compute in FP8."""
        calls = [
            (call, severity) for call in source.nodes(ast.Call) if (severity := _severity(source, call)) is not None
        ]
        if not calls or _asks_gpu(source):
            return
        program = _is_program(source, [call for call, _ in calls])
        for call, severity in calls:
            if not program and any(name in _MATMUL for name in source.qualified(call.func)):
                continue  # a kernel's wrapper: whoever calls it has asked
            message = (
                "FP8 without a test of the GPU: it needs compute capability 8.9 (Ada) or 9.0 (Hopper), "
                "ask torch.cuda.get_device_capability() >= (8, 9) first"
            )
            yield source.finding(self, call, message, severity=severity if program else Severity.INFO)


def _is_program(source: SourceFile, calls: list[ast.Call]) -> bool:
    """Whether the file runs a training itself, so that nobody else can have asked before."""
    if any(source.function_of(call) is None for call in calls) or source.method_calls("backward"):
        return True
    names = [name for name in source.nodes(ast.Name) if name.id == "__name__"]
    return any(isinstance(source.parent(name), ast.Compare) for name in names)


def _severity(source: SourceFile, call: ast.Call) -> Severity | None:
    """How certain it is that the call computes in FP8; None when it does not."""
    names = source.qualified(call.func)
    if any(name in _MATMUL for name in names):
        return Severity.WARNING
    if any(name in _CONVERT for name in names):
        return None if _is_emulated(source, call) else Severity.WARNING
    if any(name in _AUTOCAST for name in names):
        return _switch(source, source.argument(call, "enabled", 0))
    if any(name in _ACCELERATORS for name in names):
        precision = source.argument(call, "mixed_precision", 2)
        return Severity.WARNING if source.constant(precision) == "fp8" else None
    return None


def _switch(source: SourceFile, enabled: ast.expr | None) -> Severity | None:
    if enabled is None:
        return Severity.WARNING
    value = source.constant(enabled)
    return Severity.INFO if value is UNKNOWN else Severity.WARNING if value else None


def _is_emulated(source: SourceFile, call: ast.Call) -> bool:
    config = source.argument(call, "config")
    made = [leaf for leaf in source.values(config) if isinstance(leaf, ast.Call)] if config is not None else []
    return any(source.constant(source.argument(leaf, "emulate")) not in (False, UNKNOWN) for leaf in made)


def _asks_gpu(source: SourceFile) -> bool:
    """Whether the file speaks of what the GPU can do: in a name, or of a GPU in a string."""
    own = {"fp8_autocast", "convert_to_float8_training"}
    if any(word not in own and _CHECK.search(word) for word in identifiers(source)):
        return True
    return any(len(text) <= _MAX_TEXT and _GPU.search(text) for text in strings(source))

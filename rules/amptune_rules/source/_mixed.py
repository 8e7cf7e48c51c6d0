"""Whether a file runs or trains models in 16 bits, for rules about speed; and sizes that Tensor Cores like."""

from __future__ import annotations

import ast

from amptune.lint.source import SourceFile
from amptune_rules.source._models import is_torch_autocast
from amptune_rules.source._trainers import training_arguments

ALIGNED = 8
"""Elements: 16 bytes of a 16-bit format, the unit in which Tensor Core kernels load a row."""
_PRECISIONS = ("fp16", "bf16", "16-mixed", "bf16-mixed", "16-true", "bf16-true")
_SWITCHED = ("accelerate.Accelerator", "accelerate.accelerator.Accelerator")
_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")


def next_multiple(size: int, unit: int = ALIGNED) -> int:
    """The least multiple of ``unit`` that is not below ``size``."""
    return -(-size // unit) * unit


def trains_in_16_bits(source: SourceFile) -> bool:
    """Whether the file itself switches mixed precision on for certain: autocast, Trainer, accelerate or Lightning."""
    return _has_autocast(source) or _has_arguments(source) or _has_framework(source)


def _has_autocast(source: SourceFile) -> bool:
    regions = source.region_stacks.autocasts()
    return any(
        region.enabled is not False and is_torch_autocast(source, region) and not source.no_grad(region.call)
        for region in regions
    )


def _has_arguments(source: SourceFile) -> bool:
    calls = training_arguments(source)
    return any(source.constant(source.argument(call, name)) is True for call in calls for name in ("fp16", "bf16"))


def _has_framework(source: SourceFile) -> bool:
    chosen = [source.argument(call, "mixed_precision") for call in source.calls(*_SWITCHED)]
    for call in source.nodes(ast.Call):
        if any(keyword.arg == "precision" for keyword in call.keywords):
            names = source.qualified(call.func)
            if any(name.partition(".")[0] in _LIGHTNING for name in names):
                chosen.append(source.argument(call, "precision"))
    return any(
        source.constant(value) in _PRECISIONS for value in chosen if value is not None and _is_text(source, value)
    )


def _is_text(source: SourceFile, value: ast.expr) -> bool:
    return isinstance(source.constant(value), str)

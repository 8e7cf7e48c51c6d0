"""The two ways to set TF32: the flag allow_tf32, and fp32_precision since torch 2.9."""

from __future__ import annotations

import ast
from collections.abc import Collection

from amptune.lint.source import SourceFile

LEGACY = {"torch.backends.cuda.matmul.allow_tf32": "matmul", "torch.backends.cudnn.allow_tf32": "cudnn"}
"""Flag -> the backend it belongs to."""

NEW = {
    "torch.backends.fp32_precision": ("matmul", "cudnn"),
    "torch.backends.cuda.matmul.fp32_precision": ("matmul",),
    "torch.backends.cudnn.fp32_precision": ("cudnn",),
    "torch.backends.cudnn.conv.fp32_precision": ("cudnn",),
    "torch.backends.cudnn.rnn.fp32_precision": ("cudnn",),
}
"""Setting -> the backends whose flag it can disagree with."""


def legacy_flags(source: SourceFile) -> list[ast.Attribute]:
    """Reads and writes of a legacy flag, in source order."""
    return _attributes(source, "allow_tf32", LEGACY)


def new_settings(source: SourceFile) -> list[ast.Attribute]:
    """Writes of a new setting, in source order."""
    found = _attributes(source, "fp32_precision", NEW)
    return [node for node in found if isinstance(node.ctx, ast.Store)]


def written_value(source: SourceFile, target: ast.Attribute) -> ast.expr | None:
    """What a plain assignment to this attribute alone writes."""
    parent = source.parent(target)
    return parent.value if isinstance(parent, ast.Assign) and parent.targets == [target] else None


def backends_of(source: SourceFile, node: ast.Attribute) -> tuple[str, ...]:
    """The backends that a flag or setting is about."""
    for name in source.qualified(node):
        if name in LEGACY:
            return (LEGACY[name],)
        if name in NEW:
            return NEW[name]
    return ()


def _attributes(source: SourceFile, attr: str, names: Collection[str]) -> list[ast.Attribute]:
    return [
        node
        for node in source.nodes(ast.Attribute)
        if node.attr == attr and any(name in names for name in source.qualified(node))
    ]

"""Calls of compiled extensions and kernels, whose tensors autocast does not cast."""

from __future__ import annotations

import ast
import re

from amptune.lint.index import FunctionNode
from amptune.lint.source import SourceFile

_NATIVE = re.compile(r"(?:^|[._])(?:_?C|cuda|ext|cuda_?ext|cpp|_?kernels?|backend)$|_(?:cuda|ext|cpp|lib)\d*$|^_?cuda_")
_LOADERS = ("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load_inline")
_TORCH_OPS = ("torch.ops.aten", "torch.ops.prims", "torch.ops.profiler", "torch.ops.load")
_TENSOR_SHAPERS = frozenset({"contiguous", "detach", "clone", "view", "reshape", "t", "transpose", "permute"})


def native_call(source: SourceFile, forward: FunctionNode) -> ast.Call | None:
    """A call of a compiled extension, or a kernel launch, that gets at least two of forward's tensors."""
    parameters = {item.arg for item in (*forward.args.posonlyargs, *forward.args.args)[1:]}
    for node in ast.walk(forward):
        if not isinstance(node, ast.Call) or len(_tensors(node, parameters)) < 2:
            continue
        if _is_native(source, node.func):
            return node
    return None


def _is_triton(source: SourceFile, func: ast.Subscript) -> bool:
    """Whether what is launched is a function of this file with ``triton.jit`` on it."""
    function = source.definition(func.value)
    decorators = function.decorator_list if function is not None else []
    names = [name for item in decorators for part in ast.walk(item) for name in source.qualified(part)]
    return any(name.startswith("triton.") for name in names)


def _tensors(call: ast.Call, parameters: set[str]) -> set[str]:
    """Parameters that the call gets, straight or through contiguous() and the like."""
    found: set[str] = set()
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        node = argument
        while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TENSOR_SHAPERS:
            node = node.func.value
        if isinstance(node, ast.Name) and node.id in parameters:
            found.add(node.id)
    return found


def _is_native(source: SourceFile, func: ast.expr) -> bool:
    if isinstance(func, ast.Subscript):  # kernel[grid](...)
        return isinstance(func.value, ast.Name) and ("kernel" in func.value.id.lower() or _is_triton(source, func))
    names = source.qualified(func)
    if any(name.startswith("torch.ops.") and not name.startswith(_TORCH_OPS) for name in names):
        return True
    if any(not name.startswith("torch.") and _NATIVE.search(name.rpartition(".")[0]) for name in names):
        return True
    base = func.value if isinstance(func, ast.Attribute) else None
    made = source.values(base) if base is not None else []
    makers = {name for leaf in made if isinstance(leaf, ast.Call) for name in source.qualified(leaf.func)}
    return not makers.isdisjoint(_LOADERS)

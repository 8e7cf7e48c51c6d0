"""Custom autograd functions and the decorators that make them work under autocast."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Literal

from amptune.lint.index import FUNCTIONS, FunctionNode, last_name
from amptune.lint.source import SourceFile

Role = Literal["forward", "backward"]

_FUNCTION_CLASSES = frozenset(
    {"torch.autograd.Function", "torch.autograd.function.Function", "torch.autograd.function.InplaceFunction",
     "torch.autograd.function.NestedIOFunction"}
)  # fmt: skip
_MODULES = ("torch.amp", "torch.cuda.amp", "torch.npu.amp", "torch_npu.npu.amp")
_ROLES: dict[str, Role] = {"custom_fwd": "forward", "custom_bwd": "backward"}
_PRODUCTS = frozenset({"mm", "matmul", "bmm", "addmm", "baddbmm", "linear", "einsum", "conv1d", "conv2d", "conv3d"})
CASTS = frozenset({"float", "half", "bfloat16", "double", "type", "type_as", "dtype", "is_autocast_enabled",
                    "get_autocast_dtype", "get_autocast_gpu_dtype", "autocast", "float32", "float16"})  # fmt: skip
"""Attributes that show that code knows about dtypes."""

_LIKE = re.compile(r"(?:custom|amp|autocast)_?(?:custom_?)?(?:(fwd|forward)|(?:bwd|backward))", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class AmpDecorator:
    """A ``custom_fwd`` or ``custom_bwd`` on a function.

    ``node`` is the whole decorator, ``qualified`` the decorator's name in torch, "" for a look-alike of the project's
    own (``autocast_custom_fwd``), whose working is not known.
    """

    node: ast.expr
    role: Role
    qualified: str = ""

    @property
    def func(self) -> ast.expr:
        """The decorator without its call."""
        return self.node.func if isinstance(self.node, ast.Call) else self.node

    def casts_inputs(self) -> bool:
        """Whether ``cast_inputs`` is given, so that forward runs with autocast off."""
        keywords = self.node.keywords if isinstance(self.node, ast.Call) else []
        given = [keyword.value for keyword in keywords if keyword.arg == "cast_inputs"]
        return any(not isinstance(value, ast.Constant) or value.value is not None for value in given)


def bases(source: SourceFile, cls: ast.ClassDef, depth: int = 4) -> set[str]:
    """Qualified names of all bases, through classes of this file; "?" for one that cannot be told."""
    found: set[str] = set()
    local = source.names.bases(cls)
    for base in cls.bases:
        names = source.qualified(base.value if isinstance(base, ast.Subscript) else base)
        is_local = isinstance(base, ast.Name) and any(item.name == base.id for item in local)
        found.update(names or (() if is_local else ("?",)))
    for item in local if depth else ():
        found |= bases(source, item, depth - 1)
    return found


def is_autograd_function(source: SourceFile, cls: ast.ClassDef) -> bool:
    """Whether the class is a ``torch.autograd.Function``."""
    return bool(cls.bases) and not _FUNCTION_CLASSES.isdisjoint(bases(source, cls))


def autograd_functions(source: SourceFile) -> list[ast.ClassDef]:
    """The custom autograd functions of the file."""
    return [cls for cls in source.nodes(ast.ClassDef) if is_autograd_function(source, cls)]


def method(cls: ast.ClassDef, name: str) -> FunctionNode | None:
    """The method that the class body defines under this name."""
    return next((item for item in cls.body if isinstance(item, FUNCTIONS) and item.name == name), None)


def amp_decorator(source: SourceFile, function: FunctionNode) -> AmpDecorator | None:
    """The ``custom_fwd`` or ``custom_bwd`` of a function, also through an alias or ``functools.partial``."""
    for node in function.decorator_list:
        func = node.func if isinstance(node, ast.Call) else node
        for name in _names(source, func):
            module, _, last = name.rpartition(".")
            if module in _MODULES and last in _ROLES:
                return AmpDecorator(node, _ROLES[last], name)
        found = _LIKE.search(last_name(func))
        if found:
            return AmpDecorator(node, "forward" if found.group(1) else "backward")
    return None


def _names(source: SourceFile, func: ast.expr) -> list[str]:
    names = list(source.qualified(func))
    for leaf in source.values(func):
        if isinstance(leaf, ast.Call) and leaf.args and "functools.partial" in source.qualified(leaf.func):
            names += source.qualified(leaf.args[0])
    return names


def hands_on_ctx(function: FunctionNode) -> bool:
    """Whether the method gives its ``ctx`` to another function's forward or backward, which may be decorated."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return False
    return any(
        isinstance(node, ast.Call)
        and any(isinstance(arg, ast.Name) and arg.id == arguments[0].arg for arg in node.args)
        for node in ast.walk(function)
    )


def minds_dtypes(function: FunctionNode) -> bool:
    """Whether the body casts, asks for a dtype, or handles autocast."""
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and node.attr in CASTS:
            return True
        if isinstance(node, ast.Name) and ("dtype" in node.id or node.id == "autocast"):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "to":
            return True
    return any("cast" in ast.unparse(item) for item in function.decorator_list)


def multiplies_inputs(forward: FunctionNode) -> bool:
    """Whether forward multiplies two of its inputs, which are what it saves and what backward multiplies again."""
    parameters = {item.arg for item in (*forward.args.posonlyargs, *forward.args.args)[1:]}
    for node in ast.walk(forward):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            operands = [node.left, node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PRODUCTS:
            operands = [node.func.value, *node.args]
        else:
            continue
        names = {item.id for operand in operands for item in ast.walk(operand) if isinstance(item, ast.Name)}
        if len(names & parameters) > 1:
            return True
    return False


def multiplies(function: FunctionNode) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PRODUCTS:
            return True
    return False

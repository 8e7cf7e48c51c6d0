"""Models whose weights a file makes float16."""

from __future__ import annotations

import ast

from amptune.lint.source import SourceFile

# Methods of a module that return the module itself.
_SAME = frozenset(
    {"cuda", "cpu", "to", "eval", "train", "half", "float", "bfloat16", "double", "requires_grad_", "apply"}
)
_DTYPE_ARGUMENTS = ("dtype", "torch_dtype")
_LOADERS = frozenset({"from_pretrained", "from_config", "pipeline", "from_single_file"})


def half_conversion(source: SourceFile, node: ast.expr) -> ast.Call | None:
    """The call that makes the object float16, in a chain such as ``Net().half().cuda()``; None when none does.

    The last conversion of the chain counts.
    """
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        dtypes = converted_to(source, node)
        if dtypes:
            return node if dtypes == {"float16"} else None
        if node.func.attr not in _SAME:
            return None
        node = node.func.value
    return None


def converted_to(source: SourceFile, call: ast.Call) -> frozenset[str]:
    """The dtypes that ``x.half()``, ``x.to(torch.float16)`` or ``X.from_pretrained(torch_dtype=...)`` give."""
    if not isinstance(call.func, ast.Attribute):
        return frozenset()
    name = call.func.attr
    if name in ("half", "float", "bfloat16", "double") and not call.args:
        return frozenset({{"half": "float16", "float": "float32", "double": "float64"}.get(name, name)})
    if name in _LOADERS:
        found = [source.dtypes(source.argument(call, argument)) for argument in _DTYPE_ARGUMENTS]
    elif name in ("to", "type"):
        found = [source.dtypes(item) for item in (*call.args, *(keyword.value for keyword in call.keywords))]
    else:
        return frozenset()
    return next((dtypes for dtypes in found if dtypes and "?" not in dtypes), frozenset())


def constructor(node: ast.expr) -> ast.expr:
    """The start of a chain of module methods: ``Net()`` of ``Net().half().cuda()``."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SAME:
        node = node.func.value
    return node


def made_half(source: SourceFile, node: ast.expr) -> ast.Call | None:
    """The call that makes a called object (a model) float16: where it is bound, or in a statement of its own."""
    if half_conversion(source, node) is not None:
        return half_conversion(source, node)
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    bindings = source.bindings(node)
    for binding in bindings:
        if binding.kind == "assign" and binding.value is not None:
            found = half_conversion(source, binding.value)
            if found is not None:
                return found
    text = source.segment(node)
    for receiver, call in source.shared(_statements):
        if receiver == text and isinstance(call.func, ast.Attribute) and source.bindings(call.func.value) == bindings:
            return call
    return None


def half_classes(source: SourceFile) -> dict[ast.ClassDef, ast.Call]:
    """Module classes of the file of which an object is made float16, by the call that does it."""
    found: dict[ast.ClassDef, ast.Call] = {}
    for call in source.method_calls("half", "to"):
        if converted_to(source, call) != {"float16"} or not isinstance(call.func, ast.Attribute):
            continue
        for leaf in source.values(constructor(call.func.value)):
            made = constructor(leaf)
            maker = made.func if isinstance(made, ast.Call) else None
            for binding in source.bindings(maker) if isinstance(maker, ast.Name) else ():
                if isinstance(binding.node, ast.ClassDef):
                    found.setdefault(binding.node, call)
    return found


def _statements(source: SourceFile) -> list[tuple[str, ast.Call]]:
    """``model.half()`` as a statement: the text of the model, and the call."""
    return [
        (source.segment(constructor(call.func.value)), call)
        for call in source.method_calls("half", "to")
        if isinstance(call.func, ast.Attribute)
        and isinstance(source.parent(call), ast.Expr)
        and converted_to(source, call) == {"float16"}
    ]

"""Formulae in source: which op an expression is, through names, and whether its value is bounded."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.source import SourceFile
from amptune_rules.source._numbers import number_of
from amptune_rules.source._reach import callee, returned
from amptune_rules.source._reaching import reaching

_PREFIXES = ("torch", "torch.nn.functional", "torch.special", "torch.Tensor", "tensorflow", "tensorflow.math",
             "tensorflow.nn", "jax.numpy", "jax.nn")  # fmt: skip
# Spelling -> the name it is asked for by.
_SAME = {"expit": "sigmoid", "reduce_sum": "sum", "exp_": "exp", "log_": "log", "sigmoid_": "sigmoid"}
_MODULES = {
    "Softmax": "softmax", "Softmax2d": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax",
    "LogSigmoid": "logsigmoid", "Softplus": "softplus", "Tanh": "tanh", "Hardsigmoid": "hardsigmoid",
}  # fmt: skip
_METHODS = frozenset(
    {"log", "exp", "softmax", "log_softmax", "sigmoid", "sum", "log1p", "abs", "tanh", "clamp", "clip", "log2", "log10"}
)
_SHAPES = frozenset(
    {"gather", "squeeze", "unsqueeze", "view", "reshape", "transpose", "permute", "index_select", "contiguous",
     "flatten", "float", "to", "clone", "detach", "t", "expand", "repeat", "masked_select", "double", "cuda", "cpu",
     "type_as"}
)  # fmt: skip
_READING = frozenset({"detach", "numpy", "tolist", "item"})
_BOUNDED = frozenset(
    {"tanh", "sigmoid", "clamp", "clip", "clamp_max", "cos", "sin", "softmax", "log_softmax", "logsigmoid", "normalize",
     "cosine_similarity", "hardtanh", "relu6", "hardsigmoid", "minimum", "softsign", "erf", "cdist_"}
)  # fmt: skip
_DEPTH = 12


def op_name(source: SourceFile, node: ast.expr) -> str:
    """The op that a call runs, as ``log`` for ``torch.log(x)`` and ``x.log()``; also for module objects. "" if none."""
    if not isinstance(node, ast.Call):
        return ""
    names = source.qualified(node.func)
    for name in names:
        module, _, last = name.rpartition(".")
        if module in _PREFIXES:
            return _SAME.get(last, last)
    if names:
        return ""
    if isinstance(node.func, ast.Attribute) and callee(source, node) is None:
        last = _SAME.get(node.func.attr, node.func.attr)
        if last in _METHODS and not (last in ("log", "exp", "sigmoid", "abs", "tanh", "log1p") and node.args):
            return last
    return _module_op(source, node.func)


def operand(source: SourceFile, node: ast.Call) -> ast.expr | None:
    """What the op works on: the first argument of a function or module, the receiver of a method."""
    func = node.func
    is_method = isinstance(func, ast.Attribute) and not source.qualified(func) and not _module_op(source, func)
    if is_method and isinstance(func, ast.Attribute):
        return func.value
    first = source.argument(node, "input", 0)
    return first if first is not None else source.argument(node, "logits")


def op_operand(source: SourceFile, node: ast.expr, op: str) -> ast.expr | None:
    """The operand, if the expression is a call of this op."""
    return operand(source, node) if isinstance(node, ast.Call) and op_name(source, node) == op else None


def _module_op(source: SourceFile, func: ast.expr) -> str:
    """The op of a called ``nn.Softmax`` object, or of ``nn.Sequential(..., nn.Softmax())``."""
    found: set[str] = set()
    for leaf in source.values(func) if isinstance(func, ast.Name | ast.Attribute | ast.Call) else ():
        while isinstance(leaf, ast.Call) and source.qualified(leaf.func) == ("torch.nn.Sequential",) and leaf.args:
            leaf = leaf.args[-1]
        names = source.qualified(leaf.func) if isinstance(leaf, ast.Call) else ()
        found |= {_MODULES.get(name.removeprefix("torch.nn."), "") for name in names} or {""}
    return found.pop() if len(found) == 1 else ""


def resolved(source: SourceFile, node: ast.expr, depth: int = 0) -> ast.expr:
    """What the name stands for at this place, if that is one expression; the node itself otherwise."""
    if depth > _DEPTH:
        return node
    if isinstance(node, ast.Name):
        bindings = reaching(source, node)
        if len(bindings) == 1 and bindings[0].kind == "assign" and bindings[0].value is not None:
            return resolved(source, bindings[0].value, depth + 1)
    return node


def origin(source: SourceFile, node: ast.expr, depth: int = 0) -> ast.expr:
    """As ``resolved``, and through indexing, changes of shape or dtype, and functions or modules of the file."""
    node = resolved(source, node)
    if depth > _DEPTH:
        return node
    if isinstance(node, ast.Subscript):
        return origin(source, node.value, depth + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SHAPES:
        inner = operand(source, node)
        return origin(source, inner, depth + 1) if inner is not None else node
    if isinstance(node, ast.Call) and not op_name(source, node):
        function = callee(source, node)
        values = returned(function) if function is not None else []
        if len(values) == 1:
            return origin(source, values[0], depth + 4)
    return node


def is_inference(source: SourceFile, call: ast.Call) -> bool:
    """Whether no gradient flows through the call: under no_grad, or detached, or read out as numbers.

    The forward of an autograd function runs without gradients too, but is part of a training.
    """
    cls = source.class_of(call)
    if cls is not None and any(name.endswith("autograd.Function") for b in cls.bases for name in source.qualified(b)):
        return False
    return source.no_grad(call) or _is_read_out(source, call)


def _is_read_out(source: SourceFile, call: ast.Call) -> bool:
    """Whether a chain of methods on the value ends its graph: ``.view(-1).cpu().numpy()``, ``.item()``."""
    node: ast.AST = call
    while isinstance(method := source.parent(node), ast.Attribute):
        following = source.parent(method)
        if method.attr in _READING:
            return True
        if method.attr not in _SHAPES or not isinstance(following, ast.Call):
            return False
        node = following
    return False


def is_bounded_above(source: SourceFile, node: ast.expr, depth: int = 0) -> bool:
    """Whether the value is bounded above by what can be seen: tanh, clamp, -abs, -square, minus a maximum."""
    if isinstance(node, ast.Name):
        bindings = reaching(source, node)
        values = [binding.value for binding in bindings if binding.kind == "assign" and binding.value is not None]
        if _is_lowered_in_place(source, node):
            return True
        if len(values) > 1 and len(values) == len(bindings) and depth < _DEPTH:
            return all(is_bounded_above(source, value, depth + 4) for value in values)
    node = origin(source, node)
    if depth > _DEPTH:
        return False
    match node:
        case ast.Call():
            name = op_name(source, node) or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
            return name in _BOUNDED and (name not in ("clamp", "clip") or _has_max(source, node))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return is_bounded_below(source, inner)
        case ast.BinOp(op=ast.Sub(), right=right):
            return is_bounded_above(source, node.left, depth + 1) or _is_maximum(source, right)
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            sides = [(node.left, node.right), (node.right, node.left)]
            sides = sides[:1] if isinstance(node.op, ast.Div) else sides
            return any(_scaled_is_bounded(source, side, factor, depth) for side, factor in sides)
        case ast.BinOp(op=ast.Add()):
            return all(
                number_of(source, side) is not None or is_bounded_above(source, side, depth + 1)
                for side in (node.left, node.right)
            )
    return False


def is_bounded_below(source: SourceFile, node: ast.expr, depth: int = 0) -> bool:
    """Whether the value is positive or zero by its form: abs, a square, a norm, a product of a value with itself."""
    node = origin(source, node)
    if depth > _DEPTH:
        return False
    match node:
        case ast.Call():
            name = op_name(source, node) or (node.func.attr if isinstance(node.func, ast.Attribute) else "")
            exponent = number_of(source, node.args[-1]) if name == "pow" and node.args else None
            return name in ("abs", "absolute", "norm", "square", "cdist", "relu", "softplus", "exp", "sqrt", "sigmoid",
                            "tanh", "clamp", "clip", "pairwise_distance", "mse_loss") or exponent == 2  # fmt: skip
        case ast.BinOp(op=ast.Pow(), right=right):
            return number_of(source, right) == 2
        case ast.BinOp(op=ast.Mult() | ast.Div(), left=left, right=right):
            same = source.segment(left) == source.segment(right)
            return same or any(
                is_bounded_below(source, a, depth + 1) and not is_negative(source, b)
                for a, b in ((left, right), (right, left))
            )
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return is_bounded_below(source, left, depth + 1) and is_bounded_below(source, right, depth + 1)
    return False


def is_negative(source: SourceFile, node: ast.expr) -> bool:
    """Whether the number is below zero by its form."""
    value = number_of(source, node)
    return value < 0 if value is not None else isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)


def names_in(node: ast.AST) -> Iterator[str]:
    """Identifiers in an expression."""
    for item in ast.walk(node):
        if isinstance(item, ast.Name):
            yield item.id
        elif isinstance(item, ast.Attribute):
            yield item.attr


def functional_name(source: SourceFile) -> str:
    """How the file calls ``torch.nn.functional``: its alias, or the full path."""
    for plain in source.nodes(ast.Import):
        for alias in plain.names:
            if alias.name == "torch.nn.functional" and alias.asname:
                return alias.asname
    for origin_ in source.nodes(ast.ImportFrom):
        for alias in origin_.names:
            if origin_.module == "torch.nn" and alias.name == "functional":
                return alias.asname or alias.name
    return "torch.nn.functional"


def is_fixed_name(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is a name bound once, so that it means the same further down."""
    return isinstance(node, ast.Name) and len(source.bindings(node)) == 1


def negated(source: SourceFile, node: ast.expr) -> str:
    """The text of ``-node``."""
    text = source.segment(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return source.segment(node.operand)
    return f"-{text}" if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"-({text})"


def _has_max(source: SourceFile, node: ast.Call) -> bool:
    is_function = bool(source.qualified(node.func))
    return source.argument(node, "max", 2 if is_function else 1) is not None


def _is_maximum(source: SourceFile, node: ast.expr) -> bool:
    """Whether the value is, or is called, a maximum or a logsumexp."""
    words = list(names_in(node))
    for item in ast.walk(node):
        for binding in reaching(source, item) if isinstance(item, ast.Name) else ():
            words += names_in(binding.value) if binding.value is not None else ()
    return any("max" in word.lower() or word in ("logsumexp", "lse", "m") for word in words)


def _scaled_is_bounded(source: SourceFile, side: ast.expr, factor: ast.expr, depth: int) -> bool:
    if is_negative(source, factor):
        return is_bounded_below(source, side)
    if isinstance(side, ast.UnaryOp) and isinstance(side.op, ast.USub):
        return is_bounded_below(source, side.operand)
    return is_bounded_above(source, side, depth + 1)


def _is_lowered_in_place(source: SourceFile, node: ast.Name) -> bool:
    """Whether the function takes something off the name's value in place: ``x -= m``, ``x.sub_(m)``."""
    updates = [binding.node for binding in source.bindings(node) if binding.kind == "update"]
    if any(isinstance(item, ast.AugAssign) and isinstance(item.op, ast.Sub) for item in updates):
        return True
    lowered = [call.func.value for call in source.method_calls("sub_") if isinstance(call.func, ast.Attribute)]
    return any(isinstance(item, ast.Name) and source.bindings(item) == source.bindings(node) for item in lowered)

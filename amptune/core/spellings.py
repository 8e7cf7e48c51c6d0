"""How a functional op is spelled in source: torch function, tensor method or operator, each mapped to the op table."""

from __future__ import annotations

import ast

from amptune.core.ops import OPS

FUNCTION_MODULES = ("torch", "torch.nn.functional", "torch.special", "torch.linalg", "torch.fft", "torch.Tensor",
                    "torch.nn.attention.flex_attention")  # fmt: skip
"""Where torch keeps functions on tensors. ``torch.nn.init`` and the like share names with them but are not ops."""

_OTHER_NAMES: dict[str, str] = {
    "sub": "subtract rsub", "mul": "multiply outer ger", "div": "divide true_divide", "neg": "negative",
    "abs": "absolute", "clamp": "clip clamp_min clamp_max", "pow": "float_power", "matmul": "inner",
    "acos": "arccos", "asin": "arcsin", "atan": "arctan", "atan2": "arctan2", "atanh": "arctanh", "acosh": "arccosh",
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "ne": "not_equal",
    "logical_or": "logical_xor", "floor": "fix", "sigmoid": "expit", "digamma": "psi", "lgamma": "gammaln",
    "cat": "concat concatenate hstack vstack", "split": "vsplit hsplit tensor_split", "transpose": "swapaxes swapdims",
    "movedim": "moveaxis", "expand": "broadcast_to expand_as", "view": "view_as", "reshape": "reshape_as",
    "to": "double type", "interpolate": "upsample upsample_bilinear upsample_nearest", "inverse": "inv",
    "multi_head_attention": "multi_head_attention_forward", "dropout": "dropout1d dropout2d dropout3d",
    "alpha_dropout": "feature_alpha_dropout", "linalg_matrix_norm": "matrix_norm", "linalg_vector_norm": "vector_norm",
    "linalg_multi_dot": "multi_dot", "linalg_vecdot": "vecdot", "lp_pool": "lp_pool1d lp_pool2d lp_pool3d",
    "fft": "rfft irfft ifft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn",
}  # fmt: skip
_OP_OF_NAME = {name: name for name in OPS} | {name: op for op, names in _OTHER_NAMES.items() for name in names.split()}

OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.MatMult: ("matmul", "@"),
    ast.Pow: ("pow", "**"),
    ast.Div: ("div", "/"),
    ast.Mult: ("mul", "*"),
    ast.Add: ("add", "+"),
    ast.Sub: ("sub", "-"),
    ast.FloorDiv: ("floor_divide", "//"),
    ast.Mod: ("remainder", "%"),
}
"""Operator node -> (op, how it is written)."""

OPERATOR_FUNCTIONS = {"@": "matmul", "**": "pow", "/": "truediv", "*": "mul", "+": "add", "-": "sub",
                      "//": "floordiv", "%": "mod"}  # fmt: skip
"""How an operator is written -> the function of Python's ``operator`` module that is exactly it."""
_OP_OF_OPERATOR_FUNCTION = {OPERATOR_FUNCTIONS[sign]: op for op, sign in OPERATORS.values()}


def op_of_name(name: str) -> str | None:
    """The op that a torch function or tensor method called ``name`` runs; in-place forms (``exp_``) are the same op."""
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return _OP_OF_NAME.get(plain)


def op_of_function(path: str) -> str | None:
    """The op of a dotted path such as ``torch.nn.functional.softmax``; None for what is not a function on tensors."""
    module, _, name = path.rpartition(".")
    if module == "operator":
        return _OP_OF_OPERATOR_FUNCTION.get(name)
    return op_of_name(name) if module in FUNCTION_MODULES else None

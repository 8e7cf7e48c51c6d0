"""Pinned ops that stand in one another as one function: ``fp32(lambda x, eps: torch.rsqrt(x + eps))(x, self.eps)``.

The body is the user's expression as it stands, with the names that it reads as parameters, so that what is 16-bit among
them is cast up on its way in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import libcst as cst

from amptune.core.opcodes import KEEP, FunctionalOp
from amptune.core.ops import Family, op_named

OpAt = Callable[[cst.CSTNode], FunctionalOp | None]
_LITERALS = (cst.Integer, cst.Float)
_CONSTANTS = frozenset({"None", "True", "False"})
_OWN_RESULT = ("_loss", "cross_entropy", "kl_div", "_with_logits", "_")
"""Ends of names of functions whose results the runtime treats in a way of their own: losses, and in-place functions."""
_SPACE = cst.SimpleWhitespace(" ")
_COMMA = cst.Comma(whitespace_after=_SPACE)


@dataclasses.dataclass(frozen=True)
class Merged:
    """One expression of several pinned ops.

    Attributes:
        ops: in it, the innermost first; the last one is the whole expression.
        parameters: name in the body -> what stands for it at the call, in order.
        body: the expression over the parameters.
    """

    ops: tuple[FunctionalOp, ...]
    parameters: Mapping[str, cst.BaseExpression]
    body: cst.BaseExpression


def merged(node: cst.BaseExpression, op_at: OpAt, is_kept: Callable[[FunctionalOp], bool]) -> Merged | None:
    """The expression at ``node`` as one function, where it is two or more pinned ops that hand on FP32 results.

    None where it is not, or reads something else than names, attributes of names and constants: what else there is
    might not mean the same inside of a function, or be a tensor that has to be cast up. None for a cast too, whose
    result the ops around it would take in its format instead of in FP32.
    """
    found = _Reader(op_at, is_kept)
    if not found.reads_op(node) or len(found.ops) < 2 or len(set(found.names.values())) < len(found.names):
        return None
    if found.functions & set(found.names.values()):
        return None
    parameters = {found.names[_code(read)]: read for read in found.read}
    body = substituted(node, {text: cst.Name(name) for text, name in found.names.items() if text != name})
    return Merged(tuple(found.ops), parameters, body)


def as_call(function: Merged, fp32: str, *, keep: bool) -> cst.Call:
    """``fp32(lambda x, eps: torch.rsqrt(x + eps))(x, self.eps)``."""
    parameters = [cst.Param(cst.Name(name), comma=_COMMA) for name in function.parameters]
    parameters[-1] = parameters[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    value = cst.Lambda(cst.Parameters(parameters), function.body, whitespace_after_lambda=_SPACE)
    pin = [cst.Arg(value)]
    if keep:
        equal = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
        pin.append(cst.Arg(cst.Name("True"), keyword=cst.Name(KEEP), equal=equal))
    arguments = [cst.Arg(read, comma=_COMMA) for read in function.parameters.values()]
    arguments[-1] = arguments[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return cst.Call(cst.Call(cst.Name(fp32), pin), arguments)


def substituted(node: cst.BaseExpression, given: Mapping[str, cst.BaseExpression]) -> cst.BaseExpression:
    """The expression with others in the place of names and attributes, by their text; the names of keywords stay."""
    return cast("cst.BaseExpression", node.visit(_Substitution(given)))


class _Substitution(cst.CSTTransformer):
    def __init__(self, given: Mapping[str, cst.BaseExpression]) -> None:
        super().__init__()
        self._given = given

    def on_visit(self, node: cst.CSTNode) -> bool:
        return not (isinstance(node, (cst.Name, cst.Attribute)) and _code(node) in self._given)

    def on_leave(self, original_node: cst.CSTNodeT, updated_node: cst.CSTNodeT) -> Any:
        if isinstance(original_node, (cst.Name, cst.Attribute)) and _code(original_node) in self._given:
            return self._given[_code(original_node)]
        if isinstance(original_node, cst.Attribute):
            return cst.ensure_type(updated_node, cst.Attribute).with_changes(attr=original_node.attr)
        if isinstance(original_node, cst.Arg):
            return cst.ensure_type(updated_node, cst.Arg).with_changes(keyword=original_node.keyword)
        return updated_node


class _Reader:
    """What an expression of pinned ops is made of."""

    def __init__(self, op_at: OpAt, is_kept: Callable[[FunctionalOp], bool]) -> None:
        self._op_at = op_at
        self._is_kept = is_kept
        self.ops: list[FunctionalOp] = []
        self.read: list[cst.BaseExpression] = []
        self.names: dict[str, str] = {}
        """Text of what is read -> its name in the body."""
        self.functions: set[str] = set()
        """First names of the functions that are called."""

    def reads_op(self, node: cst.BaseExpression) -> bool:
        """Whether this is a pinned op all of whose parts can stand in the body."""
        op = self._op_at(node)
        if op is None or op.spelling.endswith(_OWN_RESULT) or op_named(op.op).family is Family.CAST:
            return False
        if isinstance(node, cst.BinaryOperation):
            reads = self._reads(node.left) and self._reads(node.right)
        elif isinstance(node, cst.Call):
            reads = self._reads_function(op, node.func) and all(map(self._reads_argument, node.args))
        else:
            reads = False
        self.ops.append(op)
        return reads

    def _reads_function(self, op: FunctionalOp, function: cst.BaseExpression) -> bool:
        if op.spelling.startswith("."):
            return isinstance(function, cst.Attribute) and self._reads(function.value)
        first = _code(function).partition(".")[0]
        self.functions.add(first)
        return first.isidentifier()

    def _reads_argument(self, argument: cst.Arg) -> bool:
        keyword = argument.keyword.value if argument.keyword else ""
        return not argument.star and keyword not in ("dtype", "out") and self._reads(argument.value)

    def _reads(self, node: cst.BaseExpression) -> bool:
        if isinstance(node, _LITERALS) or (isinstance(node, cst.Name) and node.value in _CONSTANTS):
            return True
        if isinstance(node, cst.UnaryOperation):
            return isinstance(node.operator, cst.Minus) and isinstance(node.expression, _LITERALS)
        if isinstance(node, cst.Tuple):
            return all(isinstance(part, cst.Element) and self._reads(part.value) for part in node.elements)
        inner = self._op_at(node)
        if inner is not None:
            return self._is_kept(inner) and self.reads_op(node)
        text = _code(node)
        if node.lpar if isinstance(node, (cst.Name, cst.Attribute)) else True:
            return False
        if not all(part.isidentifier() for part in text.split(".")):
            return False
        if text not in self.names:
            self.names[text] = text.rpartition(".")[2]
            self.read.append(node)
        return True


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)

"""Ops whose results go to other pinned ops only, so that a chain of them is computed in FP32 from end to end.

``fp32(mean)(fp32(pow)(x, 2))`` would round the squares to 16 bits between the two, and overflow there in FP16. Found
from the text alone, so that a trial and the patched file do the same.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Collection, Mapping

from amptune.core.opcodes import FunctionalOp, functional_ops_of
from amptune.core.source_names import FunctionNode, is_function

_BETWEEN = frozenset({"add", "sub", "mul", "div", "neg", "clamp"})
"""Arithmetic that, with numbers beside it, may stand between two pinned ops: ``(x.pow(2).mean(-1) + eps).rsqrt()``."""
_WRITING_ARGUMENTS = frozenset({"out", "inplace"})
_SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.ClassDef, ast.FunctionDef,
           ast.AsyncFunctionDef)  # fmt: skip
_NOWHERE: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Chains:
    """What pinning some ops means for those that take their results.

    Attributes:
        kept: codes of the ops that hand on their FP32 result.
        between: codes of unpinned arithmetic with numbers that stands between pinned ops, and is computed with them.
    """

    kept: frozenset[str] = frozenset()
    between: frozenset[str] = frozenset()


def find_chains(source_text: str, pins: Collection[str], follow: Collection[str] = ()) -> Chains:
    """The chains among the ops whose codes are ``pins``; an op of ``follow`` stands between none.

    A result counts as going to pinned ops only where it is a direct argument of one, or is assigned to a local name
    of the function that is used in no other way.

    Raises:
        SyntaxError: the text is not Python.
    """
    if len(pins) < 2:
        return Chains()
    flow = _flow(source_text)
    between = flow.may_be_between.difference(pins, follow)
    while True:
        kept = frozenset(code for code in between.union(pins) if _goes_to(flow.takers.get(code), between.union(pins)))
        fed = _NOWHERE.union(*(flow.takers[code] for code in kept))
        if between <= kept & fed:
            return Chains(kept, between)
        between &= kept & fed


def _goes_to(takers: frozenset[str] | None, chained: frozenset[str]) -> bool:
    return bool(takers) and takers <= chained  # type: ignore[operator]


@dataclasses.dataclass(frozen=True)
class _Flow:
    """Which ops take the result of an op, where nothing else does; and which ops are arithmetic with numbers."""

    takers: Mapping[str, frozenset[str]]
    may_be_between: frozenset[str]


@functools.lru_cache(maxsize=4)
def _flow(source_text: str) -> _Flow:
    tree, ops = functional_ops_of(source_text)
    uses = _Uses(tree, ops)
    giving = {node: op for node, op in ops.items() if op.pinnable and not _writes(node, op)}
    between = {op.code for node, op in giving.items() if op.op in _BETWEEN and uses.is_with_numbers(node, op)}
    return _Flow({op.code: uses.takers(node) for node, op in giving.items()}, frozenset(between))


class _Uses:
    """Where the values of a module's expressions go."""

    def __init__(self, tree: ast.Module, ops: Mapping[ast.AST, FunctionalOp]) -> None:
        self._ops = ops
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._locals: dict[FunctionNode, tuple[list[ast.Name], frozenset[str]]] = {}

    def takers(self, node: ast.AST) -> frozenset[str]:
        """Codes of the ops that take the value; empty where anything else does."""
        parent = self._parents[node]
        if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
            return self._takers_of_name(parent.targets[0])
        if isinstance(parent, ast.AnnAssign):
            return self._takers_of_name(parent.target)
        return frozenset(filter(None, [self._taker(node)]))

    def is_with_numbers(self, node: ast.AST, op: FunctionalOp) -> bool:
        """Whether all operands of an op but one are numbers, as far as the text says."""
        if isinstance(node, ast.BinOp):
            operands = [node.left, node.right]
        else:
            assert isinstance(node, ast.Call)
            operands = [*node.args, *(keyword.value for keyword in node.keywords)]
            if op.spelling.startswith(".") and isinstance(node.func, ast.Attribute):
                operands.append(node.func.value)
        return sum(not self._is_number(operand) for operand in operands) == 1

    def _taker(self, node: ast.AST) -> str | None:
        """The op of which the value is an argument, an operand, or what its method is called on."""
        parent = self._parents[node]
        taker = parent
        if isinstance(parent, ast.keyword) and parent.arg is not None:
            taker = self._parents[parent]
        elif isinstance(parent, ast.Attribute):
            taker = self._parents[parent]
            if not (isinstance(taker, ast.Call) and taker.func is parent):
                return None
        op = self._ops.get(taker)
        return op.code if op is not None and op.pinnable and not _writes(taker, op) else None

    def _takers_of_name(self, target: ast.expr) -> frozenset[str]:
        owner = self._parents[target]
        while not isinstance(owner, ast.Module) and not isinstance(owner, _SCOPES):
            owner = self._parents[owner]
        if not is_function(owner) or not isinstance(target, ast.Name):
            return _NOWHERE
        names, shared = self._names_of(owner)
        takers: set[str] = set()
        for node in names:
            if node.id != target.id or self._is_bound(node):
                continue
            taker = self._taker(node) if isinstance(node.ctx, ast.Load) else None
            if taker is None:
                return _NOWHERE
            takers.add(taker)
        return _NOWHERE if target.id in shared else frozenset(takers)

    def _is_bound(self, node: ast.Name) -> bool:
        parent = self._parents[node]
        return isinstance(parent, (ast.Assign, ast.AnnAssign)) and isinstance(node.ctx, ast.Store)

    def _names_of(self, owner: FunctionNode) -> tuple[list[ast.Name], frozenset[str]]:
        """The names in a function's own code, and those that it shares with other scopes."""
        if owner not in self._locals:
            own: list[ast.Name] = []
            shared: set[str] = set()
            pending: list[ast.AST] = list(owner.body)
            while pending:
                node = pending.pop()
                if isinstance(node, _SCOPES):
                    shared |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                    continue
                if isinstance(node, (ast.Global, ast.Nonlocal)):
                    shared |= set(node.names)
                own += [node] if isinstance(node, ast.Name) else []
                pending += ast.iter_child_nodes(node)
            self._locals[owner] = own, frozenset(shared)
        return self._locals[owner]

    def _is_number(self, node: ast.expr) -> bool:
        if isinstance(node, ast.UnaryOp):
            return self._is_number(node.operand)
        if isinstance(node, ast.Attribute):
            return isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        if isinstance(node, ast.Name):
            owner: ast.AST | None = node
            while owner is not None and not is_function(owner):
                owner = self._parents.get(owner)
            return owner is not None and node.id in _numeric_arguments(owner.args)
        return isinstance(node, ast.Constant)


def _numeric_arguments(arguments: ast.arguments) -> set[str]:
    """Arguments with a number as their default or type."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [
        *zip(positional[::-1], arguments.defaults[::-1], strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    typed = [part for part in (*positional, *arguments.kwonlyargs) if isinstance(part.annotation, ast.Name)]
    return {
        *(part.arg for part, value in defaults if isinstance(value, ast.Constant) and _is_real(value.value)),
        *(part.arg for part in typed if part.annotation.id in ("int", "float")),  # type: ignore[union-attr]
    }


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float))


def _writes(node: ast.AST, op: FunctionalOp) -> bool:
    """Whether a call writes its result into a tensor that it is given."""
    name = op.spelling.rpartition(".")[2]
    keywords = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
    return name.endswith("_") or not keywords.isdisjoint(_WRITING_ARGUMENTS)

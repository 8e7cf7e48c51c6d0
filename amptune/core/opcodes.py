"""Where functional ops stand in a source file: the code ``Class.forward#op.n`` that capture, apply and patch share.

A code is the same for all instances of a class. It is found from the text alone, so that a site seen in a run, a pin
in a trial and a line of the patched file mean the same call.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import re

from amptune.core.source_names import FunctionNode, Names, is_container, is_function
from amptune.core.spellings import OPERATORS, op_of_function, op_of_name

_NEWLINE = re.compile(r"\r\n|\r|\n")
_BOM = "\ufeff"
PINNING_FUNCTIONS = ("amptune_runtime.fp32", "amptune.runtime.fp32", "amptune.runtime.pinned")
"""What a call goes through, as ``fp32(F.softmax)(x, -1)``, once the patch has pinned it."""
KEEP = "keep"
"""Argument of ``fp32`` for a result that stays in FP32 on its way into the next pinned call."""


@dataclasses.dataclass(frozen=True)
class FunctionalOp:
    """One call of a functional op in the body of a function or method.

    Attributes:
        code: ``Class.forward#op.n`` (``function#op.n`` for a function of the module, ``Class.forward.inner#op.n`` for
            a nested one), with n in order of line and column among the calls of that op in that function. The place
            where a call ends is what counts, so that an inner call comes before the one around it, pinned or not.
        op: name in the op table.
        line, column, end_line, end_column: the whole call, 1-based, end exclusive, columns in characters.
        spelling: ``torch.nn.functional.softmax`` (a function, aliases resolved), ``.softmax`` (a method) or ``@``
            (an operator; ``@=`` where it assigns).
    """

    code: str
    op: str
    line: int
    column: int
    end_line: int
    end_column: int
    spelling: str

    @property
    def function(self) -> str:
        """The function that holds the op, as ``Class.forward``."""
        return self.code.rpartition("#")[0]

    @property
    def pinnable(self) -> bool:
        """Whether the call can go through another function: ``x *= 2`` cannot, it rebinds or writes into ``x``."""
        return not self.spelling.endswith("=")


def find_functional_ops(source_text: str) -> list[FunctionalOp]:
    """Every call of a functional op in ``source_text``, in order of the line and column where it ends.

    Calls that cannot be on tensors (``math.exp``, ``np.exp``, ``"a".split()``, ``x.shape[0] * 2``, ``self.norm(x)``)
    are left out. A call on a value of unknown type counts: the list says where an op may run, a run says whether.

    Raises:
        SyntaxError: the text is not Python.
    """
    return list(_ops_in(*_parsed(source_text)).values())


def functional_ops_of(source_text: str) -> tuple[ast.Module, dict[ast.AST, FunctionalOp]]:
    """The syntax tree of ``source_text``, and the nodes of the ops that ``find_functional_ops`` finds in it."""
    tree, lines = _parsed(source_text)
    return tree, _ops_in(tree, lines)


def _parsed(source_text: str) -> tuple[ast.Module, list[str]]:
    text = source_text.removeprefix(_BOM)
    return ast.parse(text), _NEWLINE.split(text)


def _ops_in(tree: ast.Module, lines: list[str]) -> dict[ast.AST, FunctionalOp]:
    ordinals: collections.Counter[tuple[str, str]] = collections.Counter()
    ops: dict[ast.AST, FunctionalOp] = {}
    for found in sorted(_Finder(tree, lines).found, key=_place):
        key = (found.function, found.op)
        code = f"{found.function}#{found.op}.{ordinals[key]}"
        ops[found.node] = FunctionalOp(code, found.op, *found.span, found.spelling)
        ordinals[key] += 1
    return ops


@dataclasses.dataclass(frozen=True)
class _Found:
    function: str
    op: str
    spelling: str
    span: tuple[int, int, int, int]
    node: ast.AST


def _place(found: _Found) -> tuple[int, int, int, int]:
    """Sort key: the end; of two calls that end together (``a ** b ** c``) the later start is the inner one."""
    line, column, end_line, end_column = found.span
    return end_line, end_column, -line, -column


class _Finder(ast.NodeVisitor):
    """Walks a module with the qualified name of the function it is in, and the names that are visible there."""

    def __init__(self, tree: ast.Module, lines: list[str]) -> None:
        self.found: list[_Found] = []
        self._lines = lines
        self._path: list[str] = []
        self._in_function = False
        self._names = Names(tree)
        self._submodules = _submodule_names(tree)
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outside = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
        self._visit_all(outside)
        was_inside, self._in_function = self._in_function, False
        self._path.append(node.name)
        self._visit_all(node.body)
        self._path.pop()
        self._in_function = was_inside

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._enter(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = self._unpinned(node.func)
        if isinstance(function, ast.Lambda):
            self._visit_pinned_lambda(function, node)
            return
        self.generic_visit(node)
        path = self._names.path(function)
        if path is not None:
            op = op_of_function(path)
            self._add(node, op, path)
        elif isinstance(node.func, ast.Attribute) and self._may_be_method(node.func, node):
            self._add(node, op_of_name(node.func.attr), f".{node.func.attr}")

    def _visit_pinned_lambda(self, function: ast.Lambda, call: ast.Call) -> None:
        """``fp32(lambda x, n: ...)(x, y.ndim)``: a parameter is plain where what is passed for it is."""
        self._visit_all([*call.args, *(keyword.value for keyword in call.keywords)])
        parameters = [parameter.arg for parameter in function.args.args]
        names = self._names
        self._names = names.inside_lambda(dict(zip(parameters, call.args, strict=False)))
        self.visit(function.body)
        self._names = names

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nothing: an f-string is a message, and before Python 3.12 its parts have no true position."""

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        self._add_operator(node, node.left, node.op, node.right, "")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        self._add_operator(node, node.target, node.op, node.value, "=")

    def _enter(self, node: FunctionNode) -> None:
        # Decorators and defaults run outside the function, once.
        defaults = [value for value in (*node.args.defaults, *node.args.kw_defaults) if value]
        self._visit_all([*node.decorator_list, *defaults])
        was_inside, names = self._in_function, self._names
        self._in_function, self._names = True, Names(node, names)
        self._path.append(node.name)
        self._visit_all(node.body)
        self._path.pop()
        self._in_function, self._names = was_inside, names

    def _visit_all(self, nodes: list[ast.expr] | list[ast.stmt]) -> None:
        for node in nodes:
            self.visit(node)

    def _unpinned(self, function: ast.expr) -> ast.expr:
        """``F.softmax`` for ``fp32(F.softmax)``, so that an op keeps its code in the patched file."""
        if isinstance(function, ast.Call) and function.args and {part.arg for part in function.keywords} <= {KEEP}:
            path = self._names.path(function.func) or ""
            return function.args[-1] if path.endswith(PINNING_FUNCTIONS) else function
        return function

    def _may_be_method(self, function: ast.Attribute, call: ast.Call) -> bool:
        receiver = function.value
        if isinstance(receiver, ast.Name) and receiver.id in {"self", "cls"}:
            return False
        is_super = (
            isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Name) and receiver.func.id == "super"
        )
        if is_super or is_container(receiver) or self._names.is_plain(receiver) or self._names.path(receiver):
            return False
        # `block.norm(x)` calls a submodule where some class of the file sets `self.norm`; `x.norm(2)` is the op.
        takes_value = any(not self._names.is_plain(argument) for argument in call.args)
        return not (function.attr in self._submodules and takes_value)

    def _add_operator(self, node: ast.AST, left: ast.expr, operator: ast.operator, right: ast.expr, end: str) -> None:
        op, spelling = OPERATORS.get(type(operator), (None, ""))
        if is_container(left) or is_container(right) or _is_text(left):
            return
        if not (self._names.is_plain(left) and self._names.is_plain(right)):
            self._add(node, op, spelling + end)

    def _add(self, node: ast.AST, op: str | None, spelling: str) -> None:
        if op is not None and self._in_function:
            self.found.append(_Found(".".join(self._path), op, spelling, self._span(node), node))

    def _span(self, node: ast.AST) -> tuple[int, int, int, int]:
        line, end_line = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        start, end = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
        return line, self._column(line, start), end_line, self._column(end_line, end)

    def _column(self, line: int, byte_offset: int) -> int:
        text = self._lines[line - 1]
        return byte_offset + 1 if text.isascii() else len(text.encode()[:byte_offset].decode()) + 1


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _submodule_names(tree: ast.Module) -> frozenset[str]:
    """Names that the classes of the file set on ``self`` or define as methods."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
        elif isinstance(node, ast.ClassDef):
            names |= {part.name for part in node.body if is_function(part)}
    return frozenset(names)

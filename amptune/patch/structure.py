"""The lines that put the plan in force: the end of the model's constructor, or what ``make_model`` returns; the loss
and the optimizer.

``place`` writes them and ``remove`` takes the same lines out again.
"""

# ruff: noqa: N802  # visit_ClassDef, leave_Return: libcst finds them by these names

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import libcst as cst

from amptune.patch.block import LocalNames
from amptune.patch.pins import with_comment
from amptune.patch.unpin import without_mark

LAST_MARK = "# amptune: keep this last"
ADDED_MARK = "# amptune: added"
EXACT_MARK = "# amptune: a subclass is another model"
_MARKS = re.compile(rf"^(.*?)(?:  )?(?:{LAST_MARK}|{ADDED_MARK}|{EXACT_MARK})$")
_POST_INITS = {"dataclass": "__post_init__", "define": "__attrs_post_init__", "attrs": "__attrs_post_init__"}
_Line = TypeVar("_Line", cst.SimpleStatementLine, cst.SimpleStatementSuite)


@dataclasses.dataclass(frozen=True)
class Placement:
    """What to write where. Names are qualified: ``Outer.Net``.

    Attributes:
        call: the text that applies the plan, with ``{}`` for the model: ``apply_plan({}, PRECISION)``.
        top_class: the class whose constructor ends with it.
        function: the function whose results it goes around, where there is no ``top_class``.
        only_exact: the file has subclasses of the class, which the plan was not made for.
        decorators: function -> its decorator, ``loss_in("fp32")``.
    """

    call: str
    top_class: str | None = None
    function: str | None = None
    only_exact: bool = False
    decorators: Mapping[str, str] = dataclasses.field(default_factory=dict)


def place(text: str, placement: Placement) -> str:
    """``text`` with the placement's lines; what it does not define is left out."""
    return cst.parse_module(text).visit(_Placer(placement)).code


def remove(text: str, names: LocalNames) -> str:
    """``text`` without the lines that ``place`` wrote; ``names`` is what they call our functions."""
    return cst.parse_module(text).visit(_Remover(names)).code


class _Placer(cst.CSTTransformer):
    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._built = False
        self._to = placement
        self._path: list[str] = []
        self._classes: list[bool] = []
        self._constructor: str | None = None
        self._self = "self"

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self._push(node.name.value, is_class=True)
        if self._here == self._to.top_class:
            self._constructor = f"{self._here}.{_constructor_name(node)}"

    def leave_ClassDef(self, original_node: cst.ClassDef, updated_node: cst.ClassDef) -> cst.ClassDef:
        if self._here == self._to.top_class and not self._built:
            updated_node = self._with_constructor(updated_node)
        self._pop()
        return updated_node

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self._push(node.name.value, is_class=False)
        if self._here == self._constructor:
            first = [*node.params.posonly_params, *node.params.params][:1]
            self._self = first[0].name.value if first else "self"

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        here = self._here
        if here == self._constructor and not _is_overload(original_node):
            updated_node = updated_node.with_changes(body=self._ended(updated_node.body))
            self._built = True
        if decorator := self._to.decorators.get(here):
            updated_node = _decorated(updated_node, decorator)
        self._pop()
        return updated_node

    def leave_Return(self, original_node: cst.Return, updated_node: cst.Return) -> cst.Return:
        if self._here != self._to.function or updated_node.value is None:
            return updated_node
        space = cst.SimpleWhitespace(" ")
        return updated_node.with_changes(value=self._around(updated_node.value), whitespace_after_return=space)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.BaseStatement]:
        if self._here != self._constructor or not _ends_with(updated_node.body, cst.Return):
            return updated_node
        if len(updated_node.body) == 1:
            return cst.FlattenSentinel([*self._statements(), updated_node])
        return _before_last(updated_node, self._small_statement())

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        if self._here != self._constructor or not _ends_with(updated_node.body, cst.Return):
            return updated_node
        return _before_last(updated_node, self._small_statement())

    @property
    def _here(self) -> str:
        return ".".join(self._path)

    def _push(self, name: str, *, is_class: bool) -> None:
        self._path.append(name)
        self._classes.append(is_class)

    def _pop(self) -> None:
        self._path.pop()
        self._classes.pop()

    def _condition(self) -> str:
        """``type(self) is Outer.Net``, with the class as its constructor can name it."""
        owner_path, kinds = self._path[:-1], self._classes[:-1]
        start = len(kinds) - kinds[::-1].index(False) if False in kinds else 0
        return f"type({self._self}) is {'.'.join(owner_path[start:])}"

    def _statements(self) -> list[cst.BaseStatement]:
        line = f"{self._to.call.format(self._self)}  {LAST_MARK}\n"
        if self._to.only_exact:
            line = f"if {self._condition()}:  {EXACT_MARK}\n    {line}"
        return [_statement(line)]

    def _small_statement(self) -> cst.BaseSmallStatement:
        call = self._to.call.format(self._self)
        guarded = f"{call} if {self._condition()} else None" if self._to.only_exact else call
        return cst.Expr(cst.parse_expression(guarded))

    def _ended(self, body: cst.BaseSuite) -> cst.BaseSuite:
        """The constructor's body with the call at its end, unless the end is never reached."""
        if isinstance(body, cst.SimpleStatementSuite):
            if _ends_with(body.body, cst.Return, cst.Raise):
                return body
            extended = [*_with_semicolon(body.body), self._small_statement()]
            return body.with_changes(
                body=extended, trailing_whitespace=with_comment(body.trailing_whitespace, LAST_MARK)
            )
        assert isinstance(body, cst.IndentedBlock)
        last = body.body[-1]
        if isinstance(last, cst.SimpleStatementLine) and _ends_with(last.body, cst.Return, cst.Raise):
            return body
        return body.with_changes(body=[*body.body, *self._statements()])

    def _with_constructor(self, node: cst.ClassDef) -> cst.ClassDef:
        """A class that inherits its constructor gets one that calls it."""
        name = str(self._constructor).rpartition(".")[2]
        self._push(name, is_class=False)
        arguments = "" if name.endswith("post_init__") else ", *args, **kwargs"
        lines = [f"def {name}(self{arguments}):  {ADDED_MARK}\n"]
        if arguments:
            lines.append("    super().__init__(*args, **kwargs)\n")
        method = cst.ensure_type(_statement("".join([*lines, "    pass\n"])), cst.FunctionDef)
        block = cst.ensure_type(method.body, cst.IndentedBlock)
        block = block.with_changes(body=[*block.body[:-1], *self._statements()])
        method = method.with_changes(body=block, leading_lines=[cst.EmptyLine(indent=False)])
        self._pop()
        body = node.body if isinstance(node.body, cst.IndentedBlock) else _as_block(node.body)
        return node.with_changes(body=body.with_changes(body=[*body.body, method]))

    def _around(self, value: cst.BaseExpression) -> cst.BaseExpression:
        call = cst.ensure_type(cst.parse_expression(self._to.call.format("model")), cst.Call)
        call = call.with_changes(args=[call.args[0].with_changes(value=value), *call.args[1:]])
        return cst.Attribute(call, cst.Name("model"))


class _Remover(cst.CSTTransformer):
    def __init__(self, names: LocalNames) -> None:
        super().__init__()
        self._names = names
        self._decorators = (names.loss_in, names.masters_in)

    def leave_TrailingWhitespace(
        self, original_node: cst.TrailingWhitespace, updated_node: cst.TrailingWhitespace
    ) -> cst.TrailingWhitespace:
        return without_mark(updated_node, _MARKS)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        return self._without_ours(updated_node) or cst.RemoveFromParent()

    def leave_SimpleStatementSuite(
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        return self._without_ours(updated_node) or updated_node

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If | cst.RemovalSentinel:
        return cst.RemoveFromParent() if _header_says(original_node.body, EXACT_MARK) else updated_node

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.RemovalSentinel:
        if _header_says(original_node.body, ADDED_MARK):
            return cst.RemoveFromParent()
        kept = [part for part in updated_node.decorators if not _calls(part.decorator, *self._decorators)]
        return updated_node.with_changes(decorators=kept)

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        call = updated_node.value
        if updated_node.attr.value == "model" and isinstance(call, cst.Call) and _calls(call, self._names.apply_plan):
            return call.args[0].value
        return updated_node

    def _without_ours(self, line: _Line) -> _Line | None:
        kept = [part for part in line.body if not self._is_ours(part)]
        if len(kept) == len(line.body):
            return line
        if not kept:
            return None
        kept[-1] = kept[-1].with_changes(semicolon=cst.MaybeSentinel.DEFAULT)
        return line.with_changes(body=kept)

    def _is_ours(self, statement: cst.BaseSmallStatement) -> bool:
        if isinstance(statement, cst.Assign):  # loss_fn = loss_in("fp32")(loss_fn)
            value = statement.value
            return isinstance(value, cst.Call) and _calls(value.func, *self._decorators)
        if not isinstance(statement, cst.Expr):
            return False
        value = statement.value
        return _calls(value.body if isinstance(value, cst.IfExp) else value, self._names.apply_plan)


def _decorated(node: cst.FunctionDef, text: str) -> cst.FunctionDef:
    end = with_comment(cst.TrailingWhitespace(), ADDED_MARK)
    decorator = cst.Decorator(cst.parse_expression(text), trailing_whitespace=end)
    return node.with_changes(decorators=[decorator, *node.decorators])


def _statement(text: str) -> cst.BaseStatement:
    return cast("cst.BaseStatement", cst.parse_statement(text))


def _as_block(suite: cst.BaseSuite) -> cst.IndentedBlock:
    """The statements of ``class Net(Base): pass`` on a line of their own."""
    one_line = cst.ensure_type(suite, cst.SimpleStatementSuite)
    line = cst.SimpleStatementLine(one_line.body, trailing_whitespace=one_line.trailing_whitespace)
    return cst.IndentedBlock([line])


def _with_semicolon(body: Sequence[cst.BaseSmallStatement]) -> list[cst.BaseSmallStatement]:
    semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
    return [*body[:-1], body[-1].with_changes(semicolon=semicolon)]


def _before_last(line: _Line, statement: cst.BaseSmallStatement) -> _Line:
    return line.with_changes(body=[*line.body[:-1], *_with_semicolon([statement]), line.body[-1]])


def _ends_with(body: Sequence[cst.BaseSmallStatement], *kinds: type[cst.BaseSmallStatement]) -> bool:
    return isinstance(body[-1], kinds)


def _calls(node: cst.BaseExpression, *names: str) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in names


def _header_says(body: cst.BaseSuite, mark: str) -> bool:
    comment = body.header.comment if isinstance(body, cst.IndentedBlock) else None
    return comment is not None and comment.value == mark


def _last_name(node: cst.BaseExpression) -> str:
    """``dataclass`` for ``dataclass``, ``dataclasses.dataclass`` and ``dataclass(eq=False)``."""
    if isinstance(node, cst.Call):
        return _last_name(node.func)
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""


def _is_overload(node: cst.FunctionDef) -> bool:
    return any(_last_name(part.decorator) == "overload" for part in node.decorators)


def _constructor_name(node: cst.ClassDef) -> str:
    """``__init__``, or what a dataclass calls at the end of the one that it makes."""
    own = {part.name.value for part in node.body.body if isinstance(part, cst.FunctionDef)}
    made = [name for part in node.decorators if (name := _POST_INITS.get(_last_name(part.decorator)))]
    return made[0] if made and "__init__" not in own else "__init__"

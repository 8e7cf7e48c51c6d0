"""SourceFile: a parsed Python file with everything a source rule may ask about it."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeVar

from amptune.core.finding import Finding, Fix, Location, Severity
from amptune.core.rule import SourceRule
from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.flows import Flows
from amptune.lint.fold import Folder
from amptune.lint.index import FunctionNode, Node, TreeIndex, last_name
from amptune.lint.kinds import Kind, Kinds
from amptune.lint.names import Names, last_parts
from amptune.lint.regions import Region, Regions
from amptune.lint.scopes import Binding, Scopes

_Shared = TypeVar("_Shared")
_Expression = TypeVar("_Expression", bound=ast.expr)
_NEWLINE = re.compile(r"\r\n|\r|\n")


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of text: 1-based lines and columns in characters, end exclusive."""

    line: int
    column: int
    end_line: int
    end_column: int


class SourceFile:
    """One Python file. Parsed once, walked once; every further fact is worked out when a rule first asks for it.

    Raises:
        SyntaxError: the text is no Python 3 (also for null bytes and for nesting that the parser gives up on).
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.tree = parse(text)
        self.index = TreeIndex(self.tree)
        self._shared: dict[object, Any] = {}

    def shared(self, make: Callable[[SourceFile], _Shared]) -> _Shared:
        """What ``make`` finds in this file, worked out once: for facts that several rules need.

        A table outside of the file, keyed by it, would keep every file of a run in memory.
        """
        if make not in self._shared:
            self._shared[make] = make(self)
        found: _Shared = self._shared[make]
        return found

    def forget_shared(self) -> None:
        """Let go of what ``shared`` holds, which may refer back to the file: it is freed at once then."""
        self._shared.clear()

    # Parts, for questions that the methods below do not cover.

    @cached_property
    def scopes(self) -> Scopes:
        """Bindings of names and of attributes of self."""
        return Scopes(self.index)

    @cached_property
    def names(self) -> Names:
        """Qualified names and values."""
        return Names(self.index, self.scopes)

    @cached_property
    def folder(self) -> Folder:
        """Constants and dtypes."""
        return Folder(self.names)

    @cached_property
    def kinds(self) -> Kinds:
        """What objects are: scalers, optimizers, schedulers, frameworks."""
        return Kinds(self.index, self.scopes, self.names, self.folder)

    @cached_property
    def region_stacks(self) -> Regions:
        """Autocast and no_grad stacks."""
        return Regions(self.index, self.names, self.folder, "autocast" in self.text)

    @cached_property
    def _flows(self) -> Flows:
        return Flows(self.index, self.scopes, self.names, self.kinds)

    # The tree.

    def nodes(self, *types: type[Node]) -> list[Node]:
        """All nodes of these exact types, in source order for one type."""
        return self.index.nodes(*types)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds this one."""
        return self.index.parent(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Parents from the inside out."""
        return self.index.ancestors(node)

    def enclosing(self, node: ast.AST, *types: type[Node]) -> Node | None:
        """The innermost ancestor of one of these types."""
        return self.index.enclosing(node, *types)

    def function_of(self, node: ast.AST) -> FunctionNode | None:
        """The function around the node."""
        return self.index.function_of(node)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The class around the node."""
        return self.index.class_of(node)

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The statement around the node."""
        return self.index.statement_of(node)

    def loops_of(self, node: ast.AST) -> list[ast.For | ast.AsyncFor | ast.While]:
        """Loops around the node in its function, innermost first."""
        return self.index.loops_of(node)

    # Names and calls.

    def qualified(self, node: ast.AST | None) -> tuple[str, ...]:
        """Qualified names the expression may stand for; () when unknown. See Names.qualified."""
        return self.names.qualified(node)

    @cached_property
    def _calls_by_identifier(self) -> dict[str, list[ast.Call]]:
        found: dict[str, list[ast.Call]] = {}
        for call in self.nodes(ast.Call):
            if identifier := last_name(call.func):
                found.setdefault(identifier, []).append(call)
        return found

    @cached_property
    def _reads_by_identifier(self) -> dict[str, list[ast.expr]]:
        found: dict[str, list[ast.expr]] = {}
        for name in self.nodes(ast.Name):
            if type(name.ctx) is ast.Load:
                found.setdefault(name.id, []).append(name)
        for attribute in self.nodes(ast.Attribute):
            if type(attribute.ctx) is ast.Load:
                found.setdefault(attribute.attr, []).append(attribute)
        return found

    def _identifiers(self, names: Iterable[str]) -> set[str]:
        return set().union(*(last_parts(name) for name in names)) | self.scopes.alias_identifiers

    def calls(self, *names: str) -> list[ast.Call]:
        """Calls of these qualified names, such as ``calls("torch.softmax", "torch.nn.functional.softmax")``."""
        wanted, table = set(names), self._calls_by_identifier
        candidates = [call for identifier in self._identifiers(names) for call in table.get(identifier, ())]
        return _in_order([call for call in candidates if not wanted.isdisjoint(self.qualified(call.func))])

    def method_calls(self, *methods: str) -> list[ast.Call]:
        """Calls ``anything.method(...)`` by the last name alone, module functions included."""
        candidates = [call for method in methods for call in self._calls_by_identifier.get(method, ())]
        return _in_order([call for call in candidates if isinstance(call.func, ast.Attribute)])

    def references(self, *names: str) -> list[ast.expr]:
        """Names and attributes that are read anywhere and stand for one of these qualified names."""
        wanted, table = set(names), self._reads_by_identifier
        candidates = [node for identifier in self._identifiers(names) for node in table.get(identifier, ())]
        return _in_order([node for node in candidates if not wanted.isdisjoint(self.qualified(node))])

    def argument(self, call: ast.Call, name: str, position: int | None = None) -> ast.expr | None:
        """The argument called ``name``, or at ``position`` (0-based); None when it is not written in the call."""
        for keyword in call.keywords:
            if keyword.arg == name:
                return keyword.value
        if position is None or position >= len(call.args):
            return None
        splat = any(isinstance(item, ast.Starred) for item in call.args[: position + 1])
        return None if splat else call.args[position]

    def has_splat(self, call: ast.Call) -> bool:
        """Whether ``*args`` or ``**kwargs`` may pass arguments that cannot be seen."""
        starred = any(isinstance(item, ast.Starred) for item in call.args)
        return starred or any(keyword.arg is None for keyword in call.keywords)

    def definition(self, func: ast.expr) -> FunctionNode | None:
        """The function or method of this file that a call's ``func`` names."""
        return self.names.definition(func)

    def bindings(self, node: ast.expr) -> list[Binding]:
        """Every place that binds a name or an attribute of self."""
        return self.names.bindings(node)

    # Values.

    def values(self, node: ast.expr) -> list[ast.expr]:
        """Expressions the node may be; a leaf that cannot be followed stays a Name or Attribute."""
        return self.names.values(node)

    def constant(self, node: ast.expr | None) -> Any:
        """The constant value, or fold.UNKNOWN."""
        return self.folder.constant(node)

    def number(self, node: ast.expr | None) -> float | None:
        """The constant value as a float; None when there is none."""
        return self.folder.number(node)

    def dtypes(self, node: ast.expr | None) -> frozenset[str]:
        """Torch dtypes the expression may be, "?" among them for one that is not known."""
        return self.folder.dtypes(node)

    # Regions, kinds and flow.

    def regions(self, node: ast.AST) -> list[Region]:
        """With items and decorators in force at the node, innermost first."""
        return self.region_stacks.of(node)

    def autocast(self, node: ast.AST) -> Region | None:
        """The innermost autocast region, also one with ``enabled=False``."""
        return self.region_stacks.autocast(node)

    def in_autocast(self, node: ast.AST) -> bool:
        """Whether autocast is or may be on at the node."""
        return self.region_stacks.in_autocast(node)

    def no_grad(self, node: ast.AST) -> bool:
        """Whether gradients are off at the node."""
        return self.region_stacks.no_grad(node)

    def kind(self, node: ast.expr) -> Kind:
        """Scaler, optimizer, scheduler, accelerator, ... or "unknown"."""
        return self.kinds.of(node)

    @property
    def frameworks(self) -> frozenset[str]:
        """Training frameworks that the file imports."""
        return self.kinds.frameworks

    @property
    def flows(self) -> list[Flow]:
        """Control flows of the file: one for each root function."""
        return self._flows.all

    @property
    def events(self) -> list[Event]:
        """Every event of the file once, in source order."""
        return self._flows.events

    # Text and findings.

    @cached_property
    def lines(self) -> list[str]:
        """Lines without their ends."""
        return _NEWLINE.split(self.text)

    @cached_property
    def newline(self) -> str:
        """The line end of the file's first line."""
        found = _NEWLINE.search(self.text)
        return found.group() if found else "\n"

    def column(self, line: int, offset: int) -> int:
        """1-based column in characters of a byte offset in a line."""
        text = self.lines[line - 1]
        return offset + 1 if text.isascii() else len(text.encode()[:offset].decode(errors="replace")) + 1

    def span(self, node: ast.AST) -> Span:
        """Where a node with a position stands."""
        line, end = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        start_offset, end_offset = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
        return Span(line, self.column(line, start_offset), end, self.column(end, end_offset))

    def segment(self, node: ast.AST) -> str:
        """The source text of a node."""
        span = self.span(node)
        lines = self.lines[span.line - 1 : span.end_line]
        lines[-1] = lines[-1][: span.end_column - 1]
        lines[0] = lines[0][span.column - 1 :]
        return "\n".join(lines)

    def location(self, node: ast.AST) -> Location:
        """The node's place, for a finding."""
        span = self.span(node)
        return Location(self.path, span.line, span.column, span.end_line, span.end_column)

    def finding(
        self, rule: SourceRule, node: ast.AST, message: str, *, severity: Severity | None = None,
        evidence: Mapping[str, Any] | None = None, fix: Fix | None = None,
    ) -> Finding:  # fmt: skip
        """A finding of ``rule`` at ``node``."""
        return Finding(
            rule.code, rule.name, rule.severity if severity is None else severity, message, self.location(node),
            evidence=evidence or {}, fix=fix,
        )  # fmt: skip

    @cached_property
    def tokens(self) -> list[tokenize.TokenInfo]:
        """Tokens of the file, for edits that need to see commas and comments."""
        return list(tokenize.generate_tokens(io.StringIO(self.text).readline))


def parse(text: str) -> ast.Module:
    """The syntax tree of a text.

    Raises:
        SyntaxError: the text is no Python 3; also for null bytes and for nesting that the parser gives up on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings are not our subject
        try:
            return ast.parse(text)
        except (RecursionError, MemoryError) as error:
            raise SyntaxError("nested too deeply for Python's parser") from error
        except SyntaxError:
            raise
        except ValueError as error:
            raise SyntaxError(str(error)) from error


def _in_order(nodes: list[_Expression]) -> list[_Expression]:
    return sorted(dict.fromkeys(nodes), key=lambda node: (node.lineno, node.col_offset))

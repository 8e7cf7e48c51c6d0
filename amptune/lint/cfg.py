"""The control flow of a function, reduced to what matters: events, conditions, loops.

Statements that hold no event are left out, save for what they do to the conditions that are tested. Helper functions
and methods of the same file are inlined where they are called.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Sequence, Set

from amptune.lint.cfgnodes import Cfg, CfgNode, Edge
from amptune.lint.events import Classifier
from amptune.lint.index import FUNCTIONS, FunctionNode, TreeIndex
from amptune.lint.names import Names
from amptune.lint.scopes import Scopes, parameters_with_defaults
from amptune.lint.statements import (
    JUMPS,
    assigned_names,
    evaluation_order,
    nested_statements,
    sets_flag,
    target_names,
)
from amptune.lint.words import Atom, Words

MAX_NODES = 4000
MAX_DEPTH = 5
_MAX_TERMS = 8
_EXITS = (("sys.exit",), ("exit",), ("quit",), ("os._exit",))


@dataclasses.dataclass
class _Frame:
    """Where the jumps of the code that is being lowered lead."""

    words: Words
    function: FunctionNode | None
    exit: int
    calls: tuple[ast.Call, ...] = ()
    loops: tuple[int, ...] = ()
    continue_to: int | None = None
    break_to: int | None = None
    handlers: tuple[int, ...] = ()
    guards: frozenset[str] = frozenset()


class CfgBuilder:
    """Lowers one function.

    Args:
        relevant: nodes that are or hold an event or a call that is inlined.
        inlined: call -> function of this file that it enters.
    """

    def __init__(
        self,
        index: TreeIndex,
        scopes: Scopes,
        names: Names,
        classifier: Classifier,
        relevant: Set[ast.AST],
        inlined: dict[ast.Call, FunctionNode],
    ) -> None:
        self._index = index
        self._scopes = scopes
        self._names = names
        self._classifier = classifier
        self._relevant = relevant
        self._inlined = inlined
        self._nodes: list[CfgNode] = []
        self._functions: set[FunctionNode | None] = set()
        self._is_whole = True
        self._lower: dict[type[ast.stmt], Callable[..., int | None]] = {
            ast.If: self._if, ast.For: self._for, ast.AsyncFor: self._for, ast.While: self._while, ast.Try: self._try,
            ast.With: self._with, ast.AsyncWith: self._with, ast.Match: self._match, ast.Return: self._return,
            ast.Raise: self._raise, ast.Break: self._break, ast.Continue: self._continue,
        }  # fmt: skip
        if hasattr(ast, "TryStar"):
            self._lower[ast.TryStar] = self._try

    def build(self, function: FunctionNode | None) -> Cfg:
        """The graph of a function, or of the module's own statements for None."""
        self._nodes = [CfgNode(), CfgNode()]
        self._functions = {function}
        self._is_whole = True
        body = self._index.tree.body if function is None else function.body
        frame = _Frame(Words(self._scopes, self._names, function), function, exit=1)
        end = self._statements(body, 0, frame)
        if end is not None:
            self._link(end, 1)
        return Cfg(self._nodes, self._functions, self._is_whole)

    def _new(self, frame: _Frame, **fields: object) -> int:
        self._nodes.append(CfgNode(loops=frame.loops, guards=frame.guards, **fields))  # type: ignore[arg-type]
        return len(self._nodes) - 1

    def _link(
        self, source: int, target: int, atom: Atom | None = None, value: bool = True, back: int | None = None
    ) -> None:
        if atom is not None and atom.constant is not None:
            if atom.constant is not value:
                return
            atom = None
        self._nodes[source].edges.append(Edge(target, atom, value, back))

    def _after(self, at: int, frame: _Frame, **fields: object) -> int:
        node = self._new(frame, **fields)
        self._link(at, node)
        return node

    def _statements(self, body: Sequence[ast.stmt], at: int | None, frame: _Frame) -> int | None:
        for statement in body:
            if at is None:
                return None
            lower = self._lower.get(type(statement))
            if lower is None or not self._matters(statement):
                at = self._plain(statement, at, frame)
            else:
                at = lower(statement, at, frame)
        return at

    def _matters(self, statement: ast.stmt) -> bool:
        """Whether the shape of a compound statement can change the order of events or what is known."""
        if statement in self._relevant or isinstance(statement, ast.Return | ast.Raise | ast.Break | ast.Continue):
            return True
        if isinstance(statement, ast.If | ast.With | ast.Try | ast.Match):
            return any(isinstance(node, JUMPS) or sets_flag(node) for node in nested_statements(statement))
        return isinstance(statement, ast.For | ast.While) and any(
            isinstance(node, ast.Return) for node in nested_statements(statement)
        )

    def _plain(self, statement: ast.stmt, at: int, frame: _Frame) -> int | None:
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            return at
        if statement in self._relevant:
            at = self._expressions(statement, at, frame)
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and self._names.qualified(call.func) in _EXITS:
            return None
        killed = assigned_names(statement, frame.words)
        if not killed:
            return at
        return self._after(at, frame, killed=frozenset(killed), known=self._known(statement, frame))

    def _known(self, statement: ast.stmt, frame: _Frame) -> tuple[tuple[str, bool], ...]:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name | ast.Attribute):
            return ()
        value = statement.value
        truth: bool | None = None
        if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool)):
            truth = bool(value.value)
        elif isinstance(value, ast.Call) and self._classifier.makes_scaler(value):
            truth = True
        return () if truth is None else ((frame.words.text(statement.targets[0]), truth),)

    # Expressions: events in the order of evaluation.

    def _expressions(self, node: ast.AST, at: int, frame: _Frame) -> int:
        for child in evaluation_order(node):
            if child in self._relevant:
                at = self._expression(child, at, frame)
        return at

    def _expression(self, node: ast.AST, at: int, frame: _Frame) -> int:
        if isinstance(node, ast.Lambda | ast.stmt):
            return at
        if isinstance(node, ast.IfExp):
            return self._conditional(node, at, frame)
        at = self._expressions(node, at, frame)
        if isinstance(node, ast.Call) and node in self._inlined:
            return self._inline(node, at, frame)
        if isinstance(node, ast.Call | ast.Attribute) and self._classifier.may_be_event(node):
            event = self._classifier.event(node, frame.words, frame.calls)
            if event is not None:
                return self._after(at, frame, event=event)
        return at

    def _conditional(self, node: ast.IfExp, at: int, frame: _Frame) -> int:
        yes, no = self._new(frame), self._new(frame)
        frame = self._guarded(frame, self._branch(node.test, at, yes, no, frame))
        join = self._new(frame)
        for start, part in ((yes, node.body), (no, node.orelse)):
            end = self._expression(part, start, frame) if part in self._relevant else start
            self._link(end, join)
        return join

    def _branch(self, test: ast.expr, at: int, yes: int, no: int, frame: _Frame, depth: int = 0) -> set[str]:
        """Control goes to ``yes`` when the test holds, else to ``no``; and, or and not become branches of their own.

        Returns the texts of the atoms in the test.
        """
        if depth == 0 and test in self._relevant:
            at = self._expression(test, at, frame)
        test = frame.words.unfold(test) if depth < _MAX_TERMS else test
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._branch(test.operand, at, no, yes, frame, depth + 1)
        if isinstance(test, ast.BoolOp) and len(test.values) > 1 and depth < _MAX_TERMS:
            rest = test.values[1] if len(test.values) == 2 else ast.BoolOp(test.op, test.values[1:])
            middle = self._new(frame)
            first = (middle, no) if isinstance(test.op, ast.And) else (yes, middle)
            atoms = self._branch(test.values[0], at, *first, frame, depth + 1)
            return atoms | self._branch(rest, middle, yes, no, frame, depth + 1)
        atom = frame.words.atom(test)
        positive = atom.positive if atom else True
        self._link(at, yes, atom, positive)
        self._link(at, no, atom, not positive)
        return {atom.text} if atom else set()

    # Calls of functions in the same file.

    def _inline(self, call: ast.Call, at: int, frame: _Frame) -> int:
        function = self._inlined[call]
        entered = {self._inlined[outer] for outer in frame.calls} | {frame.function}
        if function in entered:
            return at
        if len(frame.calls) >= MAX_DEPTH or len(self._nodes) > MAX_NODES:
            self._is_whole = False
            return self._new(frame)  # nothing leads there
        self._functions.add(function)
        texts = self._arguments(call, function, frame)
        words = Words(self._scopes, self._names, function, texts, f"#{len(self._nodes)}", frame.words)
        end = self._new(frame)
        inner = _Frame(
            words, function, end, (*frame.calls, call), frame.loops, handlers=frame.handlers, guards=frame.guards
        )
        last = self._statements(function.body, at, inner)
        if last is not None:
            self._link(last, end)
        return end

    def _arguments(self, call: ast.Call, function: FunctionNode, frame: _Frame) -> dict[str, str]:
        parameters = list(parameters_with_defaults(function.args))
        names = [parameter.arg for parameter, _ in parameters]
        texts = {p.arg: frame.words.text(d) for p, d in parameters if isinstance(d, ast.Constant)}
        bound = self._scopes.self_name(function)
        positional = names
        if bound and isinstance(call.func, ast.Attribute):
            texts[bound] = frame.words.text(call.func.value)
            positional = names[1:]
        for name, value in zip(positional, call.args, strict=False):
            if isinstance(value, ast.Starred):
                break
            texts[name] = frame.words.text(value)
        for keyword in call.keywords:
            if keyword.arg in names:
                texts[keyword.arg] = frame.words.text(keyword.value)
        return texts

    # Compound statements.

    def _if(self, node: ast.If, at: int, frame: _Frame) -> int | None:
        yes, no = self._new(frame), self._new(frame)
        inner = self._guarded(frame, self._branch(node.test, at, yes, no, frame))
        return self._join([self._statements(node.body, yes, inner), self._statements(node.orelse, no, inner)], frame)

    def _guarded(self, frame: _Frame, atoms: set[str]) -> _Frame:
        return dataclasses.replace(frame, guards=frame.guards | atoms)

    def _join(self, ends: list[int | None], frame: _Frame) -> int | None:
        open_ends = [end for end in ends if end is not None]
        if not open_ends:
            return None
        join = self._new(frame)
        for end in open_ends:
            self._link(end, join)
        return join

    # A loop is taken to run at least once: a path that skips it is not one that people write loops for.

    def _for(self, node: ast.For | ast.AsyncFor, at: int, frame: _Frame) -> int | None:
        if node.iter in self._relevant:
            at = self._expression(node.iter, at, frame)
        start, again, inner = self._loop(frame, frozenset(target_names(node.target, frame.words)))
        self._link(at, start)
        done = self._new(frame)
        self._link(again, start, back=start)
        self._link(again, done)
        return self._loop_body(node, start, again, done, inner, frame)

    def _while(self, node: ast.While, at: int, frame: _Frame) -> int | None:
        start, again, inner = self._loop(frame, frozenset())
        done, never, back = self._new(frame), self._new(frame), self._new(inner)
        self._branch(node.test, at, start, never, frame)
        self._branch(node.test, again, back, done, inner)
        self._link(back, start, back=start)
        return self._loop_body(node, start, again, done, inner, frame)

    def _loop(self, frame: _Frame, killed: frozenset[str]) -> tuple[int, int, _Frame]:
        """The node where an iteration starts, the one where it ends, and the frame of the body."""
        start = len(self._nodes)
        inner = dataclasses.replace(frame, loops=(*frame.loops, start))
        return self._new(inner, killed=killed), self._new(inner), inner

    def _loop_body(
        self, node: ast.For | ast.AsyncFor | ast.While, start: int, again: int, done: int, inner: _Frame, frame: _Frame
    ) -> int:
        after = self._new(frame)
        end = self._statements(node.body, start, dataclasses.replace(inner, continue_to=again, break_to=after))
        if end is not None:
            self._link(end, again)
        end = self._statements(node.orelse, done, frame)
        if end is not None:
            self._link(end, after)
        return after

    def _try(self, node: ast.Try, at: int, frame: _Frame) -> int | None:
        # A handler starts from the state before the body: an exception between two events is not a path of its own.
        entries = [self._new(frame) for _ in node.handlers]
        for entry in entries:
            self._link(at, entry)
        inner = dataclasses.replace(frame, handlers=tuple(entries)) if entries else frame
        end = self._statements(node.body, at, inner)
        ends = [self._statements(node.orelse, end, frame)]
        ends += [
            self._statements(handler.body, entry, frame) for handler, entry in zip(node.handlers, entries, strict=True)
        ]
        join = self._join(ends, frame)
        return self._statements(node.finalbody, join, frame) if join is not None else None

    def _with(self, node: ast.With | ast.AsyncWith, at: int, frame: _Frame) -> int | None:
        for item in node.items:
            if item.context_expr in self._relevant:
                at = self._expression(item.context_expr, at, frame)
        return self._statements(node.body, at, frame)

    def _match(self, node: ast.Match, at: int, frame: _Frame) -> int | None:
        if node.subject in self._relevant:
            at = self._expression(node.subject, at, frame)
        ends: list[int | None] = []
        for case in node.cases:
            start = self._after(at, frame)
            ends.append(self._statements(case.body, start, frame))
        last = node.cases[-1].pattern
        if not (isinstance(last, ast.MatchAs) and last.pattern is None and node.cases[-1].guard is None):
            ends.append(at)
        return self._join(ends, frame)

    def _return(self, node: ast.Return, at: int, frame: _Frame) -> None:
        if node in self._relevant:
            at = self._expressions(node, at, frame)
        self._link(at, frame.exit)

    def _raise(self, node: ast.Raise, at: int, frame: _Frame) -> None:
        for handler in frame.handlers:
            self._link(at, handler)

    def _break(self, node: ast.Break, at: int, frame: _Frame) -> None:
        if frame.break_to is not None:
            self._link(at, frame.break_to)

    def _continue(self, node: ast.Continue, at: int, frame: _Frame) -> None:
        if frame.continue_to is not None:
            self._link(at, frame.continue_to)

"""What the gradient scaler rules share: questions about events, scalers and the order of plain statements."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Sequence

from amptune.lint.events import Event
from amptune.lint.flow import Flow
from amptune.lint.index import FUNCTIONS, last_name
from amptune.lint.source import SourceFile

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_NON_FINITE = frozenset({"isnan", "isinf", "isfinite", "isneginf", "isposinf"})
_FOUND_INF = ("found_inf", "is_nan", "is_inf", "has_nan", "has_inf", "nonfinite", "non_finite", "overflow", "is_finite")


def receiver(event: Event) -> ast.expr | None:
    """The object whose method an event calls: ``scaler`` of ``scaler.step(optimizer)``."""
    call = event.node
    return call.func.value if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None


def is_gradient_scaler(source: SourceFile, flow: Flow, scaler: str, event: Event) -> bool:
    """Whether what looks like a scaler is a gradient scaler that may be on: torch makes it, or it is used as one."""
    node = receiver(event)
    if node is None or source.kinds.is_switched_off(node):
        return False
    if any(source.kinds.is_scaler_constructor(call) for call in source.kinds.constructors_of(node)):
        return True
    return len({other.kind for other in flow.events if other.scaler == scaler and other.kind != "handed"}) > 1


def may_be_same_scaler(source: SourceFile, a: Event, b: Event) -> bool:
    """Whether events of two functions may be of one scaler: what makes it, where seen, decides, else its name."""
    makers = [
        {call for call in source.kinds.constructors_of(node) if source.kinds.is_scaler_constructor(call)}
        for node in (receiver(a), receiver(b))
        if node is not None
    ]
    if len(makers) == 2 and all(makers):
        return not makers[0].isdisjoint(makers[1])
    return _is_given(source, a) or _is_given(source, b) or _own_name(a) == _own_name(b)


def _is_given(source: SourceFile, event: Event) -> bool:
    """Whether the function of the event gets the scaler from whoever calls it."""
    return any(binding.kind == "parameter" for binding in source.bindings(receiver(event) or event.node))


def _own_name(event: Event) -> str:
    return event.scaler_name.rpartition(".")[2]


def of_scaler(kinds: Collection[str], scaler: str) -> Callable[[Event], bool]:
    """A blocker for ``Flow.path``: events of some kinds of one scaler."""
    return lambda event: event.kind in kinds and event.scaler == scaler


def same_optimizer(a: str, b: str) -> bool:
    """Whether two optimizer texts name the same optimizer, as far as can be told; items of a list may be the same."""
    return a == b or "[" in a or "[" in b


def varies(source: SourceFile, node: ast.expr | None, calls: Sequence[ast.Call] = ()) -> bool:
    """Whether an object may be another one each time the line runs: a loop variable, or an item of a container.

    ``calls`` are those of the event, through which a helper's parameters are followed to what the caller hands over.
    """
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Subscript) and not isinstance(part.slice, ast.Constant):
            return True
        bindings = source.bindings(part) if isinstance(part, ast.Name) else []
        if any(item.kind in ("loop", "unpack") for item in bindings):
            return True
        if calls and any(item.kind == "parameter" for item in bindings):
            assert isinstance(part, ast.Name)
            handed = _handed_over(source, calls[-1], part.id)
            if handed is not None and varies(source, handed, calls[:-1]):
                return True
    return False


def _handed_over(source: SourceFile, call: ast.Call, parameter: str) -> ast.expr | None:
    """The argument that a call of a function of this file gives to a parameter."""
    function = source.definition(call.func)
    if function is None:
        return None
    names = [item.arg for item in (*function.args.posonlyargs, *function.args.args)]
    if source.scopes.self_name(function) and isinstance(call.func, ast.Attribute):
        names = names[1:]
    return source.argument(call, parameter, names.index(parameter) if parameter in names else None)


def block_of(source: SourceFile, statement: ast.stmt) -> list[ast.stmt]:
    """The statements of the block that holds a statement."""
    parent = source.parent(statement)
    for name in _BLOCKS:
        block = getattr(parent, name, None)
        if isinstance(block, list) and statement in block:
            return block
    return [statement]


def runs_before(source: SourceFile, first: ast.AST, second: ast.AST) -> bool:
    """Whether one node runs before the other each time both run, by their places in nested blocks of one function."""
    places = {id(block): index for block, index in _places(source, first)}
    for block, index in _places(source, second):
        if id(block) in places:
            return places[id(block)] < index
    return False


def _places(source: SourceFile, node: ast.AST) -> Iterator[tuple[list[ast.stmt], int]]:
    """The blocks around a node, inside out, each with the position of the statement that holds it."""
    statement: ast.AST | None = source.statement_of(node)
    while isinstance(statement, ast.stmt) and not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        block = block_of(source, statement)
        yield block, block.index(statement)
        statement = source.parent(statement)
        while isinstance(statement, ast.ExceptHandler | ast.match_case):
            statement = source.parent(statement)


def asks_finiteness(source: SourceFile, test: ast.expr, depth: int = 0) -> bool:
    """Whether a condition asks if something is NaN or infinite."""
    for part in ast.walk(test):
        if isinstance(part, ast.Call) and last_name(part.func) in _NON_FINITE:
            return True
        if isinstance(part, ast.Name | ast.Attribute):
            name = last_name(part).lower()
            if any(word in name for word in _FOUND_INF):
                return True
            if depth < 2 and any(
                asks_finiteness(source, value, depth + 1)
                for value in source.values(part)
                if value is not part and isinstance(value, ast.Call | ast.UnaryOp | ast.BoolOp | ast.Compare)
            ):
                return True
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.NotEq):
            itself = ast.dump(part.left) == ast.dump(part.comparators[0])  # x != x
            if itself:
                return True
    return False


def is_alternative(source: SourceFile, node: ast.AST, kind: str) -> bool:
    """Whether the node is one side of a condition whose other side has an event of a kind through the scaler.

    Such pairs are the branches with and without mixed precision, whatever the condition is called.
    """
    others = [event.node for event in source.events if event.kind == kind and event.scaler]
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, FUNCTIONS):
            break
        if isinstance(ancestor, ast.If) and not _asks_progress(source, ancestor.test):
            side = ancestor.orelse if child in ancestor.body else ancestor.body
            if any(source.index.is_inside(other, item) for other in others for item in side):
                return True
        child = ancestor
    return False


def _asks_progress(source: SourceFile, test: ast.expr) -> bool:
    """Whether a condition compares numbers, as ``step < 100`` or ``i % n == 0`` do: no switch of the precision."""
    tests = [leaf for part in ast.walk(test) if isinstance(part, ast.expr) for leaf in (part, *source.values(part))]
    return any(
        (isinstance(item, ast.Compare) and isinstance(item.ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE))
        or (isinstance(item, ast.BinOp) and isinstance(item.op, ast.Mod))
        for item in tests
    )


def nonfinite_exits(source: SourceFile) -> list[tuple[ast.If, ast.stmt]]:
    """``if loss is NaN: continue`` and its like: the if, and the continue or return that leaves."""
    found: list[tuple[ast.If, ast.stmt]] = []
    for node in source.nodes(ast.If):
        jump = next((item for item in node.body if isinstance(item, ast.Continue | ast.Return)), None)
        if jump is not None and asks_finiteness(source, node.test):
            found.append((node, jump))
    return found

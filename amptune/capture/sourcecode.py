"""The code of a functional op (``Class.forward#op.n``) from the position of its call."""

from __future__ import annotations

import linecache
from collections.abc import Sequence

from amptune.capture.where import Position
from amptune.core.opcodes import FunctionalOp, find_functional_ops


def code_at(position: Position, op: str) -> str:
    """The code of the call that ends at ``position``; the only call of ``op`` on that line; else empty.

    The end decides: the interpreter starts a method call of several lines at the method's name.
    """
    ops = _ops_of(position.filename)
    location = position.location()
    end = (location.end_line, location.end_column)
    ending = [found for found in ops if (found.end_line, found.end_column) == end]
    exact = [found for found in ending if found.op == op] or ending
    if len(exact) == 1:
        return exact[0].code
    same_line = [found for found in ops if found.line <= position.line <= found.end_line and found.op == op]
    return same_line[0].code if len(same_line) == 1 else ""


def _ops_of(filename: str) -> Sequence[FunctionalOp]:
    lines = linecache.getlines(filename)
    known = _known.get(filename)
    if known is None or known[0] is not lines:  # linecache hands out one list as long as the file stays the same
        known = _known[filename] = lines, _found("".join(lines))
    return known[1]


_known: dict[str, tuple[Sequence[str], Sequence[FunctionalOp]]] = {}


def _found(text: str) -> Sequence[FunctionalOp]:
    try:
        return find_functional_ops(text)
    except SyntaxError:  # code made at run time: nothing to point at
        return ()

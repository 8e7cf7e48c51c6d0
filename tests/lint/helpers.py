"""Small ways into a SourceFile."""

from __future__ import annotations

import ast
import textwrap

from amptune.lint.source import SourceFile


def source_of(code: str) -> SourceFile:
    return SourceFile("a.py", textwrap.dedent(code))


def marked(source: SourceFile, name: str = "HERE") -> ast.expr:
    """The argument of the call ``HERE(...)``."""
    calls = [call for call in source.nodes(ast.Call) if isinstance(call.func, ast.Name) and call.func.id == name]
    assert len(calls) == 1
    return calls[0].args[0]

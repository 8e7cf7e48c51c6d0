"""The functions in a file of the user's, as Python parses them."""

from __future__ import annotations

import ast
import functools

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.lru_cache(maxsize=64)
def functions_in(source: str) -> tuple[Function, ...]:
    """All functions and methods; none of what does not parse, as code made at run time."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, Function))

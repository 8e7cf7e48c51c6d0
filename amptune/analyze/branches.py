"""Numbers that the user's code chooses by dtype: a capture in FP32 sees the one for FP32, FP16 takes the other."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amptune.core.formats import Format
from amptune.core.graph import Site

_HALF = frozenset({"float16", "half"})
_NUMBERS = ("value", "fill_value", "min", "max", "min_val", "max_val")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def asked_for_half(site: Site, found: Mapping[str, Any]) -> int | None:
    """The line that asks whether a dtype is float16, where it decides about a number of a site that FP16 cannot hold.

    Args:
        site: an op of the user's code.
        found: what is told of it beside its arguments.
    """
    if site.is_module or site.location is None or not any(_is_outside(each) for each in _numbers(site, found)):
        return None
    location = site.location
    return _asking(location.path, location.line, location.end_line or location.line)


def _numbers(site: Site, found: Mapping[str, Any]) -> Iterator[float]:
    given = [*(site.attrs.get("scalars") or {}).values(), *(site.attrs.get(name) for name in _NUMBERS)]
    yield from (float(each) for each in given if isinstance(each, int | float) and not isinstance(each, bool))
    for low, high in (found.get("bounds") or {}).values():
        yield from (low, high)


def _is_outside(number: float) -> bool:
    return bool(Format.FP16.max < abs(number) < math.inf)


@functools.lru_cache(maxsize=4096)
def _asking(path: str, line: int, end_line: int) -> int | None:
    """The test that the statement at some lines stands under, holds itself, or reads a name from."""
    inside = [each for each in _functions(path) if each.lineno <= line <= (each.end_lineno or each.lineno)]
    if not inside:
        return None
    own = max(inside, key=lambda each: each.lineno)
    here = [
        each
        for each in ast.walk(own)
        if isinstance(each, ast.expr) and line <= each.lineno and (each.end_lineno or each.lineno) <= end_line
    ]
    read = {each.id for each in here if isinstance(each, ast.Name)}
    for test, names, lines in _choices(own):
        if test.lineno <= line and (line in lines or names & read):
            return test.lineno
    return None


def _choices(function: _Function) -> Iterator[tuple[ast.expr, set[str], range]]:
    """Tests of a dtype for float16, with the names that they decide about and the lines that stand under them."""
    for node in ast.walk(function):
        if isinstance(node, ast.If) and _asks_for_half(node.test):
            body = [*node.body, *node.orelse]
            yield node.test, set(_assigned(body)), range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, ast.stmt) and not isinstance(node, _Function | ast.If | ast.For | ast.While | ast.With):
            for each in ast.walk(node):
                if isinstance(each, ast.IfExp) and _asks_for_half(each.test):
                    lines = range(each.lineno, (each.end_lineno or each.lineno) + 1)
                    yield each.test, set(_assigned([node])), lines


def _assigned(body: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in body:
        for each in ast.walk(statement):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                yield each.id


def _asks_for_half(test: ast.expr) -> bool:
    names = {each.attr for each in ast.walk(test) if isinstance(each, ast.Attribute)}
    return "dtype" in names | {each.id for each in ast.walk(test) if isinstance(each, ast.Name)} and bool(names & _HALF)


@functools.lru_cache(maxsize=64)
def _functions(path: str) -> tuple[_Function, ...]:
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # code made at run time: nothing to look into
        return ()
    return tuple(each for each in ast.walk(tree) if isinstance(each, _Function))

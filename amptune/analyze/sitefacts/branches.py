"""Numbers that the user's code chooses by dtype: a capture in FP32 sees the one for FP32, FP16 takes the other."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amptune.analyze.sitefacts.userfunctions import Function, functions_in
from amptune.core.formats import Format
from amptune.core.graph import Site

_FORMATS = frozenset({"float16", "half", "float32", "float"})
_WIDTHS = frozenset({"itemsize", "element_size", "bits", "is_autocast_enabled", "get_autocast_dtype"})
"""Names that tell 16 bits from 32 without one of a format."""
_NUMBERS = ("value", "fill_value", "min", "max", "min_val", "max_val")


def asked_for_half(site: Site, found: Mapping[str, Any]) -> int | None:
    """The line that asks for the precision, where it decides about a number of a site that FP16 cannot hold.

    Args:
        site: an op of the user's code.
        found: what is told of it beside its arguments.
    """
    if site.is_module or site.location is None or not any(_is_outside(each) for each in _numbers(site, found)):
        return None
    location = site.location
    return _asking(_text(location.path), location.line, location.end_line or location.line)


def _numbers(site: Site, found: Mapping[str, Any]) -> Iterator[float]:
    given = [*(site.attrs.get("scalars") or {}).values(), *(site.attrs.get(name) for name in _NUMBERS)]
    yield from (float(each) for each in given if isinstance(each, int | float) and not isinstance(each, bool))
    for low, high in (found.get("bounds") or {}).values():
        yield from (low, high)


def _is_outside(number: float) -> bool:
    return bool(Format.FP16.max < abs(number) < math.inf)


def _asking(source: str, line: int, end_line: int) -> int | None:
    """The test that the statement at some lines stands under, holds itself, or reads a name from."""
    inside = [each for each in functions_in(source) if each.lineno <= line <= (each.end_lineno or each.lineno)]
    if not inside:
        return None
    own = max(inside, key=lambda each: each.lineno)
    here = [
        each
        for each in ast.walk(own)
        if isinstance(each, ast.expr) and line <= each.lineno and (each.end_lineno or each.lineno) <= end_line
    ]
    read = {each.id for each in here if isinstance(each, ast.Name)}
    for test, names, lines in _choices(own, _helpers(source)):
        if test.lineno <= line and (line in lines or names & read):
            return test.lineno
    return None


def _choices(function: Function, helpers: frozenset[str]) -> Iterator[tuple[ast.expr, set[str], range]]:
    """Tests for the precision, with the names that they decide about and the lines that stand under them."""
    for node in ast.walk(function):
        if isinstance(node, ast.If) and _asks_for_half(node.test):
            body = [*node.body, *node.orelse]
            last = (function.end_lineno if _returns_other(node) else node.end_lineno) or node.lineno
            yield node.test, set(_assigned(body)), range(node.lineno, last + 1)
        elif isinstance(node, ast.stmt) and not isinstance(node, Function | ast.If | ast.For | ast.While | ast.With):
            for each in ast.walk(node):
                if isinstance(each, ast.expr) and (test := _choice(each, helpers)) is not None:
                    lines = range(test.lineno, (each.end_lineno or each.lineno) + 1)
                    yield test, set(_assigned([node])), lines


def _returns_other(branch: ast.If) -> bool:
    """Whether a branch returns what it computes with a number of its own: what follows it is the other one."""
    numbers = (each for part in branch.body for each in ast.walk(part) if isinstance(each, ast.expr))
    return isinstance(branch.body[-1], ast.Return) and any(_is_number(each) for each in numbers)


def _choice(value: ast.expr, helpers: frozenset[str]) -> ast.expr | None:
    """What chooses by dtype in an expression: a test in it, a look into a table, the call of a function that does."""
    if isinstance(value, ast.IfExp) and _asks_for_half(value.test):
        return value.test
    if isinstance(value, ast.Subscript):
        return value if _is_dtype(value.slice) else None
    if not isinstance(value, ast.Call):
        return None
    is_get = isinstance(value.func, ast.Attribute) and value.func.attr == "get" and bool(value.args)
    is_table = is_get and _is_dtype(value.args[0])
    return value if is_table or _is_limited(value) or _called(value) in helpers else None


def _is_limited(call: ast.Call) -> bool:
    """``max(-1e9, torch.finfo(x.dtype).min)``."""
    names = (getattr(each, "attr", getattr(each, "id", "")) for part in call.args for each in ast.walk(part))
    return _called(call) in ("max", "min") and "finfo" in names


def _is_dtype(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute | ast.Name) and getattr(value, "attr", getattr(value, "id", "")) == "dtype"


def _called(call: ast.Call) -> str:
    """The name that is called: of a function, or of a method of the model's own."""
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "self":
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


@functools.lru_cache(maxsize=64)
def _helpers(source: str) -> frozenset[str]:
    """Functions of a file that return a number that they choose by dtype."""
    return frozenset(each.name for each in functions_in(source) if _returns_choice(each))


def _returns_choice(function: Function) -> bool:
    numbers = {
        target.id
        for each in ast.walk(function)
        if isinstance(each, ast.Assign) and any(_is_number(value) for value in _results(each.value))
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    choices = list(_choices(function, frozenset()))
    return any(
        (_is_number(value) and each.lineno in lines)
        or (isinstance(value, ast.Name) and value.id in names & numbers)
        or value is test
        for each in ast.walk(function)
        if isinstance(each, ast.Return)
        for value in _results(each.value)
        for test, names, lines in choices
    )


def _results(value: ast.expr | None) -> Iterator[ast.expr]:
    """What an expression comes to: both sides of a choice."""
    if isinstance(value, ast.IfExp):
        yield from (*_results(value.body), *_results(value.orelse))
    elif value is not None:
        yield value


def _is_number(value: ast.expr) -> bool:
    if isinstance(value, ast.UnaryOp):
        value = value.operand
    return isinstance(value, ast.Constant) and isinstance(value.value, int | float)


def _assigned(body: Iterable[ast.stmt]) -> Iterator[str]:
    for statement in body:
        for each in ast.walk(statement):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                yield each.id


def _asks_for_half(test: ast.expr) -> bool:
    names = {each.attr for each in ast.walk(test) if isinstance(each, ast.Attribute)}
    names |= {each.id for each in ast.walk(test) if isinstance(each, ast.Name)}
    return ("dtype" in names and bool(names & _FORMATS)) or bool(names & _WIDTHS)


def _text(path: str) -> str:
    """The file as it is now, which may have changed since it was looked at last; empty for code made at run time."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

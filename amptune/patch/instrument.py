"""Source for trials: every op that a plan may pin goes through a lookup, so that one module serves all trials."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import libcst as cst

from amptune.core.chains import find_chains
from amptune.core.opcodes import FunctionalOp, find_functional_ops
from amptune.patch.pins import rewrite_ops
from amptune.patch.text import BOM, newline_of, parse

if TYPE_CHECKING:
    from amptune.core.graph import Site

_PINNED, _TORCH, _OPERATOR = "_amptune_pinned", "_amptune_torch", "_amptune_operator"
_IMPORTS = (
    f"import operator as {_OPERATOR}",
    f"import torch as {_TORCH}",
    f"from amptune.runtime import pinned as {_PINNED}",
)


def instrument_source(source: str, codes: Collection[str]) -> str:
    """``source`` with each op of ``codes`` as ``pinned("code", F.softmax)(x, -1)``, which the runtime looks up.

    The arithmetic that may stand between two of them is looked up too.
    No line moves, so that errors and captures point at the user's lines. A code that the file does not have, or that
    cannot be pinned, is left out.

    Raises:
        InputError: the file is not Python.
    """
    text = source.removeprefix(BOM)
    parse(text, "the model's file")

    def wrap(op: FunctionalOp, function: cst.BaseExpression) -> cst.BaseExpression:
        code = cst.SimpleString(f'"{op.code}"')
        comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        return cst.Call(cst.Name(_PINNED), [cst.Arg(code, comma=comma), cst.Arg(function)])

    chosen = find_chains(text, codes).between.union(codes)
    module, done = rewrite_ops(text, dict.fromkeys(chosen), wrap, torch=_TORCH, operator=_OPERATOR)
    return _with_imports(module).code if done else source


def pinnable_sites(source: str, path: Path, sites: Iterable[Site]) -> list[Site]:
    """The functional sites that a patch of this file can pin.

    An op that a package or another file of the user's calls has a code too, but its line is not in this file; nor can
    ``x *= 2`` be pinned.
    """
    codes = {op.code for op in find_functional_ops(source) if op.pinnable}
    here = path.resolve()
    return [
        site
        for site in sites
        if site.code in codes and site.location is not None and Path(site.location.path).resolve() == here
    ]


def _with_imports(module: cst.Module) -> cst.Module:
    """The imports on the line of the first import of the file, behind it; without one, at the end of the file."""
    for index, statement in enumerate(module.body):
        if isinstance(statement, cst.SimpleStatementLine) and _is_import(statement):
            body = [*module.body[:index], _extended(statement), *module.body[index + 1 :]]
            return module.with_changes(body=body)
    added = [cst.parse_statement(line) for line in _IMPORTS]
    if module.has_trailing_newline:
        return module.with_changes(body=[*module.body, *added])
    ended = cst.parse_module(module.code + newline_of(module.code))
    return ended.with_changes(body=[*ended.body, *added])


def _is_import(statement: cst.SimpleStatementLine) -> bool:
    """Whether the line ends with an import; one from ``__future__`` must stay first, and others may follow it."""
    return isinstance(statement.body[-1], (cst.Import, cst.ImportFrom))


def _extended(statement: cst.SimpleStatementLine) -> cst.SimpleStatementLine:
    small = [cst.ensure_type(cst.parse_statement(line), cst.SimpleStatementLine).body[0] for line in _IMPORTS]
    semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
    line = [part.with_changes(semicolon=semicolon) for part in [*statement.body, *small][:-1]]
    return statement.with_changes(body=[*line, small[-1]])

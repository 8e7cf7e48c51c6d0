"""What rules about old names share: which uses are certain, and which only run on old versions of torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from amptune.core.finding import Edit
from amptune.lint import edits
from amptune.lint.source import SourceFile

# Words of a test that choose between versions. A bare comparison with a number ("if num_gpus > 1") is none.
_VERSION = re.compile(
    r"version|hasattr|getattr|torch_?(?:v|ge|gt|le|lt|major|minor|new|old|\d)|\b(?:major|minor)\b|has_(?:new|torch|amp)|"
    r"(?:greater|less|newer|older)_?(?:or|than|eq)|at_least",
    re.IGNORECASE,
)


def certain_uses(source: SourceFile, names: Collection[str]) -> list[ast.expr]:
    """Reads that stand for exactly one of the names and are no fallback for another version of torch."""
    return [
        use
        for use in source.references(*names)
        if len(source.qualified(use)) == 1
        and not _is_part_of_longer(source, use, names)
        and not is_version_guarded(source, use)
        and all(
            binding.kind == "import" and not is_version_guarded(source, binding.node)
            for binding in source.bindings(root(use))
        )
    ]


def root(use: ast.expr) -> ast.expr:
    """The name that an attribute chain begins with."""
    while isinstance(use, ast.Attribute):
        use = use.value
    return use


def is_version_guarded(source: SourceFile, node: ast.AST) -> bool:
    """Whether the node runs only on some versions of a library.

    That is: in an ``except`` handler, in a ``try`` around an import, on one side of a test of a version or of
    ``hasattr``, or after such a test that leaves the block.
    """
    child = node
    for ancestor in source.ancestors(node):
        if isinstance(ancestor, ast.ExceptHandler):
            return True
        if isinstance(ancestor, ast.Try) and child in ancestor.body and isinstance(child, ast.Import | ast.ImportFrom):
            return True
        if isinstance(ancestor, ast.If | ast.IfExp) and child is not ancestor.test and _asks_version(source, ancestor):
            return True
        if isinstance(child, ast.stmt) and _follows_version_exit(source, ancestor, child):
            return True
        child = ancestor
    return False


def single_import_edit(source: SourceFile, statement: ast.ImportFrom, moved: Collection[str], new_module: str) -> Edit:
    """Rewrite ``from old import a, b`` so that the names in ``moved`` come from ``new_module``."""
    going = [_alias_text(alias) for alias in statement.names if alias.name in moved]
    staying = [_alias_text(alias) for alias in statement.names if alias.name not in moved]
    new = f"from {new_module} import {', '.join(going)}"
    if not staying:
        return edits.replace(source, statement, new)
    indent = source.lines[statement.lineno - 1][: statement.col_offset]
    old = f"from {statement.module} import {', '.join(staying)}"
    return edits.replace(source, statement, f"{old}{source.newline}{indent}{new}")


def _alias_text(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _is_part_of_longer(source: SourceFile, use: ast.expr, names: Collection[str]) -> bool:
    """Whether the use is the inner part of an attribute that is itself one of the names."""
    parent = source.parent(use)
    return isinstance(parent, ast.Attribute) and not set(names).isdisjoint(source.qualified(parent))


def _asks_version(source: SourceFile, node: ast.If | ast.IfExp) -> bool:
    """Whether the test, or the value of a name in it, speaks of versions."""
    if _VERSION.search(source.segment(node.test)):
        return True
    names = [item for item in ast.walk(node.test) if isinstance(item, ast.Name)]
    values = [binding.value for name in names for binding in source.bindings(name) if binding.kind == "assign"]
    return any(value is not None and _VERSION.search(source.segment(value)) for value in values)


def _follows_version_exit(source: SourceFile, block: ast.AST, statement: ast.stmt) -> bool:
    body = getattr(block, "body", None)
    if not isinstance(body, list) or statement not in body:
        return False
    return any(
        isinstance(earlier, ast.If)
        and isinstance(earlier.body[-1], ast.Return | ast.Raise | ast.Continue)
        and _asks_version(source, earlier)
        for earlier in body[: body.index(statement)]
    )

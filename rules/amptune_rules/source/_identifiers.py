"""Words that a file uses as names, for questions such as "is there anything called a loss scale here"."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.source import SourceFile


def identifiers(source: SourceFile) -> Iterator[str]:
    """Names, attributes, imported names, parameters, keywords, functions and classes; some more than once."""
    for name in source.nodes(ast.Name):
        yield name.id
    for attribute in source.nodes(ast.Attribute):
        yield attribute.attr
    for alias in source.nodes(ast.alias):
        yield alias.name
    for parameter in source.nodes(ast.arg):
        yield parameter.arg
    for keyword in source.nodes(ast.keyword):
        yield keyword.arg or ""
    for function in source.nodes(ast.FunctionDef):
        yield function.name
    for cls in source.nodes(ast.ClassDef):
        yield cls.name
    for origin in source.nodes(ast.ImportFrom):
        yield origin.module or ""


def strings(source: SourceFile) -> Iterator[str]:
    """String constants: keys, environment variables, options."""
    for constant in source.nodes(ast.Constant):
        if isinstance(constant.value, str):
            yield constant.value

"""Which class of a file is the model: the one that no other class of the file uses."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import ModuleType

from torch import nn

LOSS_SUFFIXES = ("Loss", "Criterion")


def model_classes(module: ModuleType, source: str) -> list[type[nn.Module]]:
    """The ``nn.Module`` classes of a file that could be its model, in order of appearance.

    Left out: classes that another class uses, directly or through a function of the file; bases without a forward of
    their own that another class of the file extends; and, where something else remains, classes named like a loss.
    """
    tree = ast.parse(source)
    own = _own_classes(module, tree)
    uses = _uses(tree)
    inner = {name for name in own for other in own if other != name and name in _reachable(other, uses)}
    free = [cls for name, cls in own.items() if name not in inner and not _is_bare_base(cls, own)]
    free = free or list(own.values())
    return [cls for cls in free if not cls.__name__.endswith(LOSS_SUFFIXES)] or free


def _own_classes(module: ModuleType, tree: ast.Module) -> dict[str, type[nn.Module]]:
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {name: getattr(module, name, None) for name in names}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }


def _is_bare_base(cls: type[nn.Module], own: dict[str, type[nn.Module]]) -> bool:
    extended = any(other is not cls and issubclass(other, cls) for other in own.values())
    return extended and cls.forward is nn.Module.forward


def _uses(tree: ast.Module) -> dict[str, set[str]]:
    """For each top-level class and function: the names its body loads (bases, annotations and isinstance left out)."""
    return {
        node.name: set(_loaded_names(node.body))
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def _loaded_names(body: list[ast.stmt]) -> Iterator[str]:
    todo: list[ast.AST] = list(body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif not (isinstance(node, ast.Call) and _is_type_check(node)):
            todo.extend(_children_without_annotations(node))


def _is_type_check(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in {"isinstance", "issubclass", "super"}


def _children_without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns"}:
            continue
        items = value if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, ast.AST))


def _reachable(start: str, uses: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in uses.get(todo.pop(), ()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen

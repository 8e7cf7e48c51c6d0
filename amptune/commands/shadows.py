"""A file of the user's that Python finds in place of a module of the same name, which others then miss things in."""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from amptune.errors import InputError


def shadowing(error: BaseException) -> InputError | None:
    """The message about such a file where ``error`` comes of one, else None.

    An import that fails, or a module that lacks a name, comes of one if a module in the working
    directory or the model's folder hides another one further on ``sys.path``, and the text names it.
    """
    for one in _chain(error):
        if not isinstance(one, ImportError | AttributeError):
            continue
        for name, path, hidden in _hiding():
            if f"'{name}'" in str(one) or f"'{name}." in str(one) or path in str(one):
                return InputError(
                    f"{path} is imported in place of the module {name} ({hidden}), which other packages need: {one}",
                    hint=f"rename {Path(path).name}, or move it to a folder that Python does not import from",
                )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _hiding() -> Iterator[tuple[str, str, str]]:
    """Name, file and hidden file of each module that hides another one."""
    for folder in _first_folders():
        for entry in sorted(folder.glob("*.py")) + sorted(folder.glob("*/__init__.py")):
            name = entry.stem if entry.parent == folder else entry.parent.name
            rest = [place for place in sys.path if Path(place or os.curdir).resolve() != folder]
            spec = importlib.machinery.PathFinder.find_spec(name, rest)
            hidden = spec.origin if spec is not None else None
            if hidden and Path(hidden).resolve() != entry.resolve():
                yield name, str(entry), hidden


def _first_folders() -> Iterator[Path]:
    """Folders on ``sys.path`` before Python's own."""
    own = {Path(os.__file__).parent.resolve(), Path(os.__file__).parent.parent.resolve()}
    for place in sys.path:
        folder = Path(place or os.curdir).resolve()
        if folder in own or folder.suffix == ".zip":
            return
        yield folder

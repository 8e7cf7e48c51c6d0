"""Executing a user's file as a module of its own, with its real name in tracebacks and its folder importable."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

from amptune.capture.usercode import UserCodeError, shown_path, user_code
from amptune.errors import TargetError

BOM = "\ufeff"
_PREFIX = "_amptune_target_"


def read_source(path: Path) -> str:
    """The text of a Python file.

    Raises:
        TargetError: it is missing, a folder, unreadable, or not Python text.
    """
    shown = shown_path(str(path))
    if path.is_dir():
        raise TargetError(f"{shown} is a folder", hint=f"name the file that holds the model, such as {shown}/model.py")
    if not path.exists():
        meant = path.with_name(f"{path.name}.py")
        near = (
            f"did you mean {shown}.py?" if meant.is_file() else "check the path; it is taken from the working directory"
        )
        raise TargetError(f"{shown} does not exist", hint=near)
    if path.suffix != ".py":
        raise TargetError(f"{shown} is not a Python file (.py)", hint="name a .py file or package.module:callable")
    try:
        data = path.read_bytes()
        return importlib.util.decode_source(data)
    except OSError as error:
        raise TargetError(f"cannot read {shown}: {error.strerror or error}") from error
    except (UnicodeDecodeError, SyntaxError) as error:
        raise TargetError(f"{shown} is not Python text: {error}") from error


def execute_file(path: Path, source: str, *, beside: Path | None = None) -> ModuleType:
    """Run ``source`` as the module that ``path`` is, under a stable private name in ``sys.modules``.

    Relative imports work when the folder is a package; the file's folder is first on ``sys.path``, as for a script.

    Args:
        path: the file.
        source: its text, or what to run in place of it.
        beside: a file of the user's that this one is made to lie beside, with all that lies in its folder now: it runs
            as it will there, in that file's package, with ``__file__`` in its folder.

    Raises:
        TargetError: a syntax error, or what the file raised while it ran, with the line.
    """
    path = path.resolve()
    code = _compiled(path, source)
    home = path if beside is None else beside.resolve().with_name(path.name)
    root, package = _package_of(home)
    for folder in (str(root), str(home.parent), str(path.parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module = ModuleType(private_name(path))
    module.__file__ = str(home)
    module.__package__ = package
    sys.modules[module.__name__] = module
    # getsource and tracebacks must show the text that ran, also when it is not what is on disk.
    for name in {str(path), str(home)}:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        with user_code(), _script_arguments(home):
            if package:
                _search_first(importlib.import_module(package), path.parent)
            exec(code, module.__dict__)
    except UserCodeError as error:
        sys.modules.pop(module.__name__, None)
        where = f"{error.place}: " if error.place else ""
        exited = isinstance(error.cause, SystemExit)
        hint = 'what reads the command line or exits belongs under `if __name__ == "__main__":`' if exited else None
        raise TargetError(f"{where}{shown_path(str(path))} failed while it was imported: {error}", hint=hint) from error
    return module


def _search_first(package: ModuleType, folder: Path) -> None:
    """Make ``from .name import ...`` in the package look into ``folder`` first."""
    if str(folder) not in package.__path__:
        package.__path__.insert(0, str(folder))


@contextlib.contextmanager
def _script_arguments(path: Path) -> Iterator[None]:
    """A file that reads its command line at import sees none of ours."""
    kept, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = kept


def private_name(path: Path) -> str:
    """The name in ``sys.modules`` of the file at ``path``: the same in every process."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    stem = "".join(letter if letter.isalnum() else "_" for letter in path.stem)
    return f"{_PREFIX}{stem}_{digest}"


def source_hash(text: str) -> str:
    """Hash of a file's text, the same with any line endings (a checkout may change them) and with a byte order mark."""
    plain = text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")
    return hashlib.sha256(plain.encode()).hexdigest()


def readable_module(name: str) -> str:
    """A module's name for the user: the file's, for one that was loaded under a private name."""
    return name.removeprefix(_PREFIX).rpartition("_")[0] if name.startswith(_PREFIX) else name


def _compiled(path: Path, source: str) -> CodeType:
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise TargetError(f"{shown_path(str(path))}:{error.lineno or 1}: not valid Python: {error.msg}") from error
    except ValueError as error:  # null bytes
        raise TargetError(f"{shown_path(str(path))} is not Python text: {error}") from error


def _package_of(path: Path) -> tuple[Path, str]:
    """Folder to import from, and the dotted package that ``path`` lies in (empty outside packages)."""
    folder, parts = path.parent, list[str]()
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)

"""Which files to lint: folders are searched, .gitignore and ``exclude`` respected, links not followed into folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.core.finding import FileError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SUFFIXES = (".py", ".pyi", ".ipynb", ".json", ".yaml", ".yml")
_SKIPPED = frozenset(
    {".cache", ".git", ".hg", ".svn", ".venv", ".tox", ".nox", ".eggs", ".mypy_cache", ".ruff_cache", ".pytest_cache",
     ".ipynb_checkpoints", "__pycache__", "__pypackages__", "node_modules", "site-packages", "wandb", "amptune-out"}
)  # fmt: skip

_Ignores = tuple[tuple[str, "GitIgnoreSpec"], ...]  # (folder, its patterns), outermost first


class Discovery:
    """Finds files, and notes what could not be read.

    Args:
        root: folder that ``exclude`` is relative to.
        exclude: patterns in .gitignore syntax.
        gitignore: whether to respect .gitignore files (of the folder, and of its parents up to the repository).
    """

    def __init__(self, root: Path, exclude: Sequence[str] = (), gitignore: bool = True) -> None:
        self._root = str(root)
        self._exclude = _spec(exclude) if exclude else None
        self._gitignore = gitignore
        self.errors: list[FileError] = []

    def find(self, paths: Sequence[str]) -> list[str]:
        """Files under the paths, sorted, each once; a path that names a file is taken whatever its suffix."""
        found: dict[str, None] = {}
        for path in paths:
            for file in self._under(os.path.normpath(path)):
                found.setdefault(file)
        return sorted(found)

    def _under(self, path: str) -> Iterator[str]:
        try:
            mode_is_folder = os.path.isdir(path)
            if not mode_is_folder:
                os.stat(path)
        except OSError as error:
            self.errors.append(FileError(display(path), _reason(error)))
            return
        if not mode_is_folder:
            if not self._is_excluded(path, False):
                yield path
            return
        yield from self._walk(path, self._parent_ignores(path))

    def _walk(self, folder: str, ignores: _Ignores) -> Iterator[str]:
        stack = [(folder, ignores)]
        while stack:
            folder, ignores = stack.pop()
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
            except OSError as error:
                self.errors.append(FileError(display(folder), _reason(error)))
                continue
            ignores = self._with_own(folder, ignores, entries)
            for entry in entries:
                is_folder = _is_real_folder(entry)
                if not is_folder and not entry.name.endswith(SUFFIXES):
                    continue
                if self._is_skipped(entry, is_folder, ignores):
                    continue
                if is_folder:
                    stack.append((entry.path, ignores))
                elif _may_be_read(entry):
                    yield os.path.normpath(entry.path)

    def _is_skipped(self, entry: os.DirEntry[str], is_folder: bool, ignores: _Ignores) -> bool:
        if is_folder and (entry.name in _SKIPPED or os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))):
            return True
        if entry.name.startswith(".#"):  # an editor's lock, a link to nowhere
            return True
        return _is_ignored(entry.path, is_folder, ignores) or self._is_excluded(entry.path, is_folder)

    def _is_excluded(self, path: str, is_folder: bool) -> bool:
        if self._exclude is None:
            return False
        relative = os.path.relpath(os.path.abspath(path), self._root).replace(os.sep, "/")
        if relative.startswith("../"):
            return False
        return self._exclude.match_file(relative + "/" if is_folder else relative)

    def _with_own(self, folder: str, ignores: _Ignores, entries: Sequence[os.DirEntry[str]]) -> _Ignores:
        if self._gitignore and any(entry.name == ".gitignore" for entry in entries):
            spec = _read_spec(os.path.join(folder, ".gitignore"))
            return (*ignores, (os.path.abspath(folder), spec)) if spec else ignores
        return ignores

    def _parent_ignores(self, folder: str) -> _Ignores:
        """Patterns of the folders above, up to the repository's root; none when they ignore the folder itself."""
        if not self._gitignore:
            return ()
        found: list[tuple[str, GitIgnoreSpec]] = []
        current = os.path.abspath(folder)
        while not os.path.exists(os.path.join(current, ".git")):
            parent = os.path.dirname(current)
            if parent == current:
                return ()  # not in a repository
            current = parent
            if spec := _read_spec(os.path.join(current, ".gitignore")):
                found.insert(0, (current, spec))
        ignores = tuple(found)
        asked_for = os.path.abspath(folder)
        while asked_for != current:
            if _is_ignored(asked_for, True, ignores):
                return ()
            asked_for = os.path.dirname(asked_for)
        return ignores


def display(path: str) -> str:
    """The path for a report: relative to the working directory where it lies below it, with slashes."""
    absolute, here = os.path.abspath(path), os.getcwd()
    inside = absolute.startswith(here.rstrip(os.sep) + os.sep)
    return (os.path.relpath(absolute, here) if inside else path).replace(os.sep, "/")


def _spec(lines: Sequence[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # only where there are patterns: its import is a tenth of a short run

    return GitIgnoreSpec.from_lines(lines)


def _read_spec(path: str) -> GitIgnoreSpec | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return None  # there is none
    try:
        return _spec(lines)
    except ValueError:
        return None  # git itself skips patterns that it cannot read


def _is_ignored(path: str, is_folder: bool, ignores: _Ignores) -> bool:
    absolute = os.path.abspath(path) if ignores else path
    for folder, spec in reversed(ignores):
        relative = absolute[len(folder) :].lstrip(os.sep).replace(os.sep, "/")
        verdict = spec.check_file(relative + "/" if is_folder else relative).include
        if verdict is not None:
            return verdict
    return False


def _is_real_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file, or a link to one. No folder behind a link; no pipe or device, which may block."""
    if entry.is_file(follow_symlinks=False):
        return True
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True  # a link to nowhere, or a loop of links: reading it gives the diagnostic


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

"""Where files go, and writing them so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from amptune.errors import InputError

_ELSEWHERE = "choose another place for the output"
_FREE = "free space or choose another folder"


def cache_folder() -> Path:
    """The user's folder for what can be worked out again; it need not exist."""
    from platformdirs import user_cache_path  # lint starts without it where the cache is off

    return user_cache_path("amptune", appauthor=False)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        InputError: it is a folder, or its own folder is missing or read-only.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder", hint="name a file in it")
    _check_holds_files(path.parent, f"cannot write {path}")


def check_folder(folder: Path) -> None:
    """Refuse an output folder that ``make_folder`` could not make or that cannot be written to. Makes nothing.

    Raises:
        InputError: a file or a read-only folder is in the way.
    """
    # What is there already, a link to nothing too, decides whether the rest can be made.
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path) or path.parent == path)
    _check_holds_files(nearest, f"cannot {'write to' if nearest == folder else 'make'} the folder {folder}")


def make_folder(folder: Path) -> None:
    """Make an output folder and those above it, unless they are there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}", hint=_ELSEWHERE) from None


def _check_holds_files(folder: Path, refused: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if folder.is_dir():
            why = f"{folder}: {error.strerror or error}"
        else:
            why = f"{folder} {'is no folder' if os.path.lexists(folder) else 'does not exist'}"
        raise InputError(f"{refused}: {why}", hint=_ELSEWHERE) from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` in one step: a full disk or a crash leaves the old file as it was.

    Raises:
        InputError: the folder is missing or read-only, or the disk is full.
    """
    write_all_atomic({path: content})


def write_all_atomic(files: Mapping[Path, str | bytes], hint: str = _FREE) -> None:
    """Replace several files; nothing is replaced before all of them are written out beside their places.

    ``hint``: what the user can do where that fails.

    Raises:
        InputError: a folder is missing or read-only, or the disk is full.
    """
    temporary: dict[Path, str] = {}
    current = Path()
    try:
        for current, content in files.items():
            descriptor, temporary[current] = tempfile.mkstemp(
                dir=current.parent, prefix=f".{current.name}.", suffix=".tmp"
            )
            _write_out(descriptor, content.encode() if isinstance(content, str) else content)
            os.chmod(temporary[current], _mode(current))
        for current, written in temporary.items():
            os.replace(written, current)
    except OSError as error:
        for written in temporary.values():
            with contextlib.suppress(OSError):
                os.unlink(written)
        raise InputError(f"cannot write {current}: {error.strerror or error}", hint=hint) from error


def _write_out(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _mode(path: Path) -> int:
    """The mode of the file that is replaced; for a new one, what open() would give."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask

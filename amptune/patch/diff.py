"""A unified diff that ``patch -p1`` and ``git apply`` take, whatever the line endings of the files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_NO_NEWLINE = "\\ No newline at end of file\n"


def unified_diff(before: str | None, after: str, path: str) -> str:
    """The change from ``before`` (None: the file is new) to ``after``, as ``a/path`` and ``b/path``; empty for none."""
    old, new = _lines(before or ""), _lines(after)
    source = "/dev/null" if before is None else f"a/{path}"
    return "".join(_ended(difflib.unified_diff(old, new, source, f"b/{path}", n=3)))


def shown_in_diff(path: Path) -> str:
    """``path`` relative to the working directory, with slashes; its name alone where it lies elsewhere."""
    relative = os.path.relpath(path)
    return path.name if relative.startswith("..") or os.path.isabs(relative) else Path(relative).as_posix()


def _lines(text: str) -> list[str]:
    """Lines as diff counts them: a carriage return belongs to its line."""
    lines = text.split("\n")
    return [*(line + "\n" for line in lines[:-1]), *([lines[-1]] if lines[-1] else [])]


def _ended(lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if not line.endswith("\n"):
            yield "\n" + _NO_NEWLINE

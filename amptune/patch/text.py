"""Source text as it lies in the file: its encoding, its line endings and its byte order mark are the user's."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

from amptune.errors import InputError

BOM = "\ufeff"
_NEWLINE = re.compile(r"\r\n|\r|\n")


def read_source(path: Path) -> tuple[str, str]:
    """The text of a Python file, line endings and byte order mark included, and the encoding to write it back in.

    Raises:
        InputError: the file is missing or unreadable, or is not text in the encoding that it declares.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        encoding = encoding.removesuffix("-sig")  # keeps the mark as a character of the text
        return data.decode(encoding), encoding
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise InputError(f"{path} is not text in its declared encoding: {error}") from error


def newline_of(text: str) -> str:
    """The line ending that most lines of ``text`` have."""
    endings = _NEWLINE.findall(text)
    return max(("\n", "\r\n", "\r"), key=endings.count)


def split_lines(text: str) -> list[str]:
    """Lines as Python counts them, endings kept (str.splitlines also splits at form feeds and U+2028)."""
    lines, start = [], 0
    for ending in _NEWLINE.finditer(text):
        lines.append(text[start : ending.end()])
        start = ending.end()
    return [*lines, text[start:]] if start < len(text) else lines


def parse(text: str, path: str) -> ast.Module:
    """The syntax tree of ``text``, which must not start with a byte order mark.

    Raises:
        InputError: it is not Python; the message names the line.
    """
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else path
        raise InputError(f"{place}: not valid Python: {getattr(error, 'msg', None) or error}") from error

"""From the bytes of a file to its text, as Python itself would decode it."""

from __future__ import annotations

import io
import re
import tokenize

MAX_BYTES = 8 * 1024 * 1024
MAX_SETTINGS_BYTES = 1024 * 1024
_SETTINGS = (".json", ".yaml", ".yml")


def decode(path: str, data: bytes) -> str:
    """The text of a source file: UTF-8 with or without a BOM, or what its coding line says.

    Raises:
        ValueError: the bytes do not decode, the coding is unknown, or the file is larger than 8 MiB.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data) / 2**20:.1f} MiB: files over {MAX_BYTES // 2**20} MiB are not linted")
    if path.endswith((*_SETTINGS, ".ipynb")):
        return _decode(data, "utf-8-sig")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        raise ValueError(f"cannot be decoded: {error.msg}") from error
    return _decode(data, encoding)


def encode(path: str, text: str, original: bytes) -> bytes:
    """The bytes of a changed text, in the encoding and with the BOM that the file had."""
    bom = b"\xef\xbb\xbf" if original.startswith(b"\xef\xbb\xbf") else b""
    if path.endswith((*_SETTINGS, ".ipynb")):
        return bom + text.encode()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(original).readline)
    return bom + text.encode("utf-8" if encoding == "utf-8-sig" else encoding)


def is_too_large_for_settings(path: str, data: bytes) -> bool:
    """Whether a JSON or YAML file is data rather than settings, by its size."""
    return path.endswith(_SETTINGS) and len(data) > MAX_SETTINGS_BYTES


def _decode(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"cannot be decoded as {encoding}: {_where(error)}") from error
    return re.sub("^\ufeff", "", text)


def _where(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is {error.object[error.start]:#04x}"
    return str(error)

"""What goes through the pipe between the two processes, as bytes: what cannot go is one failure, and ends neither."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any


class MessageError(Exception):
    """Something cannot go through the pipe, or cannot be read at its other end."""


def packed(message: object) -> bytes:
    """A message for ``Connection.send_bytes``.

    Raises:
        MessageError: a part of it cannot be pickled.
    """
    try:
        return bytes(ForkingPickler.dumps(message))
    except Exception as error:  # whatever the classes of its parts raise
        raise MessageError(f"cannot be sent: {_in_a_line(error)}") from error


def unpacked(data: bytes) -> Any:
    """The message of what ``Connection.recv_bytes`` gave.

    Raises:
        MessageError: it names a class that cannot be imported here, for example one of the user's file.
    """
    try:
        return pickle.loads(data)
    except Exception as error:  # whatever the classes of its parts raise
        raise MessageError(f"cannot be read: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")

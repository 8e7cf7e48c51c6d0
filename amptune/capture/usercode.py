"""Running the user's code: what it prints stays off stdout, and what it raises becomes one message with its line."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import site
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from amptune.capture.autocast import arguments_kept
from amptune.errors import AmptuneError

TORCH_FOLDER = str(Path(torch.__file__).parent) + os.sep
OWN_FOLDER = str(Path(__file__).parents[1]) + os.sep
STDLIB_FOLDER = str(Path(sysconfig.get_paths()["stdlib"])) + os.sep
PACKAGE_FOLDERS = tuple(
    {str(Path(folder)) + os.sep for folder in (*site.getsitepackages(), sysconfig.get_paths()["purelib"])}
)
LONGEST_LINES, LONGEST = 6, 500
"""How much of an exception's text is shown."""


class UserCodeError(Exception):
    """What the user's code raised, with the line that raised it; callers turn it into the error of their stage."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        self.place = place_of(cause)
        super().__init__(describe(cause))


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Send prints to stderr, raise UserCodeError for whatever the code inside raises (sys.exit included), and keep what
    its autocast regions are asked for.

    Errors of amptune, Ctrl-C and running out of memory pass through: their handlers need to see them as they are.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), arguments_kept():
            yield
    except (AmptuneError, UserCodeError, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(error) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and log lines: trying what fits is full of failures that mean nothing to the user."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def describe(error: BaseException) -> str:
    """``ValueError: text``, cut where torch's explanations grow long."""
    text = error.msg if isinstance(error, SyntaxError) else text_of(error).strip()
    text = "\n".join(text.splitlines()[:LONGEST_LINES])
    text = text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def text_of(error: BaseException) -> str:
    """An error's text; empty where a class of the user's fails to give one."""
    try:
        return str(error)
    except Exception:
        return ""


def headline(error: BaseException) -> str:
    """The line of an error's text that says what is wrong: the first, and under TorchScript, which tells its own call
    stack before, the last."""
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]


def place_of(error: BaseException) -> str:
    """``path:line`` of the innermost frame that is neither torch's, the standard library's nor ours; may be empty. An
    error that knows its ``place`` is asked."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown_path(error.filename)}:{error.lineno or 1}"
    frames = ((frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__))
    return getattr(error, "place", "") or innermost_place(frames)


def innermost_place(frames: Iterable[tuple[str, int]]) -> str:
    """``path:line`` of the last of these files and lines that is the user's, else a package's; may be empty."""
    readable = [frame for frame in frames if is_readable_code(frame[0])]
    own_code = [frame for frame in readable if not is_package_code(frame[0])] or readable
    return f"{shown_path(own_code[-1][0])}:{own_code[-1][1]}" if own_code else ""


def is_readable_code(filename: str) -> bool:
    """Whether code is the user's or a package's: not torch's, the standard library's, ours, nor made up at run time."""
    if filename.startswith(("<", TORCH_FOLDER, OWN_FOLDER)):
        return False
    return not filename.startswith(STDLIB_FOLDER) or is_package_code(filename)


def is_package_code(filename: str) -> bool:
    """Whether code belongs to an installed package."""
    return filename.startswith(PACKAGE_FOLDERS)


def shown_path(filename: str) -> str:
    """The path as messages and findings show it: relative to the working directory where it lies inside it."""
    try:
        return _shown_from(os.getcwd(), filename)
    except OSError:  # the working directory is gone
        return Path(filename).as_posix()


@functools.lru_cache(maxsize=4096)
def _shown_from(folder: str, filename: str) -> str:
    path = Path(filename)
    with contextlib.suppress(ValueError, OSError):
        path = path.resolve().relative_to(Path(folder).resolve()) if path.is_absolute() else path
    return path.as_posix()

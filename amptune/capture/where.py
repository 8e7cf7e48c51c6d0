"""Where a call stands in the source, read from the running frames."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import linecache
import sys
from collections.abc import Sequence
from types import CodeType, FrameType

from amptune.capture.usercode import OWN_FOLDER, TORCH_FOLDER, is_readable_code, shown_path
from amptune.core.finding import Location

# Frames of these files carry a call on its way to the op; the op is written one frame further out.
_TORCH_PLUMBING = tuple(
    TORCH_FOLDER + name
    for name in (
        "overrides.py",
        "functional.py",
        "_tensor.py",
        "_jit_internal.py",
        "nn/functional.py",
        "utils/",
        "fx/",
        "_subclasses/",
        "_ops.py",
        "_VF.py",
        "_higher_order_ops/",
        "autograd/",
        "_refs/",
        "_prims_common/",
        "_dynamo/",
        "export/",
        "_export/",
    )
)

_STARTS = tuple(OWN_FOLDER + name for name in ("capture/target.py", "capture/execute.py"))
"""Files that call the user's code: what called them is no part of it."""


@dataclasses.dataclass(frozen=True, order=True)
class Position:
    """A span of a file; lines from 1, columns in UTF-8 bytes from 0, as the interpreter gives them."""

    filename: str
    line: int
    column: int
    end_line: int
    end_column: int

    def location(self) -> Location:
        """The same span as findings show it: columns from 1 in characters, the path relative where it can be."""
        start = _characters(self.filename, self.line, self.column)
        end = _characters(self.filename, self.end_line, self.end_column)
        return Location(shown_path(self.filename), self.line, start, self.end_line, end)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a call is made.

    Attributes:
        origin: the code that calls the op, which may be a torch module.
        reader: the innermost line that the user can read: not torch's.
    """

    origin: Position | None
    reader: Position | None


def current_place(skip: int = 1, stop: CodeType | None = None) -> Place:
    """The place of the running call; ``skip`` frames of ours are left out, and what called the function ``stop``."""
    frame: FrameType | None = sys._getframe(skip)
    origin: Position | None = None
    while frame is not None and frame.f_code is not stop:
        code = frame.f_code
        kind = _kind_of(code.co_filename)
        if kind == "reader":
            position = _position(code, frame.f_lasti)
            return Place(origin or position, position)
        if kind == "start":
            break
        if kind == "torch" and origin is None:
            origin = _position(code, frame.f_lasti)
        frame = frame.f_back
    return Place(origin, None)


def construction_place(module: object, skip: int = 1) -> Position | None:
    """The innermost line that the user can read outside of the constructors of ``module`` itself, one of which runs."""
    frame: FrameType | None = sys._getframe(skip)
    while frame is not None:
        code = frame.f_code
        kind = _kind_of(code.co_filename)
        if kind == "start":
            break
        if kind == "reader" and not _constructs(frame, module):
            return _position(code, frame.f_lasti)
        frame = frame.f_back
    return None


def _constructs(frame: FrameType, module: object) -> bool:
    code = frame.f_code
    return code.co_name == "__init__" and frame.f_locals.get(code.co_varnames[0]) is module


Trail = tuple[tuple[CodeType, int], ...]
"""Running lines, the innermost first, as code and instruction: reading their lines costs more than keeping them."""
_TRAIL = 12


def current_trail(skip: int = 1) -> Trail:
    """The lines that the user can read and that led to the running call, as many as tell two calls apart."""
    frame: FrameType | None = sys._getframe(skip)
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < _TRAIL:
        if _kind_of(frame.f_code.co_filename) == "reader":
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def position_of(step: tuple[CodeType, int]) -> Position:
    """The span of one line of a trail."""
    return _position(*step)


def parting(trails: Sequence[Trail]) -> list[Position | None]:
    """For each trail the innermost line in which it differs from another one; ``None`` where none does."""
    for steps in zip(*trails, strict=False):
        if len(set(steps)) > 1:
            return [_position(*step) for step in steps]
    return [None] * len(trails)


@functools.cache
def _kind_of(filename: str) -> str:
    if filename in _STARTS:
        return "start"
    if filename.startswith(OWN_FOLDER) or filename.startswith(_TORCH_PLUMBING):
        return "plumbing"
    if is_readable_code(filename):
        return "reader"
    return "torch" if filename.startswith(TORCH_FOLDER) else "plumbing"


def _position(code: CodeType, instruction: int) -> Position:
    # Code objects of two files with the same text are equal, so the name belongs in the key.
    return _position_in(code.co_filename, code, instruction)


@functools.lru_cache(maxsize=65536)
def _position_in(filename: str, code: CodeType, instruction: int) -> Position:
    found = next(itertools.islice(code.co_positions(), instruction // 2, None), (None, None, None, None))
    line, end_line, column, end_column = found
    line = line or code.co_firstlineno
    return Position(filename, line, column or 0, end_line or line, end_column or 0)


def _characters(filename: str, line: int, column: int) -> int:
    """A byte offset from 0 as a character column from 1."""
    text = linecache.getline(filename, line)
    if text.isascii():
        return column + 1
    return len(text.encode()[:column].decode(errors="ignore")) + 1

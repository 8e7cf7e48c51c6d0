"""What an exporter returns, and how its notes are told in the file and on stderr."""

from __future__ import annotations

import dataclasses
import textwrap

_WIDTH = 116


@dataclasses.dataclass(frozen=True)
class Lost:
    """Something of the plan that a target has no words for.

    Attributes:
        what: what is lost, with the sites or numbers.
        instead: what to do.
    """

    what: str
    instead: str

    def __str__(self) -> str:
        return f"{self.what}. {self.instead}"


@dataclasses.dataclass(frozen=True)
class Export:
    """The file for one target.

    Attributes:
        text: its whole content; the lost parts and the notes are in it.
        lost: what the target cannot express.
        notes: what the reader has to know besides: files to put beside it, assumptions made.
    """

    text: str
    lost: tuple[Lost, ...] = ()
    notes: tuple[str, ...] = ()


def comment_block(title: str, lost: tuple[Lost, ...], notes: tuple[str, ...]) -> str:
    """The head of a file in a language whose comments begin with ``#``; ends with a newline."""
    lines = [*_wrapped(title, ""), *(line for note in notes for line in _wrapped(note, ""))]
    if lost:
        lines += ["", "Lost in this form of the plan:"]
        lines += [line for item in lost for line in _wrapped(str(item), "- ")]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _wrapped(text: str, bullet: str) -> list[str]:
    indent = " " * len(bullet)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=bullet, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )

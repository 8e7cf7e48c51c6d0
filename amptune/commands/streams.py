"""The two streams of a command: what a terminal can show."""

from __future__ import annotations

import os
import sys


def show_any_name() -> None:
    """A name that a terminal cannot show must not end a run: it is written with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def takes_color() -> bool:
    """Whether stdout is a terminal that shows colours, and the user has nothing against them."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

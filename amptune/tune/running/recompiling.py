"""Compile mode: steps in which something is compiled anew are no step times, and a model may never be done with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import torch

from amptune.capture.usercode import shown_path
from amptune.errors import TuneError

ENDLESS = 10
"""So many first steps that all compile something say that the next one will too. torch itself runs a function in eager
mode, without a word, after 8 versions of it."""
_CONDITION = re.compile(r"- \d+/\d+: (.*?)(?:\s+#|$)", re.MULTILINE)
_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_FUNCTION = re.compile(r"Recompiling function \S+ in (.+):(\d+)")


def num_compiled() -> int:
    """How many pieces of code torch.compile has looked at in this process."""
    if "torch._dynamo" not in sys.modules:  # none, and to import it takes seconds
        return 0
    return int(torch._dynamo.utils.counters["frames"]["total"])


def endless(step: Callable[[], object]) -> TuneError:
    """The error of a model that is compiled anew in every step, with what one more step finds changed."""
    reason = _reason(step)
    return TuneError(
        f"torch.compile compiles this model anew in each of its first {ENDLESS} steps{': ' if reason else ''}{reason}",
        hint="torch takes a number that a module keeps for a constant: keep in a tensor what changes with every step, "
        "or leave --compile out",
    )


def _reason(step: Callable[[], object]) -> str:
    with torch._dynamo.config.patch(error_on_recompile=True):
        try:
            step()
        except torch._dynamo.exc.RecompileError as error:
            text = str(error)
        else:
            return ""
    condition, place = _CONDITION.search(text), _LINE.search(text) or _FUNCTION.search(text)
    where = f" ({shown_path(place[1])}:{place[2]})" if place else ""
    return f"{condition[1].strip()} holds no longer{where}" if condition else ""

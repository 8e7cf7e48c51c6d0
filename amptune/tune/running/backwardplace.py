"""Where a backward fails that runs no code of the user's: at the forward call that it differentiates."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import torch

from amptune.capture.usercode import innermost_place, place_of
from amptune.tune.running.kernelerrors import is_of_formats

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in ', re.MULTILINE)


def say_where(error: Exception, again: Callable[[], object]) -> None:
    """Note on an error of formats, in a backward, which call of the forward it belongs to.

    Args:
        error: what the backward raised.
        again: runs that forward and backward once more.
    """
    if place_of(error) or not is_of_formats(error):
        return
    with warnings.catch_warnings(record=True) as told, torch.autograd.set_detect_anomaly(True, check_nan=False):
        warnings.simplefilter("always")
        try:
            again()
        except Exception as second:
            if str(second) != str(error):
                return
    frames = (frame for text in told for frame in _FRAME.findall(str(text.message)))
    if place := innermost_place((name, int(line)) for name, line in frames):
        error.place = f"{place}, in its backward"  # type: ignore[attr-defined]

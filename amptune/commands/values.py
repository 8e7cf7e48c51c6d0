"""What an argument's text stands for: numbers, shares, sizes and lists of codes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import TypeVar

_Number = TypeVar("_Number", int, float)


def positive_int(text: str) -> int:
    """An argument that counts something."""
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def seconds(text: str) -> float:
    """An argument that is a time."""
    return _time(text, "seconds")


def minutes(text: str) -> float:
    """An argument that is a time in minutes."""
    return _time(text, "minutes")


def _time(text: str, unit: str) -> float:
    value = _number(text, float)
    if not value > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of {unit}")
    return value


def share(text: str) -> float:
    """An argument between 0 and 1."""
    value = _number(text, float)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1, such as 0.005 for 0.5 %")
    return value


def size(text: str) -> int:
    """Bytes of a size such as 40GiB, 500MB or 1e9."""
    units = {"": 1, "b": 1} | {f"{p}b": 10 ** (3 * i) for i, p in enumerate("kmgt", 1)}
    units |= {f"{p}ib": 2 ** (10 * i) for i, p in enumerate("kmgt", 1)}
    found = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in units or found[1].count(".") > 1 or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text} is not a size such as 40GiB or 500MB")
    return int(float(found[1]) * units[found[2]])


def codes(items: Sequence[str]) -> tuple[str, ...]:
    """The codes of an argument that may be repeated and takes several, as in ``--select G101 --select G2,G3``."""
    return tuple(code.strip() for item in items for code in item.split(",") if code.strip())


def _number(text: str, kind: type[_Number]) -> _Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' if kind is int else ''}number") from None

"""Facts of precision, and what several of them come to: values that meet in an op, or of which a value is one."""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Fact(enum.Enum):
    """The precision of a value."""

    HALF = "float16"
    BF16 = "bfloat16"
    WIDE = "float32 or float64"
    EXACT = "integers or booleans"
    SCALAR = "a Python number, which takes the precision of what it meets"
    FOLLOWS = "the precision that the network runs in"
    PROMOTED = "float32 under CUDA autocast, else the precision of the network"
    UNKNOWN = "not known"


def joined(facts: Iterable[Fact]) -> Fact:
    """The precision of an op over several values, by torch's promotion."""
    found = set(facts) - {Fact.SCALAR}
    floating = found - {Fact.EXACT}
    if not floating:
        return Fact.EXACT if found else Fact.SCALAR
    if Fact.WIDE in floating or {Fact.HALF, Fact.BF16} <= floating:
        return Fact.WIDE
    for fact in (Fact.PROMOTED, Fact.BF16):
        if fact in floating:
            return fact
    return floating.pop() if len(floating) == 1 else Fact.FOLLOWS


def either(facts: Iterable[Fact]) -> Fact:
    """The precision of a value that is one of several."""
    found = set(facts)
    if len(found) > 1:
        found -= {Fact.SCALAR}
    if len(found) == 1:
        return found.pop()
    return Fact.FOLLOWS if found and found <= {Fact.HALF, Fact.FOLLOWS, Fact.UNKNOWN} else Fact.UNKNOWN

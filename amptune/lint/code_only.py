"""The code of a Python file without its comments and docstrings, in bytes, without parsing it."""

from __future__ import annotations

import functools
import re

# Strings on one line and f-strings stay, since rules read settings in them. What is repeated is atomic, and nothing
# comes after the outermost repetition: the text is gone through once, whatever it holds. Groups that are possessive
# themselves, (?:...)*+, match wrongly or raise SystemError in Python 3.11.0 to 3.11.3 (gh-101955), Debian 12's too.
_PLAIN = rb""""(?!"")(?>(?:[^"\\\n]++|\\.)*)"?+|'(?!'')(?>(?:[^'\\\n]++|\\.)*)'?+"""
_TRIPLE = rb'"""(?>(?:[^"\\]++|\\.|"(?!""))*)(?>(?:""")?)' + rb"|'''(?>(?:[^'\\]++|\\.|'(?!''))*)(?>(?:''')?)"
# A string in triple quotes that is one: an f or fr stands before it, and no longer word.
_FORMATTED = rb"(?:(?<=[fF])(?<!\w[fF])|(?<=[fF][rR])(?<!\w[fF][rR])|(?<=[rR][fF])(?<!\w[rR][fF]))(?:" + _TRIPLE + rb")"
_CODE = re.compile(rb"""((?:[^"'#]++|""" + _PLAIN + rb"|" + _FORMATTED + rb")+)|#[^\n]*+|" + _TRIPLE, re.DOTALL)


@functools.lru_cache(maxsize=2)  # several rules ask for the same file in turn
def code_only(data: bytes) -> bytes:
    """The file without comments and without strings in triple quotes, f-strings aside.

    >>> code_only(b'x = 1  # float16\\nname = "bf16"')
    b'x = 1   \\nname = "bf16"'
    """
    return b" ".join(_CODE.findall(data))

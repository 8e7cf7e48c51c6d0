"""What rules with common keywords look for in the bytes of a file, before it is parsed for them."""

from __future__ import annotations

import re

_HALF = re.compile(rb"\.half\b|(?<!b)float16|import half|HalfTensor|fp16")
_SIXTEEN_BITS = re.compile(
    rb"\.half\b|float16|import half|HalfTensor|fp16|bf16|(?<!\w)autocast|mixed_precision|precision="
)
_LOGARITHM = re.compile(rb"\blog(?:1p|2|10)?\(")
_LARGE = re.compile(
    rb"\d\.?[eE]\+?(?:[5-9]|[1-9]\d)|(?:6[5-9]|[7-9]\d)\d{3}|[1-9]\d{5}|\d_\d{3}"
    rb"|2 ?\*\* ?(?:1[5-9]|[2-9]\d)|10\.?0? ?\*\* ?\d|finfo\(torch\.float|float32\)\.m"
)


def mentions_half(data: bytes) -> bool:
    """Whether float16 is named; ``rotate_half`` names nothing."""
    return _HALF.search(data) is not None


def mentions_sixteen_bits(data: bytes) -> bool:
    """Whether float16, bfloat16 or a mode that computes in one of them is named."""
    return _SIXTEEN_BITS.search(data) is not None


def calls_logarithm(data: bytes) -> bool:
    """Whether something named log is called: not a logger, not logits."""
    return _LOGARITHM.search(data) is not None


def has_large_number(data: bytes) -> bool:
    """Whether a number is written that may pass 65504."""
    return _LARGE.search(data) is not None

"""How long fused attention takes on a GPU: its operations at a stated share of the peak, and its blocks of threads.

A block works on one tile of queries in the forward and on one of keys in the backward; where there are fewer of them
than multiprocessors, those wait. Each block has a start and an end, which short sequences are mostly made of. The
constants are from single kernels and from the attention of eight models' profiled steps on an H200, least mean error of
their logarithms (7 to 15 %).
"""

from __future__ import annotations

import dataclasses
import math

from amptune.core.formats import Format
from amptune.core.hardware import Gpu, padded
from amptune.core.roofline import efficiency_of, peak_of

_TILE = 64
"""Tokens of a tile of the fused kernels (the names of cuDNN's on Hopper say 64 x 64 and 64 x 128)."""
_HEAD = 32
"""Multiple of the size of a head for which the fused kernels are built: 32, 64, 96, 128 and so on (their templates in
aten/src/ATen/native/transformers/cuda)."""
_HALF_HEAD = (0.36, 0.66), (0.76, 1.0)
"""Of the way from a head's size to whole tiles of columns, what its products take: forward and backward, in FP32 and in
16 bits."""
_BLOCK_US = (1.9, 2.3), (1.4, 7.2)
"""Start and end of a block: forward and backward, of the memory-efficient and of the flash kernels."""
_MASKED, _BIASED = 1.6, 2.1
"""Time of the products in 16 bits with a mask in memory against without: flash and memory-efficient kernels."""
_DROPPED = (1.34, 1.13), (2.4, 1.1)
"""The same with dropout: forward and backward, in FP32 and in 16 bits."""


@dataclasses.dataclass(frozen=True)
class Attending:
    """What attention computes.

    Attributes:
        batch: batch size x heads.
        queries, keys: tokens.
        size: of a head.
        causal: whether half of the scores are left out.
        masked: with a mask in memory.
        efficient: whether the memory-efficient kernel runs in 16 bits too.
        dropout: whether scores are dropped.
    """

    batch: int
    queries: int
    keys: int
    size: int
    causal: bool = False
    masked: bool = False
    efficient: bool = False
    dropout: bool = False

    @property
    def flops(self) -> int:
        """Operations of the forward's two products, tokens and heads rounded up to the tiles of the kernels."""
        queries, keys = (padded(length, _TILE) for length in (self.queries, self.keys))
        return 4 * self.batch * queries * keys * padded(self.size, _HEAD) // (2 if self.causal else 1)

    def work(self, *, half: bool, backward: bool) -> float:
        """Operations as the kernels run them: the tiles on the diagonal whole, and columns in tiles of their own."""
        tiles = padded(self.queries, _TILE) // _TILE
        diagonal = (tiles + 1) / tiles if self.causal else 1.0
        size = padded(self.size, _HEAD)
        columns = size + _HALF_HEAD[half][backward] * (padded(self.size, _TILE) - size)
        return self.flops * diagonal * columns / size * (2.5 if backward else 1.0)

    def blocks(self, *, half: bool, backward: bool) -> int:
        """Blocks of threads."""
        return self.batch * math.ceil((self.keys if backward else self.queries) / (2 * _TILE if half else _TILE))


def attention_seconds(work: Attending, number_format: Format, gpu: Gpu, *, backward: bool) -> float:
    """Seconds of fused attention; the backward recomputes scores, so it has 2.5 times the operations."""
    constants = efficiency_of(gpu)
    # TF32 has no part in fused attention: the FP32 kernel runs at its own rate with either setting.
    number_format = Format.FP32 if number_format is Format.TF32 else number_format
    rate = peak_of(gpu, number_format) * constants.attention[number_format][int(backward)]
    if not rate or not work.flops:
        return 0.0
    half = number_format.bits <= 16
    flash = half and not work.efficient
    blocks = work.blocks(half=flash, backward=backward)
    slow = (_MASKED if flash else _BIASED) if work.masked and half else 1.0
    slow *= _DROPPED[half][backward] if work.dropout else 1.0
    products = slow * work.work(half=half, backward=backward) / rate / min(1.0, blocks / gpu.sms)
    waves = math.ceil(blocks / gpu.sms)
    return products + (waves * _BLOCK_US[flash][backward] + constants.kernel_us) * 1e-6

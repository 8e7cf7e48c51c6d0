"""Times of fused attention."""

from __future__ import annotations

import dataclasses

import pytest

from amptune.core.attending import Attending, attention_seconds
from amptune.core.formats import Format
from amptune.core.hardware import GPUS

H100 = GPUS["h100"]
ATTENTION = Attending(batch=192, queries=1024, keys=1024, size=64)


def test_attention_in_fp32_ignores_tf32_and_the_backward_takes_longer() -> None:
    forward = attention_seconds(ATTENTION, Format.FP32, H100, backward=False)
    assert attention_seconds(ATTENTION, Format.TF32, H100, backward=False) == forward
    assert attention_seconds(ATTENTION, Format.FP32, H100, backward=True) > 2 * forward
    assert attention_seconds(ATTENTION, Format.BF16, H100, backward=False) < forward / 5


def test_attention_works_on_whole_tiles_and_on_half_of_the_scores_when_causal() -> None:
    assert dataclasses.replace(ATTENTION, queries=1000, keys=961).flops == ATTENTION.flops
    assert dataclasses.replace(ATTENTION, causal=True).flops == ATTENTION.flops // 2


@pytest.mark.parametrize("backward", [False, True])
def test_few_tiles_leave_multiprocessors_idle(backward: bool) -> None:
    long = Attending(batch=8, queries=64, keys=16384, size=64) if not backward else Attending(8, 16384, 64, 64)
    spread = dataclasses.replace(long, batch=64, queries=long.queries // 8 or 1, keys=long.keys // 8 or 1)
    assert spread.flops <= long.flops
    assert attention_seconds(long, Format.BF16, H100, backward=backward) > 3 * attention_seconds(
        spread, Format.BF16, H100, backward=backward
    )


def test_short_sequences_are_mostly_start_and_end_of_blocks() -> None:
    short, long = Attending(batch=4096, queries=50, keys=50, size=64), Attending(64, 400, 400, 64)
    assert long.flops == pytest.approx(short.flops, rel=0.25)
    assert attention_seconds(short, Format.BF16, H100, backward=True) > 4 * attention_seconds(
        long, Format.BF16, H100, backward=True
    )


def test_dropout_masks_and_the_diagonal_take_time() -> None:
    plain = Attending(batch=192, queries=256, keys=256, size=64)
    seconds = attention_seconds(plain, Format.BF16, H100, backward=False)
    for more in ({"dropout": True}, {"masked": True}):
        assert attention_seconds(dataclasses.replace(plain, **more), Format.BF16, H100, backward=False) > 1.2 * seconds
    causal = attention_seconds(dataclasses.replace(plain, causal=True), Format.BF16, H100, backward=False)
    assert 0.6 * seconds < causal < seconds

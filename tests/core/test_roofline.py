"""The time model of one kernel: orderings that must hold, and published facts that it must show."""

from __future__ import annotations

import pytest

from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import GPUS
from amptune.core.roofline import (
    Pass,
    Traffic,
    alignment,
    conv_seconds,
    depthwise_seconds,
    efficiency_of,
    gemm_seconds,
    oriented,
    padded_gemm,
    padded_size,
    peak_of,
    traffic_seconds,
    training_gemm_seconds,
)

H100, A100, V100 = GPUS["h100"], GPUS["a100"], GPUS["v100"]
LARGE = Gemm(8192, 8192, 8192)


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS.values() if gpu.is_cuda], ids=lambda gpu: gpu.key)
def test_no_product_beats_the_peak(gpu: object) -> None:
    assert isinstance(gpu, type(H100))
    for number_format in gpu.peaks:
        assert gemm_seconds(LARGE, number_format, gpu) > LARGE.flops / (gpu.peaks[number_format] * 1e12)


def test_narrower_formats_are_faster_on_large_products() -> None:
    times = [gemm_seconds(LARGE, f, H100) for f in (Format.FP32, Format.TF32, Format.BF16, Format.FP8_E4M3)]
    assert times == sorted(times, reverse=True)
    assert times[0] > 5 * times[2]


def test_bf16_is_emulated_below_fp32_on_a_v100() -> None:
    assert gemm_seconds(LARGE, Format.BF16, V100) > gemm_seconds(LARGE, Format.FP32, V100)
    assert gemm_seconds(LARGE, Format.FP16, V100) < gemm_seconds(LARGE, Format.FP32, V100)


def test_tf32_without_tf32_units_is_fp32_and_fp8_is_nothing() -> None:
    assert peak_of(V100, Format.TF32) == peak_of(V100, Format.FP32)
    assert peak_of(A100, Format.FP8_E4M3) == 0
    assert gemm_seconds(LARGE, Format.FP8_E4M3, A100) == 0


def test_misaligned_vocabulary_of_gpt2() -> None:
    odd = training_gemm_seconds(Gemm(16384, 50257, 768), Format.BF16, H100)
    even = training_gemm_seconds(Gemm(16384, 50304, 768), Format.BF16, H100)
    assert odd > 3 * even
    assert padded_gemm(Gemm(16384, 50257, 768), Format.BF16, H100) == Gemm(16384, 50304, 768)


def test_fp32_products_do_not_mind_alignment() -> None:
    odd, even = gemm_seconds(Gemm(4096, 4097, 4096), Format.FP32, H100), gemm_seconds(LARGE, Format.FP32, H100)
    assert odd < even
    assert odd < 1.1 * gemm_seconds(Gemm(4096, 4096, 4096), Format.FP32, H100)


def test_worse_alignment_is_slower() -> None:
    times = [gemm_seconds(Gemm(8192, n, 4096), Format.BF16, A100) for n in (8192, 8196, 8194, 8193)]
    assert times == sorted(times)
    assert len(set(times)) == 4


@pytest.mark.parametrize(
    ("number_format", "lengths", "expected"),
    [(Format.BF16, (64, 8), 16), (Format.BF16, (64, 12), 8), (Format.BF16, (1023,), 2), (Format.FP8_E4M3, (24,), 8),
     (Format.TF32, (6,), 8)],
)  # fmt: skip
def test_alignment_in_bytes(number_format: Format, lengths: tuple[int, ...], expected: int) -> None:
    assert alignment(number_format, *lengths) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(50257, 50304), (333, 336), (30522, 30528), (1000, 1000), (62, 64), (9, 16), (7, 7), (1, 1)],
)
def test_padding_takes_the_best_multiple_where_it_is_cheap(value: int, expected: int) -> None:
    assert padded_size(value, Format.BF16, H100) == expected


def test_orientation_swaps_the_reduction() -> None:
    gemm = Gemm(2, 3, 5, 7)
    assert oriented(gemm, Pass.FORWARD) == gemm
    assert oriented(gemm, Pass.INPUT) == Gemm(2, 5, 3, 7)
    assert oriented(gemm, Pass.WEIGHT) == Gemm(3, 5, 2, 7)
    assert {oriented(gemm, each).flops for each in Pass} == {gemm.flops}


def test_a_tiny_product_takes_little_more_than_the_start_of_a_kernel() -> None:
    start = efficiency_of(H100).kernel_us * 1e-6
    assert start < gemm_seconds(Gemm(8, 8, 8), Format.BF16, H100) < 2 * start


def test_one_tile_more_than_a_wave_takes_longer() -> None:
    full = gemm_seconds(Gemm(132 * 128, 256, 1023 * 8), Format.BF16, H100)
    over = gemm_seconds(Gemm(133 * 128, 256, 1023 * 8), Format.BF16, H100)
    assert over > 1.2 * full


def test_traffic_is_bytes_over_bandwidth() -> None:
    assert traffic_seconds(0, Traffic.CAST, H100) == 0
    seconds = traffic_seconds(10**9, Traffic.POINTWISE, H100)
    assert 1e9 / (H100.bandwidth * 1e9) < seconds < 2e9 / (H100.bandwidth * 1e9)


def test_the_weight_gradient_is_slower_in_tf32_on_hopper_alone() -> None:
    passes = {each: gemm_seconds(LARGE, Format.TF32, H100, direction=each) for each in Pass}
    assert passes[Pass.FORWARD] < passes[Pass.INPUT] < passes[Pass.WEIGHT]
    assert len({gemm_seconds(LARGE, Format.TF32, A100, direction=each) for each in Pass}) == 1
    assert len({gemm_seconds(LARGE, Format.BF16, H100, direction=each) for each in Pass}) == 1


def test_depthwise_convolutions_are_slower_than_their_bytes_and_follow_the_layout() -> None:
    flops, moved = 2.0 * 10**5 * 512 * 9, 4.0 * 10**5 * 512

    def seconds(number_format: Format, channels_last: bool) -> float:
        return depthwise_seconds(
            flops, number_format, H100, Pass.FORWARD, bytes_moved=moved, channels_last=channels_last
        )

    assert seconds(Format.FP16, True) >= moved / (H100.bandwidth * 1e9)
    assert seconds(Format.FP16, True) < seconds(Format.FP16, False)


def test_groups_of_few_channels_fill_few_lanes() -> None:
    one, grouped = Gemm(50176, 256, 2304), Gemm(50176, 8, 72, 32)
    times = [conv_seconds(each, Format.BF16, H100, Pass.FORWARD, bytes_moved=0) for each in (one, grouped)]
    assert times[1] / grouped.flops > 3 * times[0] / one.flops


def test_a_long_reduction_is_cut_until_the_last_round_is_full() -> None:
    for number_format in (Format.FP32, Format.BF16):
        ideal = efficiency_of(H100).gemm[number_format] * peak_of(H100, number_format)
        weights = Gemm(3072, 768, 16384)  # 144 tiles of 128 x 128 for 132 multiprocessors
        assert gemm_seconds(weights, number_format, H100) < 1.35 * weights.flops / ideal
        assert gemm_seconds(Gemm(3072, 768, 512), number_format, H100) > 1.35 * 2 * 3072 * 768 * 512 / ideal


def test_the_weight_gradient_of_one_tap_in_fp32_takes_its_operations_whatever_few_channels_there_are() -> None:
    pixels = 2**18

    def seconds(inputs: int, outputs: int, *, volume: bool = False) -> float:
        gemm = Gemm(pixels, outputs, inputs)
        return conv_seconds(gemm, Format.FP32, H100, Pass.WEIGHT, bytes_moved=0, volume=volume)

    assert seconds(96, 16) == pytest.approx(seconds(16, 96))
    assert seconds(128, 64) == pytest.approx(2 * seconds(64, 64), rel=0.05)
    assert seconds(2048, 256) < 0.5 * 128 * seconds(64, 64)  # enough tiles for all multiprocessors
    assert seconds(64, 64, volume=True) > 3 * seconds(64, 64)


def test_a_window_that_is_a_patch_of_few_channels_is_slow_forward() -> None:
    gemm = Gemm(64 * 196, 768, 3 * 256)

    def seconds(direction: Pass, *, few: bool) -> float:
        return conv_seconds(gemm, Format.BF16, H100, direction, bytes_moved=0, taps=256, few_channels=few)

    assert seconds(Pass.FORWARD, few=True) > 4 * seconds(Pass.FORWARD, few=False)
    assert seconds(Pass.WEIGHT, few=True) < 4 * seconds(Pass.WEIGHT, few=False)

"""The hardware table and the ways to find a row of it."""

from __future__ import annotations

import pytest

from amptune.core.formats import Format
from amptune.core.hardware import (
    DEFAULT_GPUS,
    GPUS,
    best_multiple_for,
    gpu_for_device,
    gpu_named,
    gpus_named,
    multiple_for,
    padded,
)
from amptune.errors import UsageError


@pytest.mark.parametrize(
    ("spelling", "key"),
    [("h100", "h100"), ("H100", "h100"), ("NVIDIA A100", "a100"), ("RTX 4090", "rtx4090"), ("rtx-5090", "rtx5090"),
     ("4090", "rtx4090"), ("sm_90", "h100"), ("SM 75", "t4"), ("Tesla T4", "t4"), ("mi300", "mi300x"), ("cpu", "cpu")],
)  # fmt: skip
def test_names_in_any_spelling(spelling: str, key: str) -> None:
    assert gpu_named(spelling).key == key


def test_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(UsageError) as caught:
        gpu_named("h1000")
    assert "h1000" in caught.value.message
    assert "did you mean h100?" in (caught.value.hint or "")
    assert "mi300x" in (caught.value.hint or "")


def test_several_names_at_once_and_all() -> None:
    assert [gpu.key for gpu in gpus_named(("h100,a100", "h100"))] == ["h100", "a100"]
    everything = {gpu.key for gpu in gpus_named(("all",))}
    assert everything == set(GPUS) - {"cpu"}


@pytest.mark.parametrize("gpu", [gpu for gpu in GPUS.values() if gpu.is_cuda], ids=lambda gpu: gpu.key)
def test_rows_are_plausible(gpu: object) -> None:
    assert isinstance(gpu, type(GPUS["h100"]))
    assert gpu.peaks[Format.FP16] > gpu.peaks[Format.FP32]
    if gpu.is_native(Format.FP8_E4M3):
        assert gpu.peaks[Format.FP8_E4M3] == pytest.approx(2 * gpu.peaks[Format.FP16], rel=0.02)
    assert 300 <= gpu.bandwidth <= 10_000
    assert 16 * 2**30 <= gpu.memory <= 200 * 2**30


@pytest.mark.parametrize("number_format", [Format.BF16, Format.TF32])
def test_bf16_and_tf32_need_ampere(number_format: Format) -> None:
    without = {gpu.key for gpu in GPUS.values() if gpu.is_cuda and not gpu.is_native(number_format)}
    assert without == {"v100", "t4"}


def test_fp8_needs_ada() -> None:
    without = {gpu.key for gpu in GPUS.values() if gpu.is_cuda and not gpu.is_native(Format.FP8_E4M3)}
    assert without == {"v100", "t4", "rtx3090", "a10", "a100"}


def test_default_table_needs_no_excuses() -> None:
    assert all(GPUS[key].is_native(Format.BF16) for key in DEFAULT_GPUS)


def test_best_16bit_format() -> None:
    assert GPUS["v100"].best_16bit is Format.FP16
    assert GPUS["a100"].best_16bit is Format.BF16


@pytest.mark.parametrize(
    ("name", "capability", "key"),
    [("NVIDIA H100 80GB HBM3", (9, 0), "h100"), ("NVIDIA A100-SXM4-40GB", (8, 0), "a100"),
     ("NVIDIA GeForce RTX 4090", (8, 9), "rtx4090"), ("Tesla V100-SXM2-16GB", (7, 0), "v100"),
     ("Tesla T4", (7, 5), "t4"),
     ("NVIDIA L4", (8, 9), "l4"), ("NVIDIA L40S", (8, 9), "l40s"), ("NVIDIA B200", (10, 0), "b200")],
)  # fmt: skip
def test_device_at_hand_is_found_by_its_name(name: str, capability: tuple[int, int], key: str) -> None:
    found = gpu_for_device(name, capability, memory=10**10, sms=GPUS[key].sms)
    assert found.key == key
    assert found.memory == 10**10
    assert found.peaks[Format.FP16] == GPUS[key].peaks[Format.FP16]


def test_unknown_device_is_scaled_from_its_generation() -> None:
    found = gpu_for_device("NVIDIA GeForce RTX 3060", (8, 6), memory=12 * 2**30, sms=28)
    assert found.peaks[Format.FP16] == pytest.approx(GPUS["rtx3090"].peaks[Format.FP16] * 28 / 82)
    assert "scaled" in found.notes
    assert found.key == "nvidia-geforce-rtx-3060"


def test_newer_capability_than_the_table_takes_the_newest_row() -> None:
    assert "RTX 5090" in gpu_for_device("NVIDIA Future", (13, 0), 10**10, 100).notes


def test_reported_bandwidth_wins() -> None:
    assert gpu_for_device("NVIDIA H100 PCIe", (9, 0), 10**10, 114, bandwidth=2039.0).bandwidth == 2039.0


def test_alignment_multiples() -> None:
    assert [multiple_for(f) for f in (Format.BF16, Format.FP16, Format.TF32, Format.FP8_E4M3)] == [8, 8, 4, 16]
    assert best_multiple_for(Format.BF16, GPUS["a100"]) == 64
    assert best_multiple_for(Format.BF16, GPUS["v100"]) == 8


@pytest.mark.parametrize(("value", "multiple", "expected"), [(50257, 64, 50304), (64, 64, 64), (1, 8, 8)])
def test_padded(value: int, multiple: int, expected: int) -> None:
    assert padded(value, multiple) == expected

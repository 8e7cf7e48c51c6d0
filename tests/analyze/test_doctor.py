"""What doctor says of a machine: the advice from given rates, and a real run on the processor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amptune.analyze.doctor import FormatReport, recommend, try_formats
from amptune.core.formats import Format

ROOT = Path(__file__).resolve().parents[2]


def report(**rates: float) -> tuple[FormatReport, ...]:
    return tuple(
        FormatReport(Format.parse(name), "fast" if rate >= 1.3 else "slow", rate) for name, rate in rates.items()
    )


@pytest.mark.parametrize(
    ("rates", "recipe"),
    [
        ({"bf16": 8.0, "fp16": 8.5, "tf32": 4.0}, "autocast-bf16"),
        ({"bf16": 0.4, "fp16": 5.0}, "autocast-fp16"),
        ({"bf16": 0.4, "fp16": 0.1, "tf32": 3.0}, "tf32"),
        ({"bf16": 0.4, "fp16": 0.1}, "fp32"),
    ],
)
def test_the_safest_fast_recipe_is_recommended(rates: dict[str, float], recipe: str) -> None:
    assert recommend("cuda", report(**rates))[0] == recipe


def test_formats_of_the_processor_are_tried() -> None:
    states = {entry.number_format: entry for entry in try_formats("cpu")}
    assert states[Format.FP32].rate == 1.0
    assert states[Format.TF32].state == states[Format.FP8_E4M3].state == "no"
    assert states[Format.BF16].rate is not None
    assert states[Format.BF16].state in ("fast", "works", "slow")


@pytest.mark.gpu
def test_formats_of_the_gpu_are_tried() -> None:
    from amptune.analyze.device import present_gpu

    gpu = present_gpu()
    assert gpu is not None
    for entry in try_formats("cuda", gpu):
        if not gpu.is_native(entry.number_format):
            assert entry.state in ("no", "slow", "works")
        elif entry.number_format.bits <= 16:
            assert entry.state == "fast"


def test_the_command_prints_json_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "amptune", "doctor", "--format", "json"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    data = json.loads(done.stdout)
    assert data["device"] in ("cuda", "cpu")
    assert data["packages"]["torch"]
    assert data["recipe"] in ("fp32", "tf32", "autocast-bf16", "autocast-fp16")

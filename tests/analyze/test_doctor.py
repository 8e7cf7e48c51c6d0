"""What doctor says of a machine: the advice from given rates, and a real run on the processor."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from amptune.analyze import doctor
from amptune.analyze.device import present_gpu
from amptune.analyze.doctor import FormatReport, recommend, try_formats
from amptune.commands.doctor import text
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import GPUS
from amptune.core.roofline import gemm_seconds

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


@pytest.mark.parametrize(
    ("fp16", "words"),
    [(8.5, "8.5x as fast: which step is faster is too close"), (12.0, "measure autocast-fp16"), (2.0, "")],
)
def test_what_one_product_says_of_fp16_beside_bf16_is_no_more_than_it_can(fp16: float, words: str) -> None:
    reason = recommend("cuda", report(bf16=8.0, fp16=fp16))[1]
    assert words in reason
    assert words or "FP16" not in reason


def test_formats_of_the_processor_are_tried() -> None:
    states = {entry.number_format: entry for entry in try_formats("cpu")}
    assert states[Format.FP32].rate == 1.0
    assert states[Format.TF32].state == states[Format.FP8_E4M3].state == "no"
    assert states[Format.BF16].rate is not None
    assert states[Format.BF16].state in ("fast", "works", "slow")


MACHINES = {
    # product, capability, GiB, SMs -> recipe to start from, formats that are fast, formats that there are not
    "Tesla V100-SXM2-32GB": ((7, 0), 32, 80, "autocast-fp16", {"fp16"}, {"tf32", "fp8_e4m3"}),
    "Tesla T4": ((7, 5), 16, 40, "autocast-fp16", {"fp16"}, {"tf32", "fp8_e4m3"}),
    "NVIDIA A100-SXM4-80GB": ((8, 0), 80, 108, "autocast-bf16", {"tf32", "bf16", "fp16"}, {"fp8_e4m3"}),
    "NVIDIA H100 80GB HBM3": ((9, 0), 80, 132, "autocast-bf16", {"tf32", "bf16", "fp16", "fp8_e4m3"}, set()),
    "NVIDIA H200": ((9, 0), 141, 132, "autocast-bf16", {"tf32", "bf16", "fp16", "fp8_e4m3"}, set()),
    "NVIDIA B200": ((10, 0), 180, 148, "autocast-bf16", {"tf32", "bf16", "fp16", "fp8_e4m3"}, set()),
}


@pytest.mark.parametrize("name", MACHINES)
def test_every_generation_gets_its_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products take what the roofline says of the GPU that torch reports; a format without a kernel raises."""
    capability, gib, sms, recipe, fast, absent = MACHINES[name]
    properties = types.SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], total_memory=gib * 2**30, multi_processor_count=sms
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    gpu = present_gpu()
    assert gpu is not None
    assert gpu.key in GPUS
    monkeypatch.setattr(doctor, "_seconds", lambda f, device: gemm_seconds(Gemm(4096, 4096, 4096), f, gpu) or None)
    found = doctor.examine()
    states = {str(entry.number_format): entry for entry in found.formats}
    assert found.recipe == recipe
    assert {key for key, entry in states.items() if entry.state == "fast"} == fast
    assert {key for key, entry in states.items() if entry.state == "no"} == absent
    emulated = capability < (8, 0)
    assert (states["bf16"].state, states["bf16"].note) == (("slow", "emulated") if emulated else ("fast", ""))
    assert any("including_emulation=False" in note for note in found.notes) is emulated
    assert states["fp16"].gaps
    assert "no kernel" in text(found)


@pytest.mark.gpu
def test_formats_of_the_gpu_are_tried() -> None:
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

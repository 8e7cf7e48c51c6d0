"""The micro-benchmark: every probe runs (on the meta device here), and its share becomes a constant of the roofline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from amptune.analyze.calibration import calibrate as calibration
from amptune.analyze.calibration import probes, probing
from amptune.analyze.calibration.calibrate import calibrate, constants_from
from amptune.analyze.calibration.probing import Run
from amptune.core.efficiency import EFFICIENCY, Traffic
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import GPUS
from amptune.core.roofline import gemm_seconds, traffic_seconds

H200 = GPUS["h200"]


@pytest.fixture
def _on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_once(run: Run) -> float:
        run()
        return 1e-3

    monkeypatch.setattr(probing, "DEVICE", "meta")
    monkeypatch.setattr(probing, "time_on_gpu", time_once)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.usefixtures("_on_meta")
def test_every_kind_of_kernel_is_probed_and_its_share_becomes_the_constant() -> None:
    found = calibrate(H200)
    data = json.loads(json.dumps(found.to_json()))
    shares = {name: probe["share"] for name, probe in data["probes"].items()}
    # The meta device knows neither fused AdamW nor FP8 on every build; all else must have run.
    wanted = {f"{kind} {each}" for kind in ("gemm", "conv") for each in ("fp32", "tf32", "bf16", "fp16")}
    wanted |= {f"{kind} {each}" for kind in ("depthwise", "attention") for each in ("fp32", "bf16", "fp16")}
    wanted |= {
        f"memory {each}" for each in Traffic if each in (Traffic.POINTWISE, Traffic.CAST, Traffic.NORM, Traffic.SOFTMAX)
    }
    assert wanted | {"misaligned 2", "misaligned 4", "misaligned 8"} <= set(shares)
    assert found.efficiency.gemm[Format.BF16] == pytest.approx(shares["gemm bf16"], rel=1e-3)
    table = EFFICIENCY["hopper"]
    scale = shares["memory pointwise"] / calibration.H200["memory pointwise"]
    for now, before in zip(found.efficiency.memory[Traffic.NORM], table.memory[Traffic.NORM], strict=True):
        assert now == pytest.approx(scale * before, rel=1e-2)
    # A probe that reaches half of what it reached on the H200 of the table halves each pass.
    slower = probes.ideals(H200)["conv bf16"] / 1e-3 / calibration.H200["conv bf16"]
    for now, before in zip(found.efficiency.conv[Format.BF16], table.conv[Format.BF16], strict=True):
        assert now == pytest.approx(before * slower)
    again = constants_from(H200, data)
    assert again.gemm == pytest.approx(found.efficiency.gemm, rel=1e-2)
    assert again.conv[Format.FP16] == pytest.approx(found.efficiency.conv[Format.FP16], rel=1e-2)
    assert again.launch_us == pytest.approx(found.efficiency.launch_us)


def test_a_processor_that_takes_twice_as_long_moves_the_cost_of_a_launch_half_way() -> None:
    data = {"probes": {}, "kernel_us": 1.1, "layer_us": [80.0, 160.0]}
    found, twice = (constants_from(H200, data | {"layer_us": [scale * each for each in data["layer_us"]]}).launch_us
                    for scale in (1, 2))  # fmt: skip
    assert twice == pytest.approx([2**0.5 * each for each in found])


def test_measured_constants_replace_those_of_the_generation() -> None:
    slower = dataclasses.replace(
        EFFICIENCY["hopper"],
        gemm={each: share / 2 for each, share in EFFICIENCY["hopper"].gemm.items()},
        memory={each: (wide / 2, narrow / 2) for each, (wide, narrow) in EFFICIENCY["hopper"].memory.items()},
    )
    gpu = dataclasses.replace(H200, measured=slower)
    gemm = Gemm(8192, 8192, 8192)
    assert gemm_seconds(gemm, Format.BF16, gpu) == pytest.approx(2 * gemm_seconds(gemm, Format.BF16, H200), rel=1e-2)
    assert traffic_seconds(1e9, Traffic.CAST, gpu) == pytest.approx(2 * traffic_seconds(1e9, Traffic.CAST, H200))


def test_the_h200_of_the_table_is_scaled_by_nothing() -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "reports" / "steps_h200.json"
    found = constants_from(H200, json.loads(file.read_text(encoding="utf-8"))["calibration"])
    table = EFFICIENCY["hopper"]
    for kind in ("conv", "depthwise", "attention", "memory"):
        for key, shares in getattr(table, kind).items():
            assert getattr(found, kind)[key] == pytest.approx(shares, rel=2e-2)
    assert found.launch_us == pytest.approx(table.launch_us, rel=0.2)


@pytest.mark.usefixtures("_on_meta")
def test_only_the_gpu_that_is_present_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "present_gpu", lambda: H200)
    gpus, note = calibration.with_present_measured([GPUS["a100"], H200])
    assert [gpu.key for gpu in gpus] == ["a100", "h200"]
    assert gpus[0].measured is None
    assert gpus[1].measured is not None
    assert "measured in" in note
    assert calibration.with_present_measured([GPUS["a100"]]) == ((GPUS["a100"],), "")


@pytest.mark.gpu
def test_the_gpu_at_hand_reaches_a_plausible_share_of_its_peaks() -> None:
    from amptune.analyze.device import present_gpu

    gpu = present_gpu()
    assert gpu is not None
    calibrate(gpu)  # the first run loads libraries
    found = calibrate(gpu)
    assert found.seconds < 4
    assert {probe.name for probe in found.probes} >= {"gemm fp32", "memory pointwise", "memory optimizer"}
    for probe in found.probes:
        assert 0 < probe.share < 1.15, probe
    assert 0.5 < found.efficiency.kernel_us < 10
    assert all(1 < each < 60 for each in found.efficiency.launch_us)

"""Passes of convolutions in groups beside single kernels that were measured on an H200."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from amptune.analyze.stepcost.kernels import Convolution, Depthwise, Kernel, Setting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.core.autocast import realise
from amptune.core.graph import INPUT, Gemm, Param, Site
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES
from amptune.core.roofline import Pass
from tests.analyze.graphs import graph_of, tensor

FILE = Path(__file__).parents[2] / "benchmarks" / "reports" / "kernels_further_h200.json"
NAMES = {"forward": Pass.FORWARD, "input": Pass.INPUT, "weight": Pass.WEIGHT}


def _rows(taps: int, groups: int) -> dict[str, dict[str, Any]]:
    """Format -> the measured row of the sequence's convolution of so many taps and groups."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["rows"]
    return {row["format"]: row for row in rows
            if row["case"] == "conv" and row["kernel"] == [taps] and row["groups"] == groups}  # fmt: skip


def _seconds(row: dict[str, Any]) -> dict[Pass, float]:
    """Predicted time of each pass, of contiguous tensors and without the transposes around it."""
    channels, taps, groups, sides = row["inputs"], row["kernel"], row["groups"], row["sides"]
    positions, within = row["batch"] * math.prod(sides), channels // groups
    shape = tensor(row["batch"], channels, *sides)
    site = Site("conv", "conv1d", "module", "conv", inputs=(shape,), outputs=(shape,), sources=(INPUT,),
                params=(Param("conv.weight", tensor(channels, within, *taps), "w"),),
                gemms=(Gemm(positions, within, within * math.prod(taps), groups),),
                attrs={"channels_last": False, "stride": [1], "dilation": [1]})  # fmt: skip
    recipe = RECIPES[{"bf16": "autocast-bf16"}.get(row["format"], row["format"])]
    kernels = kernels_of(site, realise(graph_of(site), recipe)["conv"], Setting(recipe))
    passes: list[Kernel] = [*kernels.forward, *kernels.backward]
    gpu = GPUS["h200"]
    return {each.direction: each.seconds(gpu) for each in passes if isinstance(each, Convolution | Depthwise)}


@pytest.mark.parametrize(("number_format", "slow"), [("fp32", "forward"), ("tf32", "input"), ("bf16", "forward")])
def test_very_long_windows_in_groups_fall_back_to_slow_kernels(number_format: str, slow: str) -> None:
    """Two dozen times slower in BF16's forward than the products of the tensor cores."""
    row = _rows(128, 16)[number_format]
    assert _seconds(row)[NAMES[slow]] * 1e6 == pytest.approx(row["us"][slow], rel=0.1)


@pytest.mark.parametrize("number_format", ["tf32", "bf16"])
def test_short_windows_in_groups_have_the_tensor_cores(number_format: str) -> None:
    row = _rows(5, 8)[number_format]
    for name in ("forward", "input"):
        assert _seconds(row)[NAMES[name]] * 1e6 < 1.3 * row["us"][name]


@pytest.mark.parametrize("number_format", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["forward", "input"])
def test_few_taps_of_a_depthwise_sequence_cost_the_work_around_them(name: str, number_format: str) -> None:
    """As in state space models: 4 taps take as long as 13 in the forward and as 10 in the input gradient."""
    row = _rows(4, 1024)[number_format]
    assert _seconds(row)[NAMES[name]] * 1e6 == pytest.approx(row["us"][name], rel=0.15)

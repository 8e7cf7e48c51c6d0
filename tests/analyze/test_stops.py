"""Recipes under which a model does not train, for the optimizer's or the weight gradients' sake."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.runner import Analysis, Question, analyze
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.hardware import gpus_named
from amptune.core.recipes import RECIPES

FILE = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.head = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.fc(x).to(self.head.weight.dtype))


def make_model():
    {make}


def make_batch():
    return torch.randn({rows}, 64, dtype=torch.{dtype}), None


def loss_fn(output, batch):
    return output.float().pow(2).mean()
"""


def analysed(
    folder: Path, *, make: str = "return Net()", rows: int = 32, dtype: str = "float32", **how: str
) -> Analysis:
    file = folder / "model.py"
    file.write_text(FILE.format(make=make, rows=rows, dtype=dtype))
    recipes = {"recipes": (RECIPES[how["recipe"]],), "recipes_named": True} if how else {}
    return analyze(capture(load_target(TargetSpec(str(file)))), Question(gpus_named(("h100",)), **recipes))


@pytest.mark.parametrize(
    ("make", "dtype", "stops"),
    [
        ("return Net()", "float32", False),
        ("return Net().to(torch.bfloat16)", "bfloat16", True),
        ("model = Net()\n    model.head.to(torch.bfloat16)\n    return model", "float32", True),
        ("model = Net()\n    model.head.to(torch.bfloat16).requires_grad_(False)\n    return model", "float32", False),
    ],
)
def test_a_loss_scaler_takes_no_bf16_gradients(make: str, dtype: str, stops: bool, tmp_path: Path) -> None:
    found = analysed(tmp_path, make=make, dtype=dtype)
    assert bool(found.estimates["h100"]["autocast-fp16"].stops) is stops
    assert not found.estimates["h100"]["autocast-bf16"].stops
    assert [each.severity.name for each in found.findings if each.rule == "G409"] == ["INFO"] * stops


def test_who_asks_for_fp16_autocast_of_bf16_parameters_is_told_an_error(tmp_path: Path) -> None:
    found = analysed(tmp_path, make="return Net().to(torch.bfloat16)", dtype="bfloat16", recipe="autocast-fp16")
    (finding,) = [each for each in found.findings if each.rule == "G409"]
    assert finding.severity.name == "ERROR"
    assert finding.message.startswith(
        "4 trained parameters in bfloat16: the GradScaler that autocast-fp16 needs raises"
    )


@pytest.mark.parametrize(("rows", "stops"), [(32, False), (8, True), (1, True)])
def test_fp8_weight_gradients_of_few_rows_stop_the_recipe(rows: int, stops: bool, tmp_path: Path) -> None:
    found = analysed(tmp_path, rows=rows)
    for recipe in ("fp8-tensorwise", "fp8-rowwise"):
        assert found.estimates["h100"][recipe].stops.startswith("G108" * stops)
        assert bool(found.estimates["h100"][recipe].stops) is stops
    assert not found.estimates["h100"]["autocast-bf16"].stops


def test_the_finding_that_says_why_a_recipe_stops_is_not_left_out(tmp_path: Path) -> None:
    wide = "model = Net()\n    model.fc, model.head = nn.Linear(64, 4096), nn.Linear(4096, 64)\n    return model"
    found = analysed(tmp_path, make=wide, rows=4)
    assert "G103" in [each.rule for each in found.findings]
    place = found.estimates["h100"]["fp8-rowwise"].stops.partition(": ")[0]
    assert place.startswith("G108 at ")
    assert [each.rule for each in found.findings if f"{each.location.path}:{each.location.line}" in place].count("G108")

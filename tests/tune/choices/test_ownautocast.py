"""Autocast regions that the model opens itself are in every recipe, which is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from amptune.capture import TargetSpec, capture, load_target
from amptune.tune.choices.ownautocast import is_in_fp32, own_autocast_notes, own_dtype_note
from tests.inprocess import amptune

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 13)

    def forward(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=ENABLED):
            x = torch.relu(self.fc1(x))
        return self.fc2(x.float())

def make_model():
    return Net()

def make_batch():
    return torch.randn(24, 16), torch.randint(0, 13, (24,))

def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


def notes_of(path: Path, source: str) -> list[str]:
    path.write_text(source)
    return list(own_autocast_notes(capture(load_target(TargetSpec(str(path)))).graph))


def test_a_region_that_lowers_is_no_fp32_reference(tmp_path: Path) -> None:
    (note,) = notes_of(tmp_path / "net.py", NET.replace("ENABLED", "True"))
    assert "switches autocast on itself (bfloat16, " in note
    assert "net.py:13): the FP32 reference" in note
    assert "computes itself" not in note


BY_HAND = (
    NET.replace("ENABLED", "True")
    .replace("torch.relu(self.fc1(x))", "torch.relu(self.fc1(x)) @ self.mix")
    .replace("        self.fc2", "        self.mix = nn.Parameter(torch.randn(32, 32) / 6)\n        self.fc2")
)


def test_a_product_by_hand_stays_in_such_a_region_and_plans_agree_with_what_runs(tmp_path: Path) -> None:
    (note,) = notes_of(tmp_path / "net.py", BY_HAND)
    assert "computes itself (matmul in " in note
    assert "net.py:14) stay in bfloat16 under each plan" in note
    result = amptune(tmp_path, "tune", "net.py", "--budget", "6", "--steps", "3", "--format", "json")
    assert result.returncode == 0, result.stderr
    trials = json.loads(result.stdout)["trials"]
    assert [trial["state"] for trial in trials if trial["kind"] != "stock"].count("valid") >= 2, trials


@pytest.mark.parametrize(("classes", "is_said"), [(13, True), (130, False)])
def test_a_region_that_switches_off_is_said_where_it_is_most_of_the_model(
    tmp_path: Path, classes: int, is_said: bool
) -> None:
    source = NET.replace("ENABLED", "False").replace("Linear(32, 13)", f"Linear(32, {classes})")
    notes = notes_of(tmp_path / "net.py", source)
    assert ["switches autocast off itself (" in note for note in notes] == [True] * is_said


def test_a_model_without_regions(tmp_path: Path) -> None:
    region = "with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=ENABLED):"
    assert notes_of(tmp_path / "net.py", NET.replace(region, "if self.training:")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=ENABLED)", "if self.training"),
        ("self.fc2(x.float())", "self.fc2(x.float()).half().float()"),
        ("nn.Linear(16, 32)", "nn.Linear(16, 32).bfloat16()"),
    ],
    ids=["region", "plain", "cast", "weights"],
)
def test_a_model_in_fp32_has_no_other_formats(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(NET.replace(old, new).replace("enabled=ENABLED", "enabled=True"))
    if "bfloat16()" in new:
        path.write_text(path.read_text().replace("self.fc1(x)", "self.fc1(x.bfloat16()).float()"))
    assert is_in_fp32(capture(load_target(TargetSpec(str(path)))).graph) is (new == "if self.training")


def test_parameters_that_are_trained_in_another_dtype_are_said() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert own_dtype_note(model) is None
    model[1].half()
    assert "1.weight and 1 more parameters are trained in float16, in which small steps" in str(own_dtype_note(model))
    assert own_dtype_note(model.requires_grad_(False)) is None, "a frozen part in 16 bits is nobody's mistake"
    assert "trained in float64: the FP32" in str(own_dtype_note(model.double().requires_grad_(True)))


def test_bench_says_it_in_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET.replace("ENABLED", "True"))
    result = amptune(tmp_path, "bench", "net.py", "--rounds", "1", "--steps", "2")
    assert result.returncode == 0, result.stderr
    assert "note: the model switches autocast on itself" in result.stderr
    assert "UserWarning" not in result.stderr

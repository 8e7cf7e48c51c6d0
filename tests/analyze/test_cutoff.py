"""What is detached from the loss has a forward alone: it is priced without a backward, a gradient and moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.estimate import Estimate, estimate_all
from amptune.capture import capture
from amptune.capture.target import TargetSpec
from amptune.core.hardware import gpus_named
from amptune.core.recipes import RECIPES
from tests.analyze.test_ranges import load_target

MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher, self.student = (nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(4)]) for _ in range(2))

    def forward(self, x):
        return {forward}


def make_model():
    return Net()


def make_batch():
    return torch.randn(4096, 2048), None


def loss_fn(output, batch):
    return {loss}
"""
BOTH = "self.student(x), self.teacher(x)"


def priced(folder: Path, forward: str, loss: str, frontend: str) -> Estimate:
    path = folder / "model.py"
    path.write_text(MODEL.format(forward=forward, loss=loss))
    found = capture(load_target(TargetSpec(str(path))), frontends=[frontend])
    return estimate_all(found.graph, gpus_named(("h100",)), [RECIPES["fp32"]])["h100"]["fp32"]


@pytest.mark.parametrize("frontend", ["export", "record-fake"])
def test_what_is_detached_costs_its_forward(frontend: str, tmp_path: Path) -> None:
    loss = "F.mse_loss(output[0], output[1]{})"
    whole = priced(tmp_path, BOTH, loss.format(""), frontend)
    half = priced(tmp_path, BOTH, loss.format(".detach()"), frontend)
    none = priced(tmp_path, BOTH, loss.format("") + ".detach()", frontend)
    assert half.step_ms == pytest.approx(whole.step_ms * 2 / 3, rel=0.05)
    assert none.step_ms == pytest.approx(whole.step_ms / 3, rel=0.06)
    weights = 4 * 4 * 2048 * 2048
    assert whole.memory.peak - half.memory.peak > 3 * weights
    assert half.memory.peak - none.memory.peak > 3 * weights

"""A loss that comes out in 16 bits is said: what a loop prints of it has few digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.quality.roundedloss import rounded_loss_note
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import MLP

IN_MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 13)

    def forward(self, x, target):
        logits = self.fc2(torch.relu(self.fc1(x)))
        return {"loss": nn.CrossEntropyLoss()(logits, target), "logits": logits}

def make_model():
    return Net()

def make_batch():
    return {"x": torch.randn(24, 16), "target": torch.randint(0, 13, (24,))}
"""
HANDED_ON = IN_MODEL + "\ndef loss_fn(output, batch):\n    return output['loss']\n"
RAISED = IN_MODEL.replace("(logits, target)", "(logits.float(), target)")
BF16 = {name: SitePlan(Format.BF16) for name in ("fc1", "fc2")}
FP16 = {name: SitePlan(Format.FP16) for name in ("fc1", "fc2")}


@pytest.mark.parametrize(
    ("source", "plan", "format_"),
    [
        (MLP, Plan(sites=BF16), None),
        (MLP, Plan(sites=BF16, loss_format=None), Format.BF16),
        (IN_MODEL, Plan(sites=BF16), Format.BF16),
        (IN_MODEL, Plan(sites=FP16), Format.FP16),  # the runtime gives it back in FP32, after it was rounded
        (HANDED_ON, Plan(sites=BF16), Format.BF16),
        (RAISED, Plan(sites=BF16), None),
        (IN_MODEL, Plan(), None),
        (IN_MODEL.replace("nn.CrossEntropyLoss()(", "0 * nn.CrossEntropyLoss()("), Plan(sites=BF16), Format.BF16),
        (
            IN_MODEL.replace("(logits, target)", "(logits, target).bfloat16()"),
            Plan(sites=BF16),
            None,
        ),  # the user's own rounding
    ],
)
def test_the_format_that_a_loss_is_rounded_to(tmp_path: Path, source: str, plan: Plan, format_: Format | None) -> None:
    path = tmp_path / "net.py"
    path.write_text(source)
    options = TuneOptions(TargetSpec(str(path)), tmp_path / "out", steps=2)
    worker = Worker(Job(options, None, {}, (), threads=1), lambda *_: None)
    assert worker.rounded_loss(plan_candidate(plan)) is format_


def test_a_recipe_that_keeps_the_loss_in_fp32(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(IN_MODEL)
    options = TuneOptions(TargetSpec(str(path)), tmp_path / "out", steps=2)
    worker = Worker(Job(options, None, {}, (), threads=1), lambda *_: None)
    assert worker.rounded_loss(Candidate("autocast-bf16", autocast=Format.BF16)) is None


def test_the_note_says_how_to_have_all_digits() -> None:
    assert rounded_loss_note(None, Plan(), has_loss_fn=True) is None
    follows = str(rounded_loss_note(Format.BF16, Plan(loss_format=None), has_loss_fn=True))
    assert "2 to 3 digits" in follows
    assert '"loss": {"format": "fp32"}' in follows
    handed_on = str(rounded_loss_note(Format.FP16, Plan(), has_loss_fn=True))
    assert "3 to 4 digits" in handed_on
    assert "logits.float()" in handed_on
    assert "logits.float()" in str(rounded_loss_note(Format.BF16, Plan(loss_format=None), has_loss_fn=False))

"""Recall and false positives on defects and their stable twins; nothing may be missed, and no twin be flagged."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from amptune.analyze.runner import Question, analyze
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.finding import Finding, Severity
from amptune.core.hardware import gpus_named
from tests.analyze.numeric_defects import PAIRS, Pair

FILE = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x, t):
        h = self.fc(x)
{body}


def make_model():
    return Model()


def make_batch():
    return torch.randn(64, 64), torch.rand(64, 64)


def run(model, batch):
    return model(*batch)


def loss_fn(output, batch):
    return output.float().mean()
"""


def findings(body: str, folder: Path) -> list[Finding]:
    file = folder / "model.py"
    file.write_text(FILE.format(body=textwrap.indent(body, " " * 8)))
    captured = capture(load_target(TargetSpec(str(file))))
    found = analyze(captured, Question(gpus_named(("h100",)), path=str(file))).findings
    return [finding for finding in found if finding.rule.startswith(("G2", "G4"))]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_defect_is_found(pair: Pair, tmp_path: Path) -> None:
    found = {finding.rule for finding in findings(pair.defect, tmp_path)}
    assert found & set(pair.rules), f"found {sorted(found)}"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_twin_is_clean(pair: Pair, tmp_path: Path) -> None:
    found = [finding for finding in findings(pair.twin, tmp_path) if finding.severity > Severity.INFO]
    assert not found, [f"{finding.rule}: {finding.message}" for finding in found]

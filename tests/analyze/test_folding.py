"""What a forward works out from constants is known number by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.enrich import enrich
from amptune.capture import TargetSpec, capture, load_target

MODEL = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("knots", torch.tensor([0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 4.0, 5.0, 7.0]))
        self.register_buffer("counter", torch.zeros(8))

    def forward(self, x):
        self.counter.add_(1)
        steps = self.knots[1:] - self.knots[:-1]
        moved = self.counter * 2.0
        drawn = torch.rand(8, device=x.device) + 1.0
        table = torch.linspace(1.0, 2.0, 8, device=x.device).log()
        return self.fc(x) * steps + moved * drawn + table


def make_model():
    return Model()


def make_batch():
    return torch.randn(4, 8)


def loss_fn(output, batch):
    return output.mean()
"""


@pytest.mark.parametrize("frontend", ["export", "record-fake", "record-real"])
def test_only_constants_are_worked_out(frontend: str, tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    captured = capture(load_target(TargetSpec(str(path))), frontends=(frontend,))
    enrich(captured.graph, captured.graph_module)
    exact = {site.id: site.attrs["exact"] for site in captured.graph if "exact" in site.attrs}
    assert exact["#sub.0"] == (0.0, 2.0, 3)
    assert exact["#log.0"][:2] == pytest.approx((0.0, 0.6931), abs=1e-4)
    assert set(exact) <= {"#sub.0", "#log.0"}  # neither what is written, nor random, nor made of the input

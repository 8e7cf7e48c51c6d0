"""Models that their file builds on the meta device, as those do that fit into no memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.fc = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(16))
        self.register_buffer("shift", torch.arange(16) / 16)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, ids):
        h = self.norm(self.fc(self.embed(ids)) * self.gain + self.shift)
        return self.head(h.relu())


def make_model():
    with torch.device("DEVICE"):
        return Block()


def make_batch():
    return torch.randint(0, 50, (8,)), torch.randint(0, 50, (8,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


@pytest.mark.parametrize("train", [True, False])
def test_they_are_read_as_on_the_cpu(tmp_path: Path, train: bool) -> None:
    graphs = []
    for device in ("cpu", "meta"):
        path = tmp_path / f"on_{device}.py"
        path.write_text(MODEL.replace("DEVICE", device))
        graphs.append(capture(load_target(TargetSpec(str(path))), train=train).graph)
    ours, theirs = ([(site.id, site.op, site.inputs, site.outputs, site.params) for site in graph] for graph in graphs)
    assert ours == theirs
    assert any(site.op == "linear" for site in graphs[1])

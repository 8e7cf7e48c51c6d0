from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amptune.capture import TargetSpec, load_target
from amptune.tune.running.batches import Batches, load_batches
from amptune.tune.running.device import Device
from amptune.tune.running.state import tensors_of
from amptune.tune.running.training import Workbench

MLP = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 13)

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        weights = F.softmax(self.fc1(x), -1)
        return self.fc2(weights + F.relu(self.fc1(x)))


def make_model():
    return Net()


def train_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        ids = torch.randint(30, (16, 8), generator=generator)
        yield ids, ids % 13


def make_batch():
    return next(train_batches())


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())


def make_optimizer(params):
    return torch.optim.AdamW(params, lr=3e-3, fused=True)
"""


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model's parameters and buffers are now."""
    return {name: tensor.clone() for name, tensor in tensors_of(model).items()}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Of the tests here, all."""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MLP)
    return path


Make = Callable[..., tuple[Workbench, Batches]]


@pytest.fixture
def make_bench(tmp_path: Path) -> Make:
    """Builds a workbench and its batches from the text of a model file."""

    def make(source: str = MLP, steps: int = 6) -> tuple[Workbench, Batches]:
        path = tmp_path / "model.py"
        path.write_text(source)
        target = load_target(TargetSpec(str(path)))
        device = Device("cpu")
        bench = Workbench.build(target, device, seed=0)
        return bench, load_batches(target, steps, device.torch)

    return make

"""Models whose forward or loss takes gradients itself: physics in the loss, a gradient penalty, forces."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.tables import CostTable
from amptune.tune.run import job_of
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        {forward}


def make_model():
    return Net()


def make_batch():
    return torch.linspace(-1, 1, 32).reshape(16, 2){leaf}, torch.zeros(16, 1)
"""
PHYSICS = (
    NET.format(forward="return self.body(x)", leaf=".requires_grad_()")
    + """

def loss_fn(output, batch):
    slope, = torch.autograd.grad(output.sum(), batch[0], create_graph=True)
    return ((slope - 1) ** 2).mean() + (output**2).mean()
"""
)
PENALTY = (
    NET.format(forward="return self.body(x)", leaf="")
    + """

def run(model, batch):
    x = batch[0].clone().requires_grad_()
    score = model(x)
    slope, = torch.autograd.grad(score.sum(), x, create_graph=True)
    return score, ((slope.norm(dim=1) - 1) ** 2).mean()


def loss_fn(output, batch):
    return output[0].mean() + 10 * output[1]
"""
)
FORCES = (
    NET.format(
        forward="x = x.detach().requires_grad_()\n        energy = self.body(x)\n"
        "        force, = torch.autograd.grad(energy.sum(), x, create_graph=True)\n        return energy, -force",
        leaf="",
    )
    + """

def loss_fn(output, batch):
    return (output[0] - batch[1]).pow(2).mean() + (output[1] - 1).pow(2).mean()
"""
)


@pytest.mark.parametrize("source", [PHYSICS, PENALTY, FORCES], ids=["physics", "penalty", "forces"])
def test_the_whole_search_runs(tmp_path: Path, source: str) -> None:
    (tmp_path / "net.py").write_text(source)
    target = load_target(TargetSpec(str(tmp_path / "net.py")))
    captured = capture(target)
    options = TuneOptions(target.spec, out=tmp_path / "out", device="cpu", steps=3)
    worker = Worker(job_of(options, target, captured), lambda *_: None)
    assert worker.prepare().reference_loss > 0
    space = worker.space(captured.graph)
    assert {site for group in space.module_groups() for site in group.sites} == {"body.0", "body.2", "body.4"}
    assert worker.costs(space, captured.graph).sites
    assert worker.sensitivity(space).sites
    low = space.decode(space.uniform(space.offered()[0]), CostTable({}, {}), {})
    measured = worker.trial(plan_candidate(low), None)
    assert (measured.mismatches, measured.step is None) == ((), False)
    assert measured.quality is not None

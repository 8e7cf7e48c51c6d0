"""Modules that the batch does not reach: another batch may, or eval mode, beside layers in 16 bits."""

from __future__ import annotations

import torch

from amptune.apply import check_realised, uncalled_modules
from amptune.capture import capture
from amptune.core.choice import BF16
from amptune.core.formats import Format
from amptune.core.tables import CostTable
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import with_reasons
from amptune.tune.choices.buildspace import build_space
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.running.training import training
from tests.tune.conftest import Make

BRANCHES = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.small = nn.Linear(16, 16)
        self.big = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x, big):
        return x + (self.big(x) if big else self.small(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head, self.averaged = nn.Linear(16, 5), nn.Linear(16, 5)
        self.rare = nn.Linear(16, 16)
        self.kernel = nn.Conv1d(16, 16, 1)

    def forward(self, x):
        x = self.stem(x) @ self.kernel.weight[:, :, 0]
        for index, block in enumerate(self.blocks):
            x = block(x, big=(index == 1) != (x.shape[0] == 3))
        if x.shape[0] == 3:
            x = self.rare(x)
        return (self.head if self.training else self.averaged)(x)


def make_model():
    return Net()


def make_batch():
    return torch.randn(8, 16), torch.randn(8, 5)


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""
TABLE = CostTable({}, {})


def test_what_is_not_called_has_the_format_of_its_role_or_takes_whatever_arrives(make_bench: Make) -> None:
    bench, batches = make_bench(BRANCHES)
    space = build_space(bench, capture(bench.target).graph, batches.train[0], losses=("fp32", "follow"))
    assert {path: twin for path, (_, twin) in space.uncalled.items()} == {
        "blocks.0.big.0": "blocks.1.big.0", "blocks.0.big.2": "blocks.1.big.2",
        "blocks.2.big.0": "blocks.1.big.0", "blocks.2.big.2": "blocks.1.big.2",
        "blocks.1.small": "blocks.0.small", "averaged": None, "rare": None,
    }  # fmt: skip
    assert "kernel" not in space.uncalled, "its weight is read, though it is never called"
    point = space.uniform(BF16)
    plan = with_reasons(space.decode(point, TABLE, {}), CostModel(space, TABLE, []), point)
    assert plan.sites["blocks.1.small"].format is Format.BF16
    assert plan.sites["rare"].format is Format.FP32
    assert "as blocks.0.small, which has its role" in plan.sites["blocks.1.small"].why
    assert "whatever arrives" in plan.sites["rare"].why
    assert space.decode(space.point({}), TABLE, {}).sites.keys().isdisjoint(space.uncalled)
    with training(bench, plan_candidate(plan)) as run:
        x, y = batches.train[0]
        assert not check_realised(bench.model, lambda: run.loss((x, y)).backward(), plan)
        assert torch.isfinite(run.step((x[:3], y[:3]))), "a batch that takes the other branches"


def test_where_all_is_called_the_forward_runs_no_further_time(make_bench: Make) -> None:
    bench, _ = make_bench(BRANCHES)
    called = {path for path, _ in bench.model.named_modules()} - {""}
    ran: list[bool] = []
    assert uncalled_modules(bench.model, lambda: ran.append(True), called) == {}
    assert ran == []

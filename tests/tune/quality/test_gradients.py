from __future__ import annotations

import math

import pytest
import torch

from amptune.core.choice import BF16, FP32
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.scaler import choose_scaler
from amptune.tune.quality.gradients import exponent_histogram, record_gradients
from amptune.tune.quality.sensitivity import measure_sensitivity
from amptune.tune.quality.trained import gradients_at
from amptune.tune.running.recipes import Candidate
from tests.tune.conftest import MLP, Make

FP16_HEAD = Plan(sites={"fc2": SitePlan(Format.FP16)})


def test_exponents_are_floors_of_log2() -> None:
    amax, counts = exponent_histogram(torch.tensor([0.0, 1.0, -1.5, 2.0, 0.25]))
    assert amax == 1.0
    assert counts == {0: 2, 1: 1, -2: 1}


def test_zeros_and_infinities() -> None:
    assert exponent_histogram(torch.zeros(4)) == (-math.inf, {})
    assert exponent_histogram(torch.tensor([1.0, math.inf]))[0] == math.inf


def test_one_entry_a_step_for_fp16_sites_only(make_bench: Make) -> None:
    bench, batches = make_bench(steps=5)
    record = record_gradients(bench, FP16_HEAD, batches, seed=0)
    assert len(record.steps) == 5
    # grad_output (16, 8, 13) and the gradients of weight (13, 32) and bias (13)
    assert sum(record.steps[0].exponents.values()) <= 16 * 8 * 13 + 13 * 32 + 13
    nothing = record_gradients(bench, Plan(sites={"fc2": SitePlan(Format.BF16)}), batches, seed=0)
    assert nothing.amax_log2 == -math.inf


@pytest.mark.parametrize("factor", [1.0, 2.0**-20])
def test_the_scale_follows_the_gradients(make_bench: Make, factor: float) -> None:
    bench, batches = make_bench(MLP.replace("return F.cross_entropy(", f"return {factor} * F.cross_entropy("))
    record = record_gradients(bench, FP16_HEAD, batches, seed=0)
    scaled = 2.0**record.amax_log2 * choose_scaler(record).init_scale
    assert 65504 / 32 < scaled <= 65504 / 8


SPARSE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8, sparse=True)
        self.bag = nn.EmbeddingBag(20, 8, sparse=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, ids):
        return self.fc(self.embed(ids).mean(1) + self.bag(ids))


def make_model():
    return Net()


def make_batch():
    return torch.arange(12).view(4, 3)


def loss_fn(output, batch):
    return output.square().mean()


def make_optimizer(params):
    return torch.optim.SGD(params, lr=0.1)
"""


def test_sparse_gradients_are_looked_at_with_all_their_rows(make_bench: Make) -> None:
    bench, batches = make_bench(SPARSE)
    gradients = gradients_at(bench, Candidate("fp32"), batches, bench.initial, seed=0).named
    assert gradients["embed.weight"].shape == (20, 8)
    assert measure_sensitivity(bench, {"embed": (FP32, BF16), "bag": (FP32, BF16)}, batches.train[0], seed=0)
    record = record_gradients(bench, Plan({"embed": SitePlan(Format.FP16)}), batches, seed=0)
    assert all(step.exponents for step in record.steps)


def test_complex_gradients_count_with_both_of_their_parts(make_bench: Make) -> None:
    source = SPARSE.replace(
        "self.fc = nn.Linear(8, 3)", "self.fc = nn.Parameter(torch.randn(8, 3, dtype=torch.cfloat))"
    )
    bench, batches = make_bench(
        source.replace("return self.fc(", "return ((")
        .replace("self.bag(ids))", "self.bag(ids)) .to(torch.cfloat) @ self.fc.conj()).abs()")
        .replace(", sparse=True", "")
    )
    gradients = gradients_at(bench, Candidate("fp32"), batches, bench.initial, seed=0).named
    assert gradients["fc"].shape == (8, 3, 2)
    assert bool(gradients["fc"].abs().amin() > 0)

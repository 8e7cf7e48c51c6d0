"""Products that a forward computes itself, with nothing that a layer gives: in 16 bits as under autocast, by choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amptune.apply import apply
from amptune.core.choice import BF16, FP16, FP32
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.plan import Plan
from amptune.core.tables import CostTable
from amptune.runtime import undo_plan
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.space import Space
from amptune.tune.workers.worker import Worker
from tests.tune.shipping import assert_valid, shipped, worker_of_file

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantised(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.fc = nn.Linear(i, o)

    def forward(self, x):
        scale = self.fc.weight.detach().abs().amax(1, keepdim=True) / 127
        return F.linear(x, Round.apply(self.fc.weight / scale) * scale, self.fc.bias)


class Standardised(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv = nn.Conv1d(1, o, i)
        self.gain = nn.Parameter(torch.ones(o, 1, 1))

    def forward(self, x):
        var, mean = torch.var_mean(self.conv.weight, dim=(1, 2), keepdim=True)
        weight = self.gain * (self.conv.weight - mean) / torch.sqrt(var + 1e-5)
        return F.conv1d(x.unsqueeze(1), weight, self.conv.bias).squeeze(-1)


class Lists(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(o, i) / 8, torch.randn(o, o) / 8])

    def forward(self, x):
        for weight in self.weights:
            x = F.linear(x, weight)
        return x


class Adapted(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.base = nn.Linear(i, o).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(i, 4) / 8)
        self.b = nn.Parameter(torch.randn(4, o) / 8)

    def forward(self, x):
        return self.base(x) + 2.0 * (x @ self.a) @ self.b


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = KIND(64, 32)
        self.last = KIND(32, 16)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(16, 64, generator=generator), torch.randint(16, (16,), generator=generator)


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
"""
AS_AUTOCAST = ("Quantised", "Standardised", "Lists")
"""Of which the plan computes what autocast does, number by number."""
KINDS = (*AS_AUTOCAST, "Adapted")


def worker_of(folder: Path, kind: str) -> tuple[Worker, PrecisionGraph, Space]:
    path = folder / "net.py"
    path.write_text(SOURCE.replace("KIND", kind))
    return worker_of_file(path)


def decoded(space: Space, point: dict[str, str]) -> Plan:
    return space.decode(space.made_legal(point), CostTable({}, {}), {})


def products_of(space: Space) -> set[str]:
    return {group.name for group in space.module_groups() if all("#" in site for site in group.sites)}


# torch.compile instantiates a function of the user's while it looks at it, with a plan or without.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_products_without_a_layer_have_a_choice_that_is_measured_and_shipped(tmp_path: Path, kind: str) -> None:
    worker, _, space = worker_of(tmp_path, kind)
    assert products_of(space) == {"first#autocast", "last#autocast"}
    plan = decoded(space, space.uniform(BF16))
    assert_valid(worker, plan)
    target, model, batch = shipped(tmp_path / "net.py", plan)
    assert target.call(model, batch).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", AS_AUTOCAST)
def test_they_give_what_autocast_gives(tmp_path: Path, kind: str) -> None:
    worker, _, space = worker_of(tmp_path, kind)
    model, target = worker.bench.model, worker.bench.target
    batch = target.make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = target.call(model, batch)
    apply(model, decoded(space, space.uniform(BF16)))
    assert torch.equal(target.call(model, batch), expected)
    undo_plan(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("low", ["first", "last"])
def test_each_may_stay_in_fp32_beside_the_other(tmp_path: Path, kind: str, low: str) -> None:
    worker, _, space = worker_of(tmp_path, kind)
    plan = decoded(space, space.point({group.name: "bf16" for group in space.module_groups() if low in group.name}))
    assert_valid(worker, plan)
    products = {site: entry for site, entry in plan.sites.items() if entry.how == "autocast"}
    regions = {site.partition("#")[0]: entry.format for site, entry in products.items()}
    # What comes after the other in 16 bits raises that itself; before it there is nothing to say.
    expected = {"first": {"first": Format.BF16, "last": Format.FP32}, "last": {"last": Format.BF16}}
    assert regions == expected[low]
    assert not any(entry.how == "autocast" for entry in decoded(space, space.point({})).sites.values())


def test_they_are_measured_by_themselves(tmp_path: Path) -> None:
    worker, graph, space = worker_of(tmp_path, "Quantised")
    table, sensitivity = worker.costs(space, graph), worker.sensitivity(space)
    for site in ("first#linear.0", "last#linear.0"):
        assert set(table.sites[site]) == {FP32, BF16, FP16}
        assert table.site(site, FP32).ms > 0
        assert 0 < sensitivity.error(site, BF16) < 1
    edges = [(edge.sources, edge.into) for edge in edges_of(graph, space)]
    assert (("first#linear.0",), ("last#linear.0",)) in edges


def test_blocks_of_one_role_decide_together(tmp_path: Path) -> None:
    source = SOURCE.replace("self.first(x)", "self.blocks[1](self.blocks[0](x))").replace("self.last(", "(")
    blocks = "self.blocks = nn.ModuleList([KIND(64, 64), KIND(64, 64)])"
    source = source.replace("self.first = KIND(64, 32)", blocks).replace("self.last = KIND(32, 16)", "pass")
    (tmp_path / "net.py").write_text(source.replace("KIND", "Quantised"))
    _, _, space = worker_of_file(tmp_path / "net.py")
    (group,) = space.module_groups()
    assert group.name == "blocks.*#autocast"
    assert group.sites == ("blocks.0#linear.0", "blocks.1#linear.0")


def test_what_the_user_keeps_in_fp32_and_outer_products_are_no_choice(tmp_path: Path) -> None:
    """Autocast leaves both alone, or has no time to save there."""
    lines = """
        with torch.autocast("cpu", enabled=False):
            x = x @ self.weight
        return x + torch.einsum("i,j->ij", torch.arange(16.0), self.weight[0])"""
    source = SOURCE.replace("return self.last(F.gelu(self.first(x)))", lines.strip())
    source = source.replace("self.first = KIND(64, 32)", "self.weight = nn.Parameter(torch.randn(64, 16))")
    (tmp_path / "net.py").write_text(source.replace("self.last = KIND(32, 16)", "self.unused = nn.Linear(2, 2)"))
    _, _, space = worker_of_file(tmp_path / "net.py")
    assert space.module_groups() == []

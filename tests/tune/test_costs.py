from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from amptune.core.choice import BF16, FP32
from amptune.core.formats import Format
from amptune.core.tables import CostTable, Edge
from amptune.tune.costs import Call, FloatTensor, measure_casts, measure_costs, measure_site, record_calls
from amptune.tune.device import Device

from .conftest import Make

CPU = Device("cpu")
PAIR = (Format.FP32, Format.BF16)


def test_calls_keep_shapes_and_real_indices(make_bench: Make) -> None:
    bench, batches = make_bench()
    calls = record_calls(bench, ["embed", "fc1"], batches.train[0])
    assert calls["fc1"].args == (FloatTensor((16, 8, 16), True),)
    assert torch.equal(calls["embed"].args[0], batches.train[0][0])


def test_every_module_site_gets_a_cost_in_every_format(make_bench: Make) -> None:
    bench, batches = make_bench()
    calls = {"embed": 1, "norm": 1, "fc1": 2, "fc2": 1}
    table = measure_costs(bench, calls, batches.train[0], dict.fromkeys(calls, (FP32, BF16)))
    assert set(table.sites) == {"embed", "norm", "fc1", "fc2"}
    assert not [
        (name, costs) for name, costs in table.sites.items() if not all(0 < c.ms < 1000 for c in costs.values())
    ]
    assert table.site("not measured", BF16).ms == 0


def test_a_misaligned_linear_is_also_tried_padded() -> None:
    call = Call((FloatTensor((64, 32), True),), {})
    aligned = measure_site(nn.Linear(32, 64), call, (BF16,), CPU)
    assert aligned[BF16].pad == 0
    assert measure_site(nn.Linear(32, 61), call, (BF16,), CPU)[BF16].pad in (0, 64)


def test_measuring_leaves_the_module_alone() -> None:
    module = nn.Linear(8, 8)
    before = module.weight.detach().clone()
    measure_site(module, Call((FloatTensor((4, 8), True),), {}), (BF16,), CPU)
    assert type(module) is nn.Linear
    assert module.weight.grad is None
    assert torch.equal(module.weight, before)


def test_what_cannot_run_costs_infinity() -> None:
    costs = measure_site(nn.Linear(8, 8), Call((FloatTensor((4, 9), True),), {}), (BF16,), CPU)
    assert math.isinf(costs[BF16].ms)


def test_cast_prices_are_not_negative_and_grow() -> None:
    price = measure_casts(PAIR, CPU)[frozenset(PAIR)]
    assert price.fixed >= 0
    assert price.of(10_000_000) > price.of(1_000) >= 0


def test_a_table_survives_json() -> None:
    costs = measure_site(nn.Linear(8, 8), Call((FloatTensor((4, 9), True),), {}), (BF16,), CPU)
    table = CostTable({"a": costs}, measure_casts(PAIR, CPU))
    assert CostTable.from_json(table.to_json()) == table


def test_prices_are_paid_where_formats_differ() -> None:
    table = CostTable({}, measure_casts(PAIR, CPU))
    edges = [Edge(("a",), ("b",), 1000)]
    assert table.total({"a": FP32, "b": FP32}, edges) == 0
    assert table.total({"a": FP32, "b": BF16}, edges) == pytest.approx(table.cast(*PAIR, 1000))

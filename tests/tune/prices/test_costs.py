from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amptune.core.choice import BF16, FP32, TF32, Choice
from amptune.core.formats import Format
from amptune.core.tables import CostTable, Edge, SiteCost
from amptune.tune.prices.costcache import CostCache
from amptune.tune.prices.costs import SiteMeasure, measure_casts, measure_costs, record_calls
from amptune.tune.prices.losses import measure_update
from amptune.tune.prices.sitetimes import Call, FloatTensor
from amptune.tune.quality.sensitivity import measure_sensitivity
from amptune.tune.running.device import Device
from tests.tune.conftest import Make

CPU = Device("cpu")
PAIR = (Format.FP32, Format.BF16)


def _measured(module: nn.Module, call: Call) -> dict[Choice, SiteCost]:
    return SiteMeasure(CPU, CostCache(CPU)).site(module, call, (BF16,))


def test_calls_keep_shapes_and_real_indices(make_bench: Make) -> None:
    bench, batches = make_bench()
    calls = record_calls(bench, ["embed", "fc1"], batches.train[0])
    assert calls["fc1"].args == (FloatTensor((16, 8, 16), True),)
    assert torch.equal(calls["embed"].args[0], batches.train[0][0])


PERMUTED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.conv(x)[:, :, 1:].mean((2, 3)))


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 8, 5, 6), torch.randint(0, 3, (4,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


def test_a_call_keeps_the_order_of_its_tensors_in_memory(make_bench: Make) -> None:
    """A norm over channels that come last passes images on so, and a convolution's kernel depends on it."""
    bench, batches = make_bench(PERMUTED)
    calls = record_calls(bench, ["conv", "head"], batches.train[0])
    (images,) = calls["conv"].args
    assert images.order == (0, 2, 3, 1)
    made = images.random(torch.bfloat16, torch.device("cpu"))
    assert made.shape == images.shape
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert calls["head"].args[0].order == ()
    table = measure_costs(bench, {"conv": 1}, batches.train[0], {"conv": (FP32, BF16)})
    assert all(0 < cost.ms < 1000 for cost in table.sites["conv"].values())


def test_a_tensor_with_gaps_counts_as_in_its_own_order() -> None:
    wide = torch.randn(4, 6, 8)
    assert FloatTensor.like(wide[:, :, :4]).order == ()
    assert FloatTensor.like(wide.transpose(1, 2)).order == (0, 2, 1)
    pooled = torch.randn(4, 6, 1, 1).to(memory_format=torch.channels_last)
    assert FloatTensor.like(pooled).random(torch.float32, wide.device).stride() == pooled.stride() == (6, 1, 6, 6)
    assert FloatTensor.like(wide.permute(2, 0, 1)).random(torch.float32, wide.device).stride() == (1, 48, 8)


def test_every_module_site_gets_a_cost_in_every_format(make_bench: Make) -> None:
    bench, batches = make_bench()
    calls = {"embed": 1, "norm": 1, "fc1": 2, "fc2": 1}
    table = measure_costs(bench, calls, batches.train[0], dict.fromkeys(calls, (FP32, BF16)))
    assert set(table.sites) == {"embed", "norm", "fc1", "fc2"}
    assert not [
        (name, costs) for name, costs in table.sites.items() if not all(0 < c.ms < 1000 for c in costs.values())
    ]
    assert table.site("not measured", BF16).ms == 0


def test_what_multiplies_is_measured_with_tf32_too(make_bench: Make) -> None:
    bench, batches = make_bench()
    calls = {"embed": 1, "norm": 1, "fc1": 2}
    table = measure_costs(bench, calls, batches.train[0], dict.fromkeys(calls, (FP32, BF16)), tf32=True)
    assert {name for name, costs in table.sites.items() if TF32 in costs} == {"fc1"}
    assert 0 < table.in_tf32().site("fc1", FP32).ms == table.site("fc1", TF32).ms
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_optimizer_is_measured_with_and_without_a_scaler(make_bench: Make) -> None:
    bench, _ = make_bench()
    found = measure_update(bench)
    assert found is not None
    assert 0 < found[0] < 1000
    assert 0 <= found[1] < 1000
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_a_misaligned_linear_is_also_tried_padded() -> None:
    call = Call((FloatTensor((64, 32), True),), {})
    aligned = _measured(nn.Linear(32, 64), call)
    assert aligned[BF16].pad == 0
    assert _measured(nn.Linear(32, 61), call)[BF16].pad in (0, 64)


def test_measuring_leaves_the_module_alone() -> None:
    module = nn.Linear(8, 8)
    before = module.weight.detach().clone()
    _measured(module, Call((FloatTensor((4, 8), True),), {}))
    assert type(module) is nn.Linear
    assert module.weight.grad is None
    assert torch.equal(module.weight, before)


class OnlyInFp32(nn.Linear):
    """A layer of a user's without a 16-bit form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return super().forward(x)


def test_what_cannot_run_costs_infinity() -> None:
    costs = _measured(OnlyInFp32(8, 8), Call((FloatTensor((4, 8), True),), {}))
    assert math.isfinite(costs[FP32].ms)
    assert math.isinf(costs[BF16].ms)


def test_a_layer_that_does_not_run_by_itself_is_left_to_the_whole_step() -> None:
    wrong = Call((FloatTensor((4, 9), True),), {})
    assert _measured(nn.Linear(8, 8), wrong) == {FP32: SiteCost(0.0), BF16: SiteCost(0.0)}


PACKED = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 8, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.fc(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def make_model():
    return Tagger()


def make_batch():
    return (torch.randn(3, 5, 6), torch.tensor([2, 5, 4])), torch.randn(3, 5, 3)


def loss_fn(output, batch):
    return nn.functional.mse_loss(output, batch[1])
"""


def test_packed_sequences_are_measured_and_judged(make_bench: Make) -> None:
    bench, batches = make_bench(PACKED)
    choices = dict.fromkeys(("rnn", "fc"), (FP32, BF16))
    table = measure_costs(bench, dict.fromkeys(choices, 1), batches.train[0], choices)
    assert all(0 < table.site(name, choice).ms < 1000 for name in choices for choice in (FP32, BF16))
    found = measure_sensitivity(bench, choices, batches.train[0], seed=0)
    assert 0 < found.sites["rnn"].errors[BF16].output < 0.02


def test_cast_prices_are_not_negative_and_grow() -> None:
    price = measure_casts(PAIR, CPU)[frozenset(PAIR)]
    assert price.fixed >= 0
    assert price.of(10_000_000) > price.of(1_000) >= 0


def test_a_table_survives_json() -> None:
    costs = _measured(OnlyInFp32(8, 8), Call((FloatTensor((4, 8), True),), {}))
    table = CostTable({"a": costs}, measure_casts(PAIR, CPU))
    assert CostTable.from_json(table.to_json()) == table


def test_prices_are_paid_where_formats_differ() -> None:
    table = CostTable({}, measure_casts(PAIR, CPU))
    edges = [Edge(("a",), ("b",), 1000)]
    assert table.total({"a": FP32, "b": FP32}, edges) == 0
    assert table.total({"a": FP32, "b": BF16}, edges) == pytest.approx(table.cast(*PAIR, 1000))


def test_forward_and_both_gradients_are_measured_apart() -> None:
    call = Call((FloatTensor((64, 32), True),), {})
    cost = _measured(nn.Linear(32, 32), call)[FP32]
    assert cost.forward > 0
    assert cost.input_grad > 0
    assert cost.weight_grad >= 0
    assert cost.spread >= 0
    frozen = nn.Linear(32, 32).requires_grad_(False)
    assert _measured(frozen, call)[FP32].weight_grad == 0
    first = Call((FloatTensor((64, 32), False),), {})
    assert _measured(nn.Linear(32, 32), first)[FP32].input_grad == 0


CONV = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5))


def make_batch():
    return torch.randn(4, 3, 8, 8), torch.arange(4)


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


def test_both_layouts_of_images_and_fused_prices(make_bench: Make) -> None:
    bench, batches = make_bench(CONV)
    calls = {"0": 1, "1": 1, "3": 1}
    choices = dict.fromkeys(calls, (FP32, BF16))
    table = measure_costs(bench, calls, batches.train[0], choices, fused=True, layouts=True)
    assert set(table.channels_last) == {"0", "1"}
    assert table.in_channels_last().site("0", BF16) == table.channels_last["0"][BF16]
    assert table.in_channels_last().site("3", BF16) == table.site("3", BF16)
    assert table.site("1", FP32).ms == pytest.approx(2 * table.site("1", BF16).ms), "a fused norm costs its bytes"
    assert table.cast(*PAIR, 1_000_000) == 0
    assert CostTable.from_json(table.to_json()) == table


class _Gpu(Device):
    """A CPU that says it is a GPU, for what is kept on disk."""

    @property
    def is_cuda(self) -> bool:
        return True

    def describe(self) -> dict[str, Any]:
        return {"gpu": "none", "torch": "1", "driver": "2"}


def test_costs_are_kept_on_disk_for_a_gpu(tmp_path: Path) -> None:
    cache = CostCache(_Gpu("cpu"), tmp_path)
    cache.add(SiteCost(1.0, 2.0, math.inf, pad=64), "linear", BF16)
    cache.save()
    again = CostCache(_Gpu("cpu"), tmp_path)
    assert again.get("linear", BF16) == SiteCost(1.0, 2.0, math.inf, pad=64)
    assert again.get("linear", FP32) is None
    next(tmp_path.iterdir()).write_text("{broken")
    assert CostCache(_Gpu("cpu"), tmp_path).get("linear", BF16) is None
    CostCache(CPU, tmp_path).add(SiteCost(1.0), "x")
    assert CostCache(CPU, tmp_path).get("x") is None

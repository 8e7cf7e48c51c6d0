"""Attention with operands that the forward makes in FP32: its layers run in 16 bits, as under autocast."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from amptune.apply import Fixing, apply, check_realised
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.choice import BF16, FP16, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph
from amptune.core.hardware import GPUS
from amptune.core.plan import Plan
from amptune.core.tables import CostTable, Edge
from amptune.runtime import undo_plan
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import with_reasons
from amptune.tune.choices.buildspace import build_space
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.regions import find_regions
from amptune.tune.choices.space import Space
from amptune.tune.prices.followers import follower_prices
from amptune.tune.running.device import Device
from amptune.tune.running.training import Workbench
from amptune.tune.workers.worker import Worker
from tests.tune.shipping import assert_valid, shipped, worker_of_file

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


def rotated(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x, angles):
        length = x.shape[1]
        q, k, v = self.qkv(x).view(-1, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        LINES
        return x + self.out(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        angles = torch.outer(torch.arange(x.shape[1]), torch.tensor([1.0, 0.1, 0.01, 0.001])).repeat(1, 2)
        for block in self.blocks:
            x = block(x, angles)
        return self.head(x)


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, 16, generator=generator), torch.randint(5, (4, 6), generator=generator)


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
"""
LINES = {
    "a mask": "y = (q @ k.mT / 3 + torch.full((length, length), -torch.inf).triu(1)).softmax(-1) @ v",
    "a mask of the fused kernel": (
        "y = F.scaled_dot_product_attention(q, k, v, torch.full((length, length), -torch.inf).triu(1))"
    ),
    "rotary angles": (
        "y = F.scaled_dot_product_attention(rotated(q, angles.cos(), angles.sin()), "
        "rotated(k, angles.cos(), angles.sin()), v)"
    ),
    "a softmax in FP32": "y = torch.softmax(q @ k.mT / 3, -1, dtype=torch.float32) @ v",
    "a matrix of the forward": "y = torch.einsum('bhtd,de->bhte', v * k, torch.eye(8))",
}
ALL_LOW = {"blocks.*.qkv", "blocks.*.out", "head"}


def write(folder: Path, lines: str) -> Path:
    path = folder / "net.py"
    path.write_text(SOURCE.replace("LINES", lines))
    return path


def worker_of(folder: Path, lines: str) -> tuple[Worker, PrecisionGraph, Space]:
    return worker_of_file(write(folder, lines))


def decoded(space: Space, choice: Choice, *names: str) -> Plan:
    chosen = {group.name: choice.label for group in space.module_groups() if not names or group.name in names}
    return space.decode(space.point(chosen), CostTable({}, {}), {})


@pytest.mark.parametrize("name", LINES)
def test_what_meets_fp32_is_cast_there_and_measured_and_shipped(tmp_path: Path, name: str) -> None:
    worker, _, space = worker_of(tmp_path, LINES[name])
    assert {group.name for group in space.module_groups()} == ALL_LOW
    assert space.why_fixed == {}
    plan = decoded(space, BF16)
    assert_valid(worker, plan)
    target, model, batch = shipped(tmp_path / "net.py", plan)
    seen: list[torch.dtype] = []
    model.blocks[1].qkv.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    target.loss(target.call(model, batch), batch).backward()
    assert seen == [torch.bfloat16]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_autocast_computes_in_fp32_needs_no_16_bit_kernel(tmp_path: Path) -> None:
    """A CPU's autocast does so with Fourier transforms."""
    lines = "y = F.scaled_dot_product_attention(q, k, torch.fft.irfft(torch.fft.rfft(v), 8))"
    worker, _, space = worker_of(tmp_path, lines)
    assert space.why_fixed == {}
    assert_valid(worker, decoded(space, BF16))


def test_regions_are_there_only_where_16_bits_arrive(tmp_path: Path) -> None:
    _, _, space = worker_of(tmp_path, LINES["a mask"])
    low = decoded(space, BF16, "blocks.*.qkv")
    regions = {site for site, entry in low.sites.items() if entry.how == "autocast"}
    assert regions == {f"blocks.{block}#matmul.{call}" for block in range(2) for call in range(2)}
    assert {low.sites[site].format for site in regions} == {Format.BF16}
    assert not any(entry.how == "autocast" for entry in decoded(space, BF16, "blocks.*.out", "head").sites.values())
    half = decoded(space, FP16, "blocks.*.qkv")
    assert {half.sites[site].format for site in regions} == {Format.FP16}


def test_the_reason_is_told(tmp_path: Path) -> None:
    _, _, space = worker_of(tmp_path, LINES["a mask"])
    point = space.uniform(BF16)
    plan = with_reasons(decoded(space, BF16), CostModel(space, CostTable({}, {}), []), point)
    assert "as autocast does" in plan.sites["blocks.1#matmul.1"].why


def test_a_region_of_another_format_is_found(tmp_path: Path) -> None:
    worker, _, space = worker_of(tmp_path, LINES["a mask"])
    planned, other = decoded(space, BF16), decoded(space, FP16)
    mixed = Plan({**planned.sites, **{n: s for n, s in other.sites.items() if s.how == "autocast"}})
    model, target = worker.bench.model, worker.bench.target
    batch = target.make_batch()
    apply(model, mixed)
    found = check_realised(model, lambda: target.loss(target.call(model, batch), batch).backward(), planned)
    undo_plan(model)
    assert any("its functions multiply float16" in str(mismatch) for mismatch in found)


def test_a_region_that_would_raise_functions_of_modules_within_it_is_none(tmp_path: Path) -> None:
    """CUDA's autocast computes softmax in FP32, a CPU's does not."""
    source = SOURCE.replace("LINES", LINES["a softmax in FP32"]).replace("self.head(x)", "self.head(x) @ torch.eye(5)")
    (tmp_path / "net.py").write_text(source)
    graph = capture(load_target(TargetSpec(str(tmp_path / "net.py")))).graph
    planned = {f"blocks.{block}.{layer}" for block in range(2) for layer in ("qkv", "out")} | {"head"}
    calls = [Fixing(path, "matmul", "", frozenset({path}), has_kernel=True) for path in ("", "blocks.0")]
    assert find_regions(graph, calls, planned, "cuda").keys() == {"blocks.0"}
    assert find_regions(graph, calls, planned, "cpu").keys() == {"", "blocks.0"}
    other = Fixing("blocks.0", "lerp", "", frozenset({"q"}), has_kernel=True)
    assert find_regions(graph, [other], planned, "cpu") == {}


@pytest.mark.parametrize(
    ("name", "numel", "share"),
    [
        ("a mask of the fused kernel", 6 * 6, 1.0),
        ("a softmax in FP32", 4 * 2 * 6 * 6, 1.0),
        ("a matrix of the forward", 8 * 8, 0.5),
    ],
)
def test_what_a_region_casts_is_priced(tmp_path: Path, name: str, numel: int, share: float) -> None:
    """The operand in FP32 is cast to what it meets, and what comes of it goes on in 16 bits."""
    _, graph, space = worker_of(tmp_path, LINES[name])
    edges = edges_of(graph, space)
    assert Edge((INPUT,), ("blocks.1.qkv",), numel, share) in edges
    assert [edge.sources for edge in edges if edge.into == ("blocks.1.out",)] == [("blocks.1.qkv",)]
    assert not any(edge.sources == ("blocks.1.qkv",) and edge.into == (INPUT,) for edge in edges)


def test_what_a_region_raises_is_priced(tmp_path: Path) -> None:
    """CUDA's autocast computes the softmax in FP32, in the region too."""
    _, graph, space = worker_of(tmp_path, LINES["a mask of the fused kernel"].replace("q,", "q.softmax(-1),"))
    planned = {site for group in space.module_groups() for site in group.sites}
    call = Fixing("blocks.1", "scaled_dot_product_attention", "", frozenset({"blocks.1.qkv"}), has_kernel=True)
    softmax = "blocks.1#softmax.0"
    found = {device: find_regions(graph, [call], planned, device)["blocks.1"].raised for device in ("cuda", "cpu")}
    assert found == {"cuda": {softmax}, "cpu": set()}
    groups = [
        dataclasses.replace(g, raised=found["cuda"]) if g.name == "blocks.1#autocast" else g for g in space.groups
    ]
    edges = edges_of(graph, dataclasses.replace(space, groups=tuple(groups)))
    heads = 4 * 2 * 6 * 8
    assert Edge(("blocks.1.qkv",), (INPUT,), heads, 1.0) in edges, "cast up for the softmax"
    assert Edge((INPUT,), ("blocks.1.qkv",), heads, 1.0) in edges, "and down again for the attention"
    formats, gpu = (Format.FP32, Format.BF16), GPUS["h100"]
    plain = follower_prices(graph, planned, formats, gpu)["blocks.1.qkv"]
    raised = follower_prices(graph, planned, formats, gpu, raised=found["cuda"])["blocks.1.qkv"]
    assert raised[Format.FP32] == plain[Format.FP32]
    assert raised[Format.BF16] > plain[Format.BF16]


def test_products_that_autocast_leaves_alone_keep_their_layers(tmp_path: Path) -> None:
    target = load_target(
        TargetSpec(str(write(tmp_path, LINES["a mask"].replace("@ v", "@ v.lerp(torch.ones(8), 0.5)"))))
    )
    bench = Workbench.build(target, Device("cpu"), seed=0)
    space = build_space(bench, capture(target).graph, target.make_batch())
    assert set(space.why_fixed) == {"blocks.0.qkv", "blocks.1.qkv"}


GENERATED = """
import torch
import torch.nn.functional as F
from torch import nn


class Mixed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bank = nn.Parameter(torch.randn(2, width, width) / width)
        self.route = nn.Linear(4, 2)

    def forward(self, x, context):
        weights = torch.einsum("be,eoi->boi", self.route(context).softmax(-1), self.bank)
        return torch.bmm(x, weights.mT)


class Hyper(nn.Module):
    def __init__(self):
        super().__init__()
        self.generate = nn.Linear(4, 64)

    def forward(self, x, context):
        return torch.bmm(x, self.generate(context).view(-1, 8, 8))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.mixed, self.last = Hyper(), Mixed(8), Hyper()

    def forward(self, x, context):
        return self.last(torch.relu(self.mixed(torch.relu(self.first(x, context)), context)), context)


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(6, 5, 8, generator=generator), torch.randn(6, 4, generator=generator)), None


def loss_fn(output, batch):
    return output.float().square().mean()
"""


def test_what_one_region_gives_lets_the_next_be_there(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GENERATED)
    worker, _, space = worker_of_file(tmp_path / "net.py")
    groups = [group.name for group in space.module_groups()]
    assert {"first.generate", "last.generate"} < set(groups)
    for lowered in itertools.product(["fp32", "bf16"], repeat=len(groups)):
        plan = space.decode(space.point(dict(zip(groups, lowered, strict=True))), CostTable({}, {}), {})
        apply(worker.bench.model, plan)
        worker.bench.target.call(worker.bench.model, worker.bench.target.make_batch())  # raises where two dtypes meet
        undo_plan(worker.bench.model)

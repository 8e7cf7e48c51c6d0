"""Why layers stay in FP32: the op and the user's line are named."""

from __future__ import annotations

import pytest

from amptune.capture import capture
from amptune.core.tables import CostTable
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import why_all_fp32, with_reasons
from amptune.tune.choices.buildspace import build_space
from tests.tune.conftest import Make

LAYERS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + BLOCK


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return NET


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 8)


def loss_fn(output, batch):
    return output.square().mean()
"""


def reasons(make_bench: Make, block: str, net: str) -> dict[str, str]:
    """The reason of each site in the plan that lowers nothing."""
    source = LAYERS.replace("BLOCK", block).replace("NET", net)
    bench, batches = make_bench(source)
    space = build_space(bench, capture(bench.target).graph, batches.train[0])
    table, point = CostTable({}, {}), space.point({})
    plan = with_reasons(space.decode(point, table, {}), CostModel(space, table, []), point)
    assert {s for g in space.groups if g.kind == "fixed" for s in g.sites} == space.why_fixed.keys()
    return {site: entry.why for site, entry in plan.sites.items()}


def line_of(text: str) -> int:
    source = LAYERS.splitlines()
    return 1 + next(number for number, line in enumerate(source) if text in line)


def test_an_op_that_takes_one_dtype_is_named_with_its_line(make_bench: Make) -> None:
    found = reasons(make_bench, "torch.lerp(self.fc(x), torch.ones(8), 0.5)", "self.a(x) + self.b(x)")
    said = f"its output meets a tensor that no plan casts in lerp (model.py:{line_of('BLOCK')})"
    assert found["blocks.0.fc"] == found["blocks.1.fc"] == f"fp32: {said}, which takes one dtype only"
    assert "model.py" not in found["a"]


def test_the_line_is_that_of_the_call_and_what_must_agree_says_with_what(make_bench: Make) -> None:
    """Two such ops stand in the forward; the first of them takes layers only."""
    net = "self.a(x) @ (out := self.b(x)).T + torch.lerp(\n            out, torch.ones(8), 0.5)[:, :4]"
    found = reasons(make_bench, "self.fc(x)", net)
    assert f"in lerp (model.py:{line_of('NET')})" in found["b"]
    assert found["a"] == f"fp32: as b, whose output {found['b'].partition('its output ')[2]}"


def test_an_op_without_a_16_bit_kernel_is_told_apart(make_bench: Make) -> None:
    found = reasons(make_bench, "self.fc(x)", "torch.special.bessel_j0(self.a(x)) + self.b(x)")
    assert found["a"] == f"fp32: its output goes into bessel_j0 (model.py:{line_of('NET')}), which has no 16-bit kernel"


@pytest.mark.parametrize("num_blocks", [2, 5])
def test_layers_with_one_reason_are_told_together(make_bench: Make, num_blocks: int) -> None:
    source = LAYERS.replace("range(2)", f"range({num_blocks})").replace(
        "BLOCK", "torch.lerp(self.fc(x), torch.ones(8), 0.5)"
    )
    bench, batches = make_bench(
        source.replace("NET", "torch.lerp(self.a(x), torch.ones(8), 0.5) + torch.lerp(self.b(x), torch.ones(8), 0.5)")
    )
    said = why_all_fp32(build_space(bench, capture(bench.target).graph, batches.train[0]))
    blocks = "blocks.0.fc, blocks.1.fc" + (", blocks.2.fc and 2 more" if num_blocks == 5 else "")
    assert f"{blocks}: its output meets" in said
    assert said.count("meets") == 2, "the blocks, and the two layers of the net"


def test_code_that_takes_no_16_bits_is_named_with_what_it_says(make_bench: Make) -> None:
    refuses = "(_ for _ in ()).throw(TypeError('only float32'))"
    net = f"self.b(out if (out := self.a(x)).dtype == torch.float32 else next({refuses}))"
    found = reasons(make_bench, "self.fc(x)", net)
    line = f"model.py:{line_of('NET')}"
    assert (
        found["a"] == f"fp32: its output goes into code that does not run in 16 bits ({line}): TypeError: only float32"
    )
    assert "model.py" not in found["b"]

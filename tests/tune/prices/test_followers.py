"""What follows a planned site is priced with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.choice import BF16, FP32
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import GPUS
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.choices.buildspace import build_space
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.space import COMPILED_LOSS
from amptune.tune.prices.followers import follower_prices, planned_sources, with_followers
from amptune.tune.prices.losses import PLAIN_LOSS, measure_losses
from tests.tune.conftest import Make

MODULES = ("embed", "norm", "fc1", "fc2")
FORMATS = (Format.FP32, Format.BF16)


@pytest.fixture
def graph(model_file: Path) -> PrecisionGraph:
    return capture(load_target(TargetSpec(str(model_file)))).graph


def test_sources_are_found_through_what_follows(graph: PrecisionGraph) -> None:
    assert planned_sources(graph, "#softmax.0", MODULES) == {"fc1"}
    assert planned_sources(graph, "#add.0", MODULES) == {"fc1"}
    assert planned_sources(graph, "fc2", MODULES) == {"fc1"}
    assert planned_sources(graph, "embed", MODULES) == frozenset()


def test_softmax_and_relu_belong_to_the_layer_before_them(graph: PrecisionGraph) -> None:
    prices = follower_prices(graph, MODULES, FORMATS, GPUS["h100"])
    assert set(prices) == {"fc1"}
    assert prices["fc1"][Format.FP32] >= prices["fc1"][Format.BF16] > 0
    assert follower_prices(graph, MODULES, FORMATS, None) == {}
    table = with_followers(CostTable({"fc1": {FP32: SiteCost(1.0), BF16: SiteCost(0.5)}}, {}), prices)
    assert table.site("fc1", FP32).ms == pytest.approx(1.0 + prices["fc1"][Format.FP32])
    assert CostTable.from_json(table.to_json()) == table


NORM_BY_HAND = """
class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Net"""


def test_a_norm_by_hand_hands_on_its_own_format_and_is_priced_once(
    model_file: Path, make_bench: Make, graph: PrecisionGraph
) -> None:
    text = model_file.read_text().replace("class Net", NORM_BY_HAND).replace("nn.LayerNorm(16)", "Norm()")
    model_file.write_text(text)
    bench, batches = make_bench()
    graph = capture(load_target(TargetSpec(str(model_file)))).graph
    space = build_space(bench, graph, batches.train[0])
    edges = [(edge.sources, edge.into) for edge in edges_of(graph, space)]
    assert edges.count((("embed",), ("norm",))) == 1, "it reads its input twice, and casts it once"
    assert (("norm",), ("fc1",)) in edges
    prices = follower_prices(graph, MODULES, FORMATS, GPUS["h100"])
    assert prices == follower_prices(graph, [name for name in MODULES if name != "embed"], FORMATS, GPUS["h100"])


def test_the_loss_is_measured_in_each_of_its_choices(make_bench: Make, graph: PrecisionGraph) -> None:
    bench, batches = make_bench()
    losses = measure_losses(bench, batches.train[0], ("fp32", "follow"), Format.BF16)
    assert set(losses) == {PLAIN_LOSS, "fp32", "follow"}
    assert all(0 < ms < 1000 for ms in losses.values())


def test_a_prediction_has_the_loss_of_the_format_that_arrives(make_bench: Make, graph: PrecisionGraph) -> None:
    bench, batches = make_bench()
    space = build_space(bench, graph, batches.train[0], losses=("fp32", "follow", COMPILED_LOSS))
    losses = {PLAIN_LOSS: 1.0, "fp32": 10.0, "follow": 100.0, COMPILED_LOSS: 1000.0}
    model = CostModel(space, CostTable({}, {}, losses=losses), edges_of(graph, space))
    low = {group.name: "bf16" for group in space.module_groups()}
    assert model.predicted(space.point({})) == 1.0
    assert [model.predicted(space.point(low | {":loss": loss})) for loss in ("fp32", "follow")] == [10.0, 100.0]
    assert model.predicted(space.point({":loss": COMPILED_LOSS})) == 1000.0

"""What the cost model adds up: every part of a step once, and in the mode that it runs in."""

from __future__ import annotations

import pytest

from amptune.core.choice import BF16, FP16, FP32, TF32, Choice
from amptune.core.formats import Format
from amptune.core.graph import LOSS
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.allocate import allocate
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.front import front_points
from amptune.tune.choices.space import COMPILED_LOSS, Group, Space
from amptune.tune.learning.base import SUM_ERROR, UNPRICED, base_ms
from amptune.tune.prices.losses import PLAIN_LOSS

LOSSES = {PLAIN_LOSS: 2.0, "fp32": 5.0, "follow": 1.5, COMPILED_LOSS: 3.0}
CASTS = {
    frozenset(pair): CastPrice(0.5, 0.0)
    for pair in ((Format.FP32, Format.BF16), (Format.FP32, Format.FP16), (Format.BF16, Format.FP16))
}


def make_model(losses: dict[str, float], *, scaling: float = 0.0, update: float | None = None) -> CostModel:
    """A body and a head that the loss reads; FP16 is a little faster than BF16, and TF32 than FP32."""
    groups = tuple(Group(name, (name,), "module", ("swap",), (FP32, BF16, FP16)) for name in ("body", "head"))
    costs = {FP32: SiteCost(10.0), TF32: SiteCost(6.0), BF16: SiteCost(2.0), FP16: SiteCost(1.9)}
    table = CostTable({"body": costs, "head": costs}, CASTS, losses=losses, scaling=scaling, update=update)
    space = Space(groups, tf32=True, channels_last=False, losses=("fp32", "follow", COMPILED_LOSS) if losses else ())
    return CostModel(space, table, [Edge(("body",), ("head",), 1), Edge(("head",), (LOSS,), 1)])


@pytest.mark.parametrize("losses", [{}, LOSSES])
def test_an_allocation_costs_what_its_plan_is_predicted_to_take(losses: dict[str, float]) -> None:
    model = make_model(losses)
    for body in (FP32, BF16, FP16):
        for head in (FP32, BF16, FP16):
            point = model.space.point({"body": body.label, "head": head.label})
            plans = [model.made_legal(point | {":loss": loss}) for loss in model.space.losses] or [point]
            allocated = model.problem().time({"body": body, "head": head})
            assert allocated == pytest.approx(min(map(model.predicted, plans))), (body, head)


def test_a_measured_loss_sways_the_format_that_it_reads() -> None:
    cheap, dear = (make_model({PLAIN_LOSS: 2.0, "fp32": 2.0 + extra}) for extra in (0.0, 9.0))
    assert allocate(cheap.problem())["head"] != FP32
    assert allocate(dear.problem())["head"] == FP32


def test_what_stays_in_fp32_is_priced_by_the_tf32_flag() -> None:
    model = make_model({})
    steps = {flag: model.predicted(model.space.point({":tf32": flag})) for flag in ("on", "off")}
    assert steps == {"on": 12.0, "off": 20.0}
    assert CostTable.from_json(model.table.to_json()) == model.table


def test_fp16_pays_for_the_loss_scaler() -> None:
    free, dear = make_model({}), make_model({}, scaling=1.0)
    point = free.space.uniform(FP16)
    assert dear.predicted(point) == free.predicted(point) + 1.0
    assert dear.predicted(dear.space.uniform(BF16)) == free.predicted(free.space.uniform(BF16))
    assert "fp16" in front_points(free)[0].values()
    assert "fp16" not in front_points(dear)[0].values()
    assert any("fp16" in point.values() for point in front_points(dear)), "it is tried all the same"


def test_the_rest_of_a_step_is_what_its_surest_evidence_says() -> None:
    model = make_model({})
    assert base_ms(model, {"fp32": 24.0}) == 4.0
    both = base_ms(model, {"fp32": 24.0, "tf32": 15.0})
    assert 3.0 < both < 3.5, "12 ms of sites are known better than 20 ms"
    stock = {"fp32": 24.0, "autocast-bf16": 10.0}
    precise = base_ms(make_model({}, update=1.0), stock)
    fp32, update = 1 / (SUM_ERROR * 20) ** 2, 1 / (UNPRICED * 10) ** 2
    assert precise == pytest.approx((4 * fp32 + 1 * update) / (fp32 + update))


def test_compiled_autocast_says_what_a_step_takes_beside_its_sites() -> None:
    """Its casts are fused, so that it is the plan of one format: in eager mode it is none, and says nothing."""
    model = make_model({})
    sites = model.predicted(model.space.uniform(BF16))
    stock = {"fp32": 24.0, "autocast-bf16": sites + 3.0}
    assert base_ms(model, stock, compiled=True) == pytest.approx(3.0, rel=0.15)
    assert base_ms(model, stock) == 4.0


def test_a_tf32_cost_is_no_choice_of_a_site() -> None:
    assert Choice.parse("tf32") == TF32
    assert TF32.output_format is Format.FP32
    assert TF32 not in make_model({}).space.offered()

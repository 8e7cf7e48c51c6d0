"""The plans that are tried before the search adapts."""

from __future__ import annotations

from amptune.core.choice import BF16, FP8, FP32
from amptune.core.graph import LOSS
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CostTable, Edge, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.front import front_points
from amptune.tune.choices.space import COMPILED_LOSS, Group, Space
from amptune.tune.prices.losses import PLAIN_LOSS

NAMES = tuple("abcdefgh")
EIGHT = FP8[0]


def make_model(fp8_ms: float = 0.6, losses: dict[str, float] | None = None) -> CostModel:
    """Layers that all save as much by FP8, for as much error."""
    choices = (FP32, BF16, EIGHT)
    groups = tuple(Group(name, (name,), "module", ("swap",), choices, frozenset({name})) for name in NAMES)
    costs = {FP32: SiteCost(5.0), BF16: SiteCost(1.0), EIGHT: SiteCost(fp8_ms)}
    table = CostTable(dict.fromkeys(NAMES, costs), {}, losses=losses or {})
    errors = SiteSensitivity({BF16: RoundingError(4e-3), EIGHT: RoundingError(6e-2)})
    offered = ("fp32", "follow", COMPILED_LOSS) if losses else ()
    space = Space(groups, tf32=False, channels_last=False, losses=offered)
    return CostModel(space, table, [Edge((NAMES[-1],), (LOSS,), 1)], Sensitivity(dict.fromkeys(NAMES, errors)))


def num_fp8(point: dict[str, str]) -> int:
    return sum(point[name] == EIGHT.label for name in NAMES)


def test_some_layers_have_fp8_where_all_save_as_much() -> None:
    """No weight of the error gives such a plan: at each, all layers or none are in FP8."""
    found = [front_points(make_model(), knows_fp8=known) for known in (False, True)]
    counts = [{num_fp8(p) for p in points if "fp32" not in map(p.get, NAMES)} for points in found]
    assert counts[0] == {0, 8}, "as long as nothing says how much trains"
    assert {0, 1, 2, 3, 4, 6, 8} <= counts[1]


def test_limits_of_the_error_are_for_fp8() -> None:
    points = front_points(make_model(fp8_ms=2.0), knows_fp8=True)
    assert max(map(num_fp8, points[1:])) == len(NAMES), "everything in one choice is tried all the same"
    assert not any(0 < num_fp8(point) < len(NAMES) for point in points)


def test_plans_of_less_error_have_the_cheapest_loss() -> None:
    losses = {PLAIN_LOSS: 2.0, "fp32": 5.0, "follow": 4.0, COMPILED_LOSS: 1.0}
    points = front_points(make_model(losses=losses), knows_fp8=True)
    some = [point for point in points if 0 < num_fp8(point) < len(NAMES)]
    assert some
    assert {point[":loss"] for point in some} == {COMPILED_LOSS}

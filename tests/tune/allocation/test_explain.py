"""Every number in a reason is computed again here, by the cost table's own sums."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from amptune.core.choice import BF16, FP8, FP16, FP32, TF32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Gemm, Site
from amptune.core.plan import SitePlan
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import counterfactuals, with_reasons
from amptune.tune.choices.buildspace import why_no_fp8
from amptune.tune.choices.space import Group, Space

ROWWISE = FP8[1]
CHOICES = (FP32, BF16, FP16, ROWWISE)
PRICES = {
    frozenset((Format.FP32, Format.BF16)): CastPrice(0.1, 1e-6),
    frozenset((Format.FP32, Format.FP16)): CastPrice(0.1, 1e-6),
    frozenset((Format.BF16, Format.FP16)): CastPrice(0.3, 1e-6),
}
OVERFLOW = "overflows: the output reaches 71,000, fp16 ends at 65,504"


def module(*sites: str, fp8: bool = True) -> Group:
    choices = CHOICES if fp8 else CHOICES[:3]
    return Group("+".join(sites), sites, "module", ("swap",) * len(sites), choices, frozenset(sites if fp8 else ()))


@pytest.fixture
def model() -> CostModel:
    groups = (module("a.0", "a.1"), module("norm", fp8=False), module("head"),
              Group("pin", ("x#softmax.0",), "pin", ("source",)))  # fmt: skip
    table = CostTable(
        {
            "a.0": {FP32: SiteCost(3.0), BF16: SiteCost(1.0), FP16: SiteCost(0.9), ROWWISE: SiteCost(0.7)},
            "a.1": {FP32: SiteCost(3.0), BF16: SiteCost(1.0), FP16: SiteCost(0.9), ROWWISE: SiteCost(1.4)},
            "norm": {FP32: SiteCost(0.5), BF16: SiteCost(0.45), FP16: SiteCost(0.2)},
            "head": {FP32: SiteCost(5.0), BF16: SiteCost(2.0), FP16: SiteCost(2.0), ROWWISE: SiteCost(math.inf)},
        },
        PRICES,
    )
    edges = [Edge((INPUT,), ("a.0",), 500, 0.5), Edge(("a.0",), ("a.1",), 1000), Edge(("a.0", "a.1"), ("norm",), 1000),
             Edge(("norm",), ("head",), 1000)]  # fmt: skip

    def errors(scale: float) -> dict[Choice, RoundingError]:
        return {BF16: RoundingError(3 * scale, scale), FP16: RoundingError(scale), ROWWISE: RoundingError(9 * scale)}

    overflowing = SiteSensitivity({BF16: RoundingError(0.003)}, {FP16: OVERFLOW})
    sites = {"a.0": SiteSensitivity(errors(1e-3)), "a.1": SiteSensitivity(errors(2e-3)),
             "norm": SiteSensitivity(errors(1e-4)), "head": overflowing}  # fmt: skip
    return CostModel(Space(groups, tf32=False, channels_last=False), table, edges, Sensitivity(sites))


def point(model: CostModel, **chosen: str) -> dict[str, str]:
    return model.space.point({"a.0+a.1": "bf16", "norm": "fp32", "head": "bf16"} | chosen)


@pytest.mark.parametrize("site", ["a.0", "a.1", "norm", "head"])
def test_a_counterfactual_is_the_difference_of_two_whole_predictions(model: CostModel, site: str) -> None:
    chosen = model.space.site_choices(point(model))
    found = counterfactuals(model, point(model), site)
    assert found
    for other in found:
        flipped = {**chosen, site: other.choice}
        expected = model.table.total(flipped, model.edges) - model.table.total(chosen, model.edges)
        assert other.ms == pytest.approx(expected)
        if math.isfinite(other.ms):
            assert other.compute_ms == pytest.approx(
                model.table.site(site, other.choice).ms - model.table.site(site, chosen[site]).ms
            )
        assert other.error == pytest.approx(model.sensitivity.total(flipped) - model.sensitivity.total(chosen))
        assert other.veto == model.sensitivity.veto(site, other.choice)


def reasons(model: CostModel, **chosen: str) -> dict[str, str]:
    where = point(model, **chosen)
    plan = model.space.decode(where, model.table, {})
    return {name: site.why for name, site in with_reasons(plan, model, where, lambda _g, c: f"seen {c}").sites.items()}


def test_what_is_saved_is_counted_from_fp32_as_it_would_run(model: CostModel) -> None:
    sites = {**model.table.sites, "a.0": {**model.table.sites["a.0"], TF32: SiteCost(1.6)}}
    model = dataclasses.replace(
        model,
        space=dataclasses.replace(model.space, tf32=True),
        table=dataclasses.replace(model.table, sites=sites),
    )
    on, off = (reasons(model, **{":tf32": flag}) for flag in ("on", "off"))
    assert "a step over fp32 (as tf32)," in on["a.0"]
    assert "a step over fp32," in off["a.0"]
    assert on["head"] == off["head"], "where TF32 was not measured, nothing changes"


def test_every_number_in_a_reason_can_be_recomputed(model: CostModel) -> None:
    where, why = point(model), reasons(model)
    chosen = model.space.site_choices(where)

    def flip(site: str, choice: Choice) -> float:
        return model.table.total({**chosen, site: choice}, model.edges) - model.table.total(chosen, model.edges)

    saved = re.match(r"bf16 saves ([\d.]+) ms a step over fp32, ([\d.]+)% of the plan's rounding error", why["a.0"])
    assert saved
    assert float(saved[1]) == pytest.approx(flip("a.0", FP32), abs=6e-4)
    share = model.sensitivity.error("a.0", BF16) / model.sensitivity.total(chosen)
    assert float(saved[2]) == pytest.approx(100 * share, abs=0.06)
    cheaper = re.search(r"not fp8_e4m3:rowwise: it would save ([\d.]+) ms by the cost table, for \+", why["a.0"])
    assert cheaper
    assert float(cheaper[1]) == pytest.approx(-flip("a.0", ROWWISE), abs=6e-4)
    assert "seen fp8_e4m3:rowwise" in why["a.0"]
    dearer = re.search(r"not fp8_e4m3:rowwise: it would cost ([\d.]+) ms more", why["a.1"])
    assert dearer
    assert float(dearer[1]) == pytest.approx(flip("a.1", ROWWISE), abs=6e-4)


def test_casts_that_eat_the_gain_are_named(model: CostModel) -> None:
    why = reasons(model)["norm"]
    chosen = model.space.site_choices(point(model))
    assert why.startswith("fp32")
    casts = re.search(r"not fp16: its casts cost ([\d.]+) ms, more than the ([\d.]+) ms that it saves", why)
    assert casts
    flipped = {**chosen, "norm": FP16}
    total = model.table.total(flipped, model.edges) - model.table.total(chosen, model.edges)
    assert float(casts[1]) - float(casts[2]) == pytest.approx(total, abs=2e-3)


def test_overflow_and_missing_kernels_are_named(model: CostModel) -> None:
    why = reasons(model)["head"]
    assert f"not fp16: {OVERFLOW}" in why
    assert "not fp8_e4m3:rowwise: it has no kernel here" in why


def test_a_pin_says_what_it_is(model: CostModel) -> None:
    assert reasons(model)["x#softmax.0"] == "numerically sensitive: computed in fp32 at its source line"


def test_what_is_computed_from_a_tensor_is_said_to_stay_in_fp32(model: CostModel) -> None:
    group = Group("tau", ("tau",), "module", ("late",), (FP32, BF16))
    table = dataclasses.replace(model.table, sites={**model.table.sites, "tau": {FP32: SiteCost(0), BF16: SiteCost(0)}})
    space = dataclasses.replace(model.space, groups=(*model.space.groups, group))
    wider = CostModel(space, table, model.edges, model.sensitivity)
    for choice, said in ((BF16, True), (FP32, False)):
        where = point(wider) | {"tau": choice.label}
        why = with_reasons(wider.space.decode(where, table, {}), wider, where).sites["tau"].why
        assert ("stays fp32 up to the operation where it meets 16 bits" in why) is said


def test_which_dimension_keeps_a_linear_from_fp8(model: CostModel) -> None:
    site = Site("fc", "linear", "module", "fc", gemms=(Gemm(32, 100, 64),))
    assert why_no_fp8(site) == "N=100 is no multiple of 16"
    assert why_no_fp8(Site("fc", "linear", "module", "fc", gemms=(Gemm(32, 96, 64),))) == ""
    space = Space((module("fc", fp8=False),), tf32=False, channels_last=False, no_fp8={"fc": why_no_fp8(site)})
    told = CostModel(space, CostTable({}, {}), [])
    plan = with_reasons(space.decode({"fc": "bf16"}, told.table, {}), told, {"fc": "bf16"})
    assert plan.sites["fc"] == SitePlan(Format.BF16, why=plan.sites["fc"].why)
    assert "not fp8: N=100 is no multiple of 16" in plan.sites["fc"].why

from __future__ import annotations

import dataclasses

from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.allocation.allocate import allocate
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.splits import split, split_where_it_pays

SITES = tuple(f"blocks.{i}.{name}" for i in range(12) for name in ("fc1", "fc2"))


def model_of(errors: dict[str, float], vetoed: set[str], choices: tuple[Choice, ...] = (FP32, FP16)) -> CostModel:
    group = Group("blocks.*.fc", SITES, "module", ("swap",) * len(SITES), choices)
    other = Group("head", ("head",), "module", ("swap",), choices)
    low = choices[-1]
    table = CostTable({site: {FP32: SiteCost(4.0), low: SiteCost(1.0)} for site in (*SITES, "head")}, {})
    sites = {
        site: SiteSensitivity({}, {low: "overflows"}) if site in vetoed
        else SiteSensitivity({low: RoundingError(errors.get(site, 1e-3))})
        for site in (*SITES, "head")
    }  # fmt: skip
    space = Space((group, other), tf32=False, channels_last=False, meets=(frozenset({"blocks.*.fc", "head"}),))
    return CostModel(space, table, [], Sensitivity(sites))


def test_a_block_that_overflows_no_longer_keeps_the_others_out() -> None:
    model, said = split_where_it_pays(model_of({}, {"blocks.11.fc2"}))
    assert len(said) == 1
    assert "block 11" in said[0]
    chosen = allocate(model.problem())
    point = model.space.point({name: choice.label for name, choice in chosen.items()})
    formats = model.space.site_choices(point)
    assert formats["blocks.11.fc2"] == FP32
    assert formats["blocks.11.fc1"] == FP32, "a block is taken apart whole: its sites may be tied"
    assert all(formats[f"blocks.{i}.fc1"] == FP16 for i in range(11))


def test_a_block_with_a_large_error_is_taken_apart() -> None:
    model, said = split_where_it_pays(model_of({"blocks.0.fc1": 0.1}, set(), (FP32, BF16)))
    assert [group.name for group in model.space.groups] == ["blocks.*.fc in 0", "blocks.*.fc elsewhere", "head"]
    assert said


def test_nothing_is_split_where_all_agree() -> None:
    before = model_of({}, set())
    model, said = split_where_it_pays(before)
    assert model.space == before.space
    assert said == []


def test_nothing_is_split_where_it_saves_nothing() -> None:
    before = model_of({}, {"blocks.11.fc2"})
    slow = CostTable({site: {FP32: SiteCost(1.0), FP16: SiteCost(2.0)} for site in before.table.sites}, {})
    assert split_where_it_pays(CostModel(before.space, slow, [], before.sensitivity))[1] == []


def test_a_split_loses_no_site() -> None:
    space = model_of({}, set()).space
    apart = frozenset(SITES[:2])
    parts = split(space, "blocks.*.fc", apart, "0")
    assert sorted(site for group in parts.groups for site in group.sites) == sorted((*SITES, "head"))
    assert parts.groups[0].sites == SITES[:2]
    assert parts.meets == (frozenset({"blocks.*.fc in 0", "blocks.*.fc elsewhere", "head"}),)
    assert space.fingerprint() != parts.fingerprint()


def in_fp8(fp8_ms: float, blocks: int = 12) -> CostModel:
    """A model whose group may be in FP8, which errs more the earlier the block is but for block 7."""
    before = model_of({}, set(), (FP32, BF16))
    sites = tuple(site for site in SITES if int(site.split(".")[1]) < blocks)
    group = dataclasses.replace(
        before.space.groups[0], sites=sites, how=("swap",) * len(sites), choices=(FP32, BF16, FP8[0]),
        fp8=frozenset(site for site in sites if site.endswith("fc1")),
    )  # fmt: skip
    table = {site: {FP32: SiteCost(4.0), BF16: SiteCost(1.0), FP8[0]: SiteCost(fp8_ms)} for site in (*sites, "head")}
    errors = {site: SiteSensitivity({BF16: RoundingError(1e-3), FP8[0]: RoundingError(_error(site))}) for site in table}
    space = dataclasses.replace(before.space, groups=(group, before.space.groups[1]))
    return CostModel(space, CostTable(table, {}), [], Sensitivity(errors))


def _error(site: str) -> float:
    number = int(site.split(".")[1]) if "." in site else 0
    return 0.08 if number == 7 else 0.05 - 0.001 * number


def test_where_fp8_saves_time_blocks_that_it_disturbs_more_decide_by_themselves() -> None:
    model, said = split_where_it_pays(in_fp8(0.7))
    assert [group.name for group in model.space.groups] == ["blocks.*.fc in 0-4, 7", "blocks.*.fc elsewhere", "head"]
    assert said == ["blocks.*.fc: blocks 0-4, 7, where FP8 adds most error, decide by themselves"]
    first, rest = model.space.groups[:2]
    assert set(first.sites) == {site for site in SITES if int(site.split(".")[1]) in (0, 1, 2, 3, 4, 7)}
    assert set(first.sites) | set(rest.sites) == set(SITES), "blocks are taken apart whole"
    assert FP8[0] in first.choices
    assert FP8[0] in rest.choices


def test_no_group_is_halved_where_fp8_saves_nothing_or_blocks_are_few() -> None:
    for before in (in_fp8(1.1), in_fp8(0.999), in_fp8(0.7, blocks=3)):
        model, said = split_where_it_pays(before)
        assert model.space == before.space
        assert said == []


def of_products(blocks: int = 12) -> CostModel:
    before = model_of({}, set(), (FP32, BF16))
    sites = tuple(site for site in SITES if int(site.split(".")[1]) < blocks)
    group = dataclasses.replace(before.space.groups[0], sites=sites, how=("swap",) * len(sites), multiplies=True)
    return dataclasses.replace(before, space=dataclasses.replace(before.space, groups=(group, before.space.groups[1])))


def test_blocks_whose_gradients_autocast_gets_wrong_are_taken_apart() -> None:
    """The fewest of them: here one format is wrong in a block of twelve, the other in two."""
    fragile = {"bf16": ["blocks.7.fc1.weight"], "fp16": ["blocks.7.fc2.bias", "blocks.8.fc1.weight"]}
    model, said = split_where_it_pays(of_products(), fragile)
    assert [group.name for group in model.space.groups] == ["blocks.*.fc in 7", "blocks.*.fc elsewhere", "head"]
    assert model.space.groups[0].sites == ("blocks.7.fc1", "blocks.7.fc2")
    assert said == ["blocks.*.fc: blocks 7, whose gradients autocast gets wrong, decide by themselves"]


def test_nothing_is_taken_apart_that_trains_in_a_format_or_nowhere() -> None:
    wrong = ["blocks.7.fc1.weight"]
    everywhere = [f"{site}.weight" for site in SITES]
    for fragile in ({"bf16": wrong, "fp16": []}, {"bf16": everywhere}, {"bf16": ["norm.weight"]}, {}):
        assert split_where_it_pays(of_products(), fragile)[1] == []
    assert split_where_it_pays(of_products(3), {"bf16": ["blocks.1.fc1.weight"]})[1] == []

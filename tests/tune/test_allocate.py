from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest

from amptune.core.choice import BF16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocate import allocate_two

PAIR = frozenset((Format.FP32, Format.BF16))


def random_problem(seed: int) -> tuple[dict[str, list[str]], list[Edge], CostTable]:
    rng = random.Random(seed)
    sites = [f"s{i}" for i in range(rng.randint(2, 9))]
    edges = [(a, b, rng.randint(1, 1000)) for a, b in itertools.combinations(sites, 2) if rng.random() < 0.4]
    costs = {s: {FP32: SiteCost(rng.uniform(0, 2)), BF16: SiteCost(rng.uniform(0, 2))} for s in sites}
    table = CostTable(costs, {PAIR: CastPrice(rng.uniform(0, 0.5), rng.uniform(0, 1e-3))})
    groups: dict[str, list[str]] = {}
    for site in sites:
        groups.setdefault(f"g{rng.randint(0, len(sites) - 1)}", []).append(site)
    return groups, edges, table


def total(groups: dict[str, list[str]], edges: list[Edge], table: CostTable, chosen: Mapping[str, Choice]) -> float:
    formats = {site: chosen[name] for name, sites in groups.items() for site in sites}
    return table.total(formats, edges)


@pytest.mark.parametrize("seed", range(60))
def test_minimum_cut_equals_exhaustive_search(seed: int) -> None:
    groups, edges, table = random_problem(seed)
    found = total(groups, edges, table, allocate_two(groups, edges, table, BF16))
    names = list(groups)
    best = min(
        total(groups, edges, table, dict(zip(names, formats, strict=True)))
        for formats in itertools.product((FP32, BF16), repeat=len(names))
    )
    assert found == pytest.approx(best)


def test_a_cheap_island_is_not_worth_its_casts() -> None:
    costs = {
        "a": {FP32: SiteCost(10.0), BF16: SiteCost(1.0)},
        "norm": {FP32: SiteCost(1.0), BF16: SiteCost(1.1)},
        "b": {FP32: SiteCost(10.0), BF16: SiteCost(1.0)},
    }
    edges = [("a", "norm", 100), ("norm", "b", 100)]
    groups = {name: [name] for name in costs}
    dear = CostTable(costs, {PAIR: CastPrice(1.0, 0.0)})
    free = CostTable(costs, {PAIR: CastPrice(0.0, 0.0)})
    assert allocate_two(groups, edges, dear, BF16)["norm"] == BF16
    assert allocate_two(groups, edges, free, BF16)["norm"] == FP32


def test_a_format_without_a_kernel_is_never_chosen() -> None:
    costs = {"a": {FP32: SiteCost(5.0), BF16: SiteCost(float("inf"))}}
    table = CostTable(costs, {})
    assert allocate_two({"a": ["a"]}, [], table, BF16) == {"a": FP32}


def test_a_penalty_keeps_a_group_high() -> None:
    table = CostTable({"a": {FP32: SiteCost(5.0), BF16: SiteCost(1.0)}}, {})
    assert allocate_two({"a": ["a"]}, [], table, BF16)["a"] == BF16
    assert allocate_two({"a": ["a"]}, [], table, BF16, penalty={"a": 10.0})["a"] == FP32

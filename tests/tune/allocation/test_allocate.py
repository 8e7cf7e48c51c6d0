from __future__ import annotations

import dataclasses
import itertools
import math
import random
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.allocate import Assignment, Link, Problem, allocate, front, problem_of
from amptune.tune.allocation.caps import NO_CAPS, Caps
from amptune.tune.allocation.milp import solve
from amptune.tune.allocation.mincut import minimum_cut
from amptune.tune.choices.space import Group, Space

PAIRS = [frozenset(pair) for pair in itertools.combinations((Format.FP32, Format.BF16, Format.FP16), 2)]
FOUR = (FP32, BF16, FP16, FP8[1])


def random_problem(seed: int, choices: tuple[Choice, ...], *, plain: bool, size: int = 5) -> Problem:
    """Groups with random times, errors and casts; ``plain``: no tensor is written by several groups."""
    rng = random.Random(seed)
    names = [f"g{i}" for i in range(rng.randint(2, size))]

    def side() -> frozenset[str]:
        return frozenset(rng.sample([*names, INPUT], 1 if plain else rng.randint(1, 3)))

    links = []
    for _ in range(rng.randint(0, 2 * len(names))):
        a, b = side(), side()
        if a != b:
            links.append(Link(a, b, {pair: rng.uniform(0, 0.8) for pair in PAIRS}))
    times = {name: {c: rng.uniform(0, 2) if c == FP32 or rng.random() < 0.9 else math.inf for c in choices}
             for name in names}  # fmt: skip
    errors = {name: {c: 0.0 if c == FP32 else rng.uniform(0, 1) for c in choices} for name in names}
    memory = {name: {c: c.format.bits * rng.uniform(1, 3) for c in choices} for name in names}
    meets = [frozenset(rng.sample(names, 2))] if FP16 in choices else []
    return Problem(times, links, errors, memory, meets)


def all_assignments(problem: Problem) -> Iterator[Assignment]:
    names = list(problem.times)
    for chosen in itertools.product(*(problem.times[name] for name in names)):
        yield dict(zip(names, chosen, strict=True))


def value(problem: Problem, chosen: Assignment, weight: float) -> float:
    return problem.time(chosen) + weight * problem.error(chosen)


def optimum(problem: Problem, weight: float, caps: Caps = NO_CAPS) -> float:
    legal = (chosen for chosen in all_assignments(problem) if problem.is_legal(chosen, caps))
    return min((value(problem, chosen, weight) for chosen in legal), default=math.inf)


@pytest.mark.parametrize("seed", range(40))
def test_a_minimum_cut_equals_exhaustive_search(seed: int) -> None:
    problem = random_problem(seed, (FP32, BF16), plain=True, size=9)
    cut = minimum_cut(problem, 0.5)
    assert cut is not None
    assert value(problem, cut, 0.5) == pytest.approx(optimum(problem, 0.5))


@pytest.mark.parametrize("seed", range(60))
def test_the_integer_program_equals_exhaustive_search(seed: int) -> None:
    problem = random_problem(seed, FOUR, plain=False)
    found = solve(problem, 0.3)
    assert found is not None
    assert problem.is_legal(found)
    assert value(problem, found, 0.3) == pytest.approx(optimum(problem, 0.3))


@pytest.mark.parametrize("seed", range(20))
def test_a_memory_cap_is_kept_at_the_least_cost(seed: int) -> None:
    problem = random_problem(seed, FOUR, plain=False, size=4)
    sizes = sorted(problem.bytes(chosen) for chosen in all_assignments(problem) if problem.is_legal(chosen))
    for caps in (Caps(bytes=sizes[len(sizes) // 4]), Caps(sizes[-1], error=0.7)):
        found = allocate(problem, 0.3, caps)
        assert problem.bytes(found) <= caps.bytes * (1 + 1e-5)
        assert problem.error(found) <= caps.error * (1 + 1e-5)
        assert value(problem, found, 0.3) == pytest.approx(optimum(problem, 0.3, caps))


def test_what_several_groups_write_is_no_minimum_cut() -> None:
    times = {name: {FP32: 1.0, BF16: 2.0} for name in "abc"}
    link = Link(frozenset("ab"), frozenset("c"), dict.fromkeys(PAIRS, 1.0))
    assert minimum_cut(Problem(times, [link])) is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([0.0, 0.1, 1.0, 10.0]))
def test_never_worse_than_uniform_or_greedy_plans(seed: int, weight: float) -> None:
    problem = random_problem(seed, FOUR, plain=False, size=10)
    found = value(problem, allocate(problem, weight), weight)
    for choice in FOUR:
        uniform = dict.fromkeys(problem.times, choice)
        if problem.is_legal(uniform):
            assert found <= value(problem, uniform, weight) + 1e-9
            assert found <= value(problem, greedy(problem, uniform, weight), weight) + 1e-9


def greedy(problem: Problem, start: Assignment, weight: float) -> Assignment:
    """One pass over the groups, each to its best choice at that moment."""
    best = start
    for name in problem.times:
        flips = [flip for c in problem.times[name] if problem.is_legal(flip := best | {name: c})]
        best = min(flips, key=lambda chosen: value(problem, chosen, weight))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_front_has_every_corner_and_no_plan_twice(seed: int) -> None:
    problem = random_problem(seed, (FP32, BF16, FP8[0]), plain=False)
    found = front(problem)
    assert len({tuple(sorted(chosen.items())) for chosen in found}) == len(found)
    assert problem.time(found[0]) == pytest.approx(optimum(problem, 0.0))
    times, errors = [problem.time(chosen) for chosen in found], [problem.error(chosen) for chosen in found]
    assert times == sorted(times)
    assert errors == sorted(errors, reverse=True)
    for weight in (0.01, 0.1, 0.5, 1.0, 2.0, 10.0):
        best = min(value(problem, chosen, weight) for chosen in found)
        assert best == pytest.approx(optimum(problem, weight), abs=1e-6)


def test_without_scipy_a_descent_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amptune.tune.allocation.milp", None)
    for seed in range(20):
        problem = random_problem(seed, FOUR, plain=False)
        found = allocate(problem, 0.3)
        assert problem.is_legal(found)
        assert value(problem, found, 0.3) <= 1.3 * optimum(problem, 0.3)


def space_of(*names: str, choices: tuple[Choice, ...] = (FP32, BF16)) -> Space:
    groups = tuple(Group(name, (name,), "module", ("swap",), choices, frozenset({name})) for name in names)
    return Space(groups, tf32=False, channels_last=False)


def table_of(price: float, **costs: dict[Choice, float]) -> CostTable:
    sites = {name: {c: SiteCost(ms) for c, ms in values.items()} for name, values in costs.items()}
    return CostTable(sites, dict.fromkeys(PAIRS, CastPrice(price, 0.0)))


def test_a_cheap_island_is_not_worth_its_casts() -> None:
    costs = {"a": {FP32: 10.0, BF16: 1.0}, "norm": {FP32: 1.0, BF16: 1.1}, "b": {FP32: 10.0, BF16: 1.0}}
    edges = [Edge(("a",), ("norm",), 100), Edge(("norm",), ("b",), 100)]
    space = space_of("a", "norm", "b")
    assert allocate(problem_of(space, table_of(1.0, **costs), edges))["norm"] == BF16
    assert allocate(problem_of(space, table_of(0.0, **costs), edges))["norm"] == FP32


def test_a_residual_stream_is_cast_once_by_each_reader() -> None:
    """Two writers in FP32 and one reader in BF16 pay one cast, not two."""
    space = space_of("a", "b", "reader")
    problem = problem_of(space, table_of(1.0), [Edge(("a", "b"), ("reader",), 100)])
    assert problem.time({"a": FP32, "b": FP32, "reader": BF16}) == 1.0
    assert problem.time({"a": BF16, "b": FP32, "reader": BF16}) == 1.0
    assert problem.time({"a": BF16, "b": BF16, "reader": BF16}) == 0.0
    assert problem.time({"a": BF16, "b": BF16, "reader": FP32}) == 1.0


def test_a_problem_of_groups_costs_what_its_sites_cost() -> None:
    space = space_of("a", "b", "c", choices=FOUR)
    costs = {name: {c: 1.0 + i for i, c in enumerate(FOUR)} for name in "abc"}
    table = table_of(0.25, **costs)
    edges = [Edge(("a",), ("b",), 10), Edge(("a", "b"), ("c",), 10), Edge((INPUT,), ("a",), 10, share=0.5)]
    problem = problem_of(space, table, edges)
    for chosen in all_assignments(problem):
        point = space.point({name: choice.label for name, choice in chosen.items()})
        assert problem.time(chosen) == pytest.approx(table.total(space.site_choices(point), edges))


def test_a_choice_without_a_kernel_or_with_a_veto_is_never_made() -> None:
    space = space_of("a")
    assert allocate(problem_of(space, table_of(0.0, a={FP32: 5.0, BF16: math.inf}), [])) == {"a": FP32}
    cheap = table_of(0.0, a={FP32: 5.0, BF16: 1.0})
    assert allocate(problem_of(space, cheap, [])) == {"a": BF16}
    assert allocate(problem_of(space, cheap, [], vetoes={"a": [BF16]})) == {"a": FP32}


def test_errors_outweigh_time_when_their_weight_is_large() -> None:
    problem = dataclasses.replace(
        problem_of(space_of("a"), table_of(0.0, a={FP32: 5.0, BF16: 1.0}), []), errors={"a": {FP32: 0.0, BF16: 1.0}}
    )
    assert allocate(problem, 1.0) == {"a": BF16}
    assert allocate(problem, 10.0) == {"a": FP32}


def test_nothing_to_allocate() -> None:
    assert allocate(Problem({})) == {}
    assert front(Problem({})) == [{}]

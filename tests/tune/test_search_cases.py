"""The hidden truths that searches are compared on: what the benchmark rests on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import search_cases as cases  # noqa: E402
import search_quality as quality  # noqa: E402


@pytest.fixture(scope="module")
def truth() -> cases.Truth:
    model, rest = cases.synthetic(0, 6)
    return cases.Truth.of(model, rest, 0)


def test_the_truth_is_not_the_table(truth: cases.Truth) -> None:
    space = truth.model.space
    points = [space.uniform(choice) for choice in space.offered()]
    assert all(truth.ms(p) != pytest.approx(truth.rest_ms + truth.model.predicted(p), rel=1e-3) for p in points)
    assert truth.ms(points[0]) == truth.ms(points[0])


def test_fp32_always_trains_and_fragile_choices_never(truth: cases.Truth) -> None:
    space = truth.model.space
    assert truth.trains(space.point({}))
    for name, label in truth.fragile:
        assert not truth.trains(space.point({name: label}))
        assert truth.failing(space.point({name: label})) == [name]


@pytest.mark.parametrize("method", ["front", "greedy", "random", "tpe", "amptune"])
def test_every_method_gets_the_same_trials_and_hands_over_a_plan_that_trains(
    truth: cases.Truth, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "BUDGET", 12)
    trials = quality.Trials(truth, 0, 0.0)
    quality.METHODS[method](trials)
    assert len(trials.handed) == 12
    assert trials.handed == sorted(trials.handed, reverse=True), "without noise the plan handed over only gets better"
    assert trials.handed[-1] >= truth.optimum(0) - 1e-9


def test_nothing_is_claimed_from_few_seeds_or_where_intervals_overlap() -> None:
    def run(seed: int, ours: float, theirs: float) -> dict[str, object]:
        return {"case": "c", "seed": seed, "seconds": {"amptune": 1.0, "tpe": 1.0},
                "stopped": {"amptune": 50 - seed % 2, "tpe": 50},
                "regret": {"amptune": [ours] * 3, "tpe": [theirs] * 3}}  # fmt: skip

    apart = [run(seed, 0.01 + 1e-4 * seed, 0.1 + 1e-3 * seed) for seed in range(10)]
    verdict = quality.summarised(apart, ["amptune", "tpe"])["c"]["verdict"]
    assert set(verdict["tpe"].values()) == {"ahead"}
    assert quality.summarised(apart[:9], ["amptune", "tpe"])["c"]["verdict"] == {}
    mixed = [run(seed, 0.01 * (seed % 5), 0.01 * ((seed + 2) % 5)) for seed in range(10)]
    assert set(quality.summarised(mixed, ["amptune", "tpe"])["c"]["verdict"]["tpe"].values()) == {"no difference shown"}


def test_a_recorded_table_is_read_back(truth: cases.Truth, tmp_path: Path) -> None:
    model = truth.model
    groups = [{"name": g.name, "sites": g.sites, "choices": [c.label for c in g.choices], "fp8": sorted(g.fp8)}
              for g in model.space.module_groups()]  # fmt: skip
    data = {
        "model": "net.py", "device": {"gpu": "none"}, "fp32_step_ms": 20.0, "groups": groups,
        "meets": [sorted(names) for names in model.space.meets], "costs": model.table.to_json(),
        "edges": [edge.to_json() for edge in model.edges], "sensitivity": model.sensitivity.to_json(),
    }  # fmt: skip
    (tmp_path / "net.json").write_text(json.dumps(data))
    found, rest, facts = cases.recorded(tmp_path / "net.json")
    point = model.space.uniform(model.space.offered()[-1])
    assert found.predicted(point) == pytest.approx(model.predicted(point))
    assert found.error(point) == pytest.approx(model.error(point))
    assert rest == pytest.approx(max(1.0, 20.0 - model.predicted(model.space.point({}))))
    assert facts["model"] == "net.py"

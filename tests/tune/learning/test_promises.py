"""How far what is expected of a plan is trusted after plans that were expected to be better and were not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amptune.tune.learning.acquire import chance_above
from amptune.tune.learning.adapt import Knowledge
from amptune.tune.learning.promises import share_kept
from amptune.tune.running.timing import StepTime
from amptune.tune.study.trial import Outcome, TrialRecord
from tests.tune.hosts import Host
from tests.tune.test_noisy_search import LaunchBoundWorker
from tests.tune.test_search import make_search

NOISE = 0.4


def trial(number: int, ms: float, chance: float | None = None, state: str = "valid") -> TrialRecord:
    step = {"median": ms, "low": ms, "high": ms}
    kind = "front" if chance is None else "search"
    return TrialRecord(number, {}, Outcome(kind, state, step_ms=step, gain_chance=chance))


def kept(*plans: TrialRecord) -> float:
    return share_kept(plans, NOISE, lambda outcome: outcome.ranked_ms)


def test_expectations_are_trusted_until_they_were_wrong_often_enough() -> None:
    assert kept() == kept(trial(0, 38.0)) == 1.0
    shares = [kept(trial(0, 38.0), *(trial(n + 1, 38.2, chance=0.5) for n in range(count))) for count in range(13)]
    assert shares == sorted(shares, reverse=True)
    assert shares[6] == pytest.approx(0.5)
    assert shares[12] == pytest.approx(1 / 3)


def test_a_gain_beyond_the_noise_makes_up_for_those_before() -> None:
    wrong = [trial(0, 38.0), *(trial(n, 38.2, chance=0.8) for n in (1, 2, 3))]
    assert kept(*wrong, trial(4, 37.0, chance=0.8)) == 1.0
    assert kept(*wrong, trial(4, 37.8, chance=0.8)) < kept(*wrong), "0.2 ms may be noise"


def test_small_gains_add_up_to_one() -> None:
    assert kept(*(trial(n, 38.0 - 0.25 * n, chance=0.5) for n in range(3))) == 1.0


def test_a_plan_that_does_not_train_is_no_gain() -> None:
    assert kept(trial(0, 38.0), trial(1, 35.0, chance=0.5, state="invalid")) == pytest.approx(6 / 7)


def test_plans_of_the_front_are_not_counted() -> None:
    """They were lined up for what the costs say of formats as a whole."""
    front = dataclasses.replace(trial(1, 39.0).outcome, gain_chance=0.9)
    assert kept(trial(0, 38.0), TrialRecord(1, {}, front)) == 1.0


def test_the_chance_of_a_gain_is_the_share_of_draws_above_it() -> None:
    saved, spread = np.array([0.5, -1.0, 2.0, 1.0, np.nan]), np.array([1.0, 2.0, 0.5, 0.0, 1.0])
    drawn = np.random.default_rng(0).normal(saved[:3], spread[:3], (100_000, 3))
    found = chance_above(0.3, saved, spread)
    assert found[:3] == pytest.approx((drawn > 0.3).mean(axis=0), abs=0.005)
    assert list(found[3:]) == [1.0, 0.0], "sure of it, and not known at all"


class WaitingWorker(LaunchBoundWorker):
    """Steps that take the GPU 30 ms or more, and the host as long, or a third longer at slow moments."""

    def block(self, candidate: Any) -> StepTime:
        step = self.host.block(30.0, gpu_ms=15.0 + 0.6 * self.milliseconds(candidate))
        return dataclasses.replace(step, launch_ms=30.0)


def test_a_search_beside_slow_moments_ends(tmp_path: Path) -> None:
    """The moments leave it open whether a plan might be faster: this search measured 43 trials without a gain."""
    worker = WaitingWorker(Host(3, dwell=2.0))
    worker.fragile = False
    search = make_search(tmp_path, worker, budget=60)
    search.run()
    assert search.stopped == "no gain"
    assert len(search.records()) < 32
    chances = [r.outcome.gain_chance for r in search.plans() if r.outcome.kind == "search"]
    assert all(each is not None and 0 < each <= 1 for each in chances)


def test_no_more_than_the_whole_step_is_expected_to_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host of a hundred times slower moments had "77 ms a step (2474 %)" said of a step of 3 ms."""
    promising = Knowledge.promising
    monkeypatch.setattr(Knowledge, "promising", lambda *told: (promising(*told)[0], 1e6))
    monkeypatch.setattr("amptune.tune.learning.steering.least_gain", lambda *_: 2e6)
    search = make_search(tmp_path, LaunchBoundWorker(Host(3, dwell=2.0)), budget=40)
    search.run()
    assert search.stopped == "no gain"
    assert "(100.00%), less than the noise" in capsys.readouterr().err

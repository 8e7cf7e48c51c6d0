"""``--timeout``: trials in flight are ended, the study can be continued, and the final repeats have their time."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from amptune.core.formats import Format
from amptune.tune.finalists.finals import decide
from amptune.tune.running.recipes import Candidate, float8_candidate
from amptune.tune.search import Search
from amptune.tune.study.timelimit import OVERTIME, TimeLimit, expected_seconds
from amptune.tune.study.trial import Outcome
from amptune.tune.workers.job import Measured
from amptune.tune.workers.process import TrialError
from tests.tune.test_search import Capsys, FormulaWorker, make_search

LIMIT = 1.0
"""Seconds, of which a fifth is kept for the final repeats."""
ENDLESS = 60.0


class SlowWorker(FormulaWorker):
    """Trials from some number on take this long; one that takes longer than it may loses the worker."""

    def __init__(self, slow_from: int, takes: float, said: float | None = None) -> None:
        super().__init__()
        self.slow_from = slow_from
        self.takes = takes
        self.said = said
        self.allowed: list[float] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name != "trial":
            return super().request(name, *arguments, timeout=timeout)
        self.allowed.append(timeout)
        if len(self.measured) >= self.slow_from:
            time.sleep(min(self.takes, timeout))
            if self.takes > timeout:
                raise TrialError(f"no result within {timeout:.0f} s", worker_lost=True)
        return self.trial(arguments[0])

    def trial(self, candidate: Candidate) -> Measured:
        seconds = {"step": self.said} if self.said else {}
        return dataclasses.replace(super().trial(candidate), seconds=seconds)


def timed(folder: Path, worker: FormulaWorker, timeout: float | None = LIMIT, existing: str = "refuse") -> Search:
    search = make_search(folder, worker, 20, existing)
    search.options = dataclasses.replace(search.options, timeout=timeout)
    return search


def test_a_trial_in_flight_is_ended_soon_after_the_limit(tmp_path: Path, capsys: Capsys) -> None:
    worker = SlowWorker(4, ENDLESS)
    search, began = timed(tmp_path, worker), time.monotonic()
    search.run()
    assert time.monotonic() - began < LIMIT * (1 + OVERTIME) + 1
    assert search.stopped == "timeout"
    assert "of 1 seconds are over: trial 4 (plan) was ended after" in capsys.readouterr().err
    assert len(search.records()) == 4
    assert decide(search).record.outcome.valid, "the repeats have their time all the same"


def test_the_ended_trial_is_measured_when_the_search_goes_on(tmp_path: Path) -> None:
    first = timed(tmp_path, SlowWorker(4, ENDLESS))
    first.run()
    assert first.study.num_waiting() == 1
    worker = FormulaWorker()
    second = timed(tmp_path, worker, None, "resume")
    second.options = dataclasses.replace(second.options, budget=5)
    second.run()
    assert len(worker.measured) == 1
    assert len(second.records()) == 5
    assert second.study.num_waiting() == 0


def test_a_recipe_that_time_ended_counts_as_not_measured(tmp_path: Path) -> None:
    search = timed(tmp_path, SlowWorker(1, ENDLESS))
    search.run()
    assert search.unmeasured() == ["autocast-bf16"]


def test_a_trial_that_would_end_far_beyond_the_limit_does_not_begin(tmp_path: Path, capsys: Capsys) -> None:
    worker = SlowWorker(0, 0.02, said=30.0)
    search = timed(tmp_path, worker, timeout=20.0)
    search.run()
    assert len(worker.measured) == 1
    assert "and the next trial (plan) would take about 30" in capsys.readouterr().err


def test_the_first_recipe_is_measured_whatever_it_takes(tmp_path: Path) -> None:
    """There would be nothing to report."""
    search = timed(tmp_path, SlowWorker(0, 2 * LIMIT))
    search.run()
    assert [record.outcome.recipe for record in search.records()] == ["fp32"]


def test_further_orders_of_the_reference_are_not_the_time_of_trials(tmp_path: Path, capsys: Capsys) -> None:
    """They belong to no candidate: they took 32 of a search's 45 seconds, which then had room for one recipe."""

    class WaitingWorker(SlowWorker):
        def trial(self, candidate: Candidate) -> Measured:
            first = not self.measured
            if first:
                time.sleep(1.5 * LIMIT)
            return dataclasses.replace(super().trial(candidate), seconds={"reference": 1.5 * LIMIT} if first else {})

    search = timed(tmp_path, WaitingWorker(99, 0.0))
    search.options = dataclasses.replace(search.options, budget=4)
    search.run()
    assert len(search.records()) == 4
    assert "the FP32 reference trained once more: 2 s that --timeout leaves out" in capsys.readouterr().err


def test_nor_are_they_where_the_trial_failed(tmp_path: Path) -> None:
    class FailingWorker(SlowWorker):
        def trial(self, candidate: Candidate) -> Measured:
            if self.measured:
                return super().trial(candidate)
            self.measured.append(candidate)
            time.sleep(1.5 * LIMIT)
            failure = TrialError("out of memory")
            failure.held = 1.5 * LIMIT
            raise failure

    search = timed(tmp_path, FailingWorker(99, 0.0))
    search.options = dataclasses.replace(search.options, budget=4)
    search.run()
    assert len(search.records()) == 4


def test_without_a_limit_a_trial_may_take_what_one_may_take(tmp_path: Path) -> None:
    worker = SlowWorker(0, 0.0)
    search = timed(tmp_path, worker, timeout=None)
    search.run()
    assert set(worker.allowed) == {search.options.trial_timeout}
    assert TimeLimit(None).for_a_trial() == float("inf")


def test_what_a_trial_takes_is_expected_by_its_kind() -> None:
    def outcome(recipe: str | None, seconds: float) -> Outcome:
        return Outcome("search", "valid", recipe=recipe, seconds={"step": seconds, "quality": 1.0})

    fp8, bf16 = float8_candidate("rowwise"), Candidate("autocast-bf16", autocast=Format.BF16)
    measured = [outcome("fp32", 9.0), outcome("fp8-tensorwise", 29.0), outcome(None, 4.0)]
    assert expected_seconds(fp8, measured) == 30.0
    assert expected_seconds(bf16, measured) == 10.0
    assert expected_seconds(bf16, []) == 0.0
    assert expected_seconds(fp8, measured[:1]) == pytest.approx(10.0), "by all, where none of its kind is known"

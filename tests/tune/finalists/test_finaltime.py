"""``--timeout`` and the final repeats: time is kept for them, they stay within it, and what is left out is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from amptune.capture import TargetSpec
from amptune.tune.finalists import finaltime
from amptune.tune.finalists.finals import decide
from amptune.tune.outputs.result import result_json
from amptune.tune.running import compilation
from amptune.tune.running.recipes import Candidate
from amptune.tune.search import Search
from amptune.tune.study import timelimit
from amptune.tune.study.timelimit import OVERTIME
from amptune.tune.workers.job import Job, Measured
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError
from amptune.tune.workers.worker import Worker
from tests.tune.test_search import SITES, Capsys, FormulaWorker, make_search, step

BLOCKS = 4.0
"""Seconds of compiling blocks."""
STEPS = 2.0
"""Seconds of a trial beside that."""
SHARING = len(SITES)
"""All sites have one role."""


class Compiler(FormulaWorker):
    """Takes time on a clock of its own: for compiling blocks in trials, and models for the repeats."""

    def __init__(self, whole: float = BLOCKS * SHARING / 2, blocks: float = BLOCKS) -> None:
        super().__init__()
        self.fragile = False
        self.now = 0.0
        self.whole, self.blocks = whole, blocks
        self.repeated: list[tuple[int, bool]] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            self.wait(self.blocks + STEPS, timeout)
            return self.trial(arguments[0])
        candidates, rounds, _, is_whole = arguments
        self.repeated.append((len(candidates), is_whole))
        self.wait(len(candidates) * (self.whole if is_whole else self.blocks), timeout)
        return [[step(self.milliseconds(candidate))] * rounds for candidate in candidates]

    def wait(self, seconds: float, timeout: float) -> None:
        self.now += min(seconds, timeout)
        if seconds > timeout:
            raise TrialError(f"no result within {timeout:.0f} s", worker_lost=True)

    def trial(self, candidate: Candidate) -> Measured:
        seconds = {"step": self.blocks + STEPS}
        return dataclasses.replace(super().trial(candidate), compile_seconds=self.blocks, seconds=seconds)


Searched = Callable[..., tuple[Search, Any]]


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searched:
    def run(
        worker: Compiler, timeout: float | None, budget: int = 50, parts: Parts | None = None
    ) -> tuple[Search, Any]:
        clock = SimpleNamespace(monotonic=lambda: worker.now)
        monkeypatch.setattr(finaltime, "time", clock)
        monkeypatch.setattr(timelimit, "time", clock)
        search = make_search(tmp_path, worker, budget)
        search.parts = parts or Parts()
        search.options = dataclasses.replace(search.options, timeout=timeout, compile_with="inductor")
        search.run()
        monkeypatch.setattr(search.progress, "seconds", lambda: worker.now)
        return search, decide(search)

    return run


def test_models_are_compiled_whole_within_the_limit(searched: Searched, capsys: Capsys) -> None:
    worker = Compiler()
    search, verdict = searched(worker, 100.0, budget=50)
    assert search.stopped == "timeout"
    assert worker.now <= 100 * (1 + OVERTIME)
    assert worker.repeated == [(2, True)], "the best plan and the best stock recipe"
    assert verdict.kind == "plan"
    said = capsys.readouterr().err
    assert "of 100 seconds are over (the final repeats are to have 40" in said
    assert "the final repeats take about 4" in said


def test_where_compiling_whole_does_not_fit_blocks_are_compiled(searched: Searched, capsys: Capsys) -> None:
    worker = Compiler()
    search, verdict = searched(worker, 60.0)
    assert worker.now <= 60 * (1 + OVERTIME)
    assert not any(is_whole for _, is_whole in worker.repeated)
    assert verdict.kind == "plan"
    said = "the finalists are compiled by their blocks, as in the trials: whole they would take about"
    assert said in capsys.readouterr().err
    assert any(said in note for note in result_json(search, verdict, 1.0, "plan.json")["notes"])


def test_compiling_that_takes_far_longer_than_expected_is_ended(searched: Searched) -> None:
    """The plan that was found is judged all the same."""
    worker = Compiler(whole=600.0)
    _, verdict = searched(worker, 100.0)
    assert worker.repeated[:2] == [(2, True), (2, False)]
    assert worker.now < 200
    assert verdict.kind == "plan"
    assert any("whole, no result within" in text for text in verdict.left_out)


def test_further_plans_and_the_formats_alone_are_left_out_where_time_is_short(searched: Searched) -> None:
    worker = Compiler()
    search, verdict = searched(worker, 100.0)
    first, second = (record.outcome.ranked_ms for record in search.best_plans(2))
    assert second <= 1.02 * first
    assert verdict.left_out == ("no time to repeat plans beside the one whose trial was the fastest: 1 near it",)
    assert worker.repeated == [(2, True)]


def test_without_a_limit_models_are_compiled_whole(searched: Searched) -> None:
    worker = Compiler(whole=600.0)
    _, verdict = searched(worker, None, budget=12)
    assert all(is_whole for _, is_whole in worker.repeated)
    assert [text for text in verdict.left_out if "the repeats failed" not in text] == [], "nothing for want of time"


class InParts(Compiler):
    """Each candidate is compiled as it says."""

    def __init__(self, blocks: float) -> None:
        super().__init__(whole=blocks * SHARING / 2, blocks=blocks)
        self.ended: list[str] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if name == "trial":
            return super().request(name, *arguments, timeout=timeout)
        candidates, rounds, _, is_whole = arguments
        seconds = sum(self.whole if is_whole and not each.in_parts else self.blocks for each in candidates)
        try:
            self.wait(seconds, timeout)
        except TrialError as error:
            self.ended.append(error.reason)
            raise
        return [[step(self.milliseconds(candidate))] * rounds for candidate in candidates]

    def milliseconds(self, candidate: Candidate) -> float:
        is_recipe = candidate.plan is not None and not candidate.plan.sites
        return super().milliseconds(dataclasses.replace(candidate, plan=None) if is_recipe else candidate)


def test_a_plan_that_is_compiled_whole_beside_its_parts_gets_the_time_for_it(searched: Searched) -> None:
    """It was expected to take what its blocks take, and ended with all that was compiled."""
    worker = InParts(blocks=30.0)
    worker.now = 3000.0  # what is measured before the first trial: a fifth of all that goes to the repeats
    _, verdict = searched(worker, 4000.0, budget=12, parts=Parts(("blocks.0", "blocks.1")))
    assert worker.ended == []
    assert verdict.kind == "plan"
    assert not any("whole" in text for text in verdict.left_out)


def test_in_eager_mode_a_part_of_the_limit_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Compiler(blocks=0.0)
    search = make_search(tmp_path, worker, budget=50)
    search.options = dataclasses.replace(search.options, timeout=20.0)
    monkeypatch.setattr(timelimit, "time", SimpleNamespace(monotonic=lambda: worker.now))
    search.run()
    assert search.limit.kept == pytest.approx(0.2 * 20)
    assert worker.now <= 0.8 * 20 + STEPS


BLOCKS_OF_NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(x).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def make_model():
    return Net()


def make_batch():
    return torch.ones(4, 8), torch.zeros(4, 8)


def loss_fn(output, batch):
    return (output - batch[1]).square().mean()
"""


def test_the_worker_compiles_what_the_repeats_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.py"
    path.write_text(BLOCKS_OF_NET)
    options = TuneOptions(TargetSpec(str(path)), tmp_path / "out", steps=2, compile_with="eager")
    worker = Worker(Job(options, None, {}, (), threads=1), lambda *_: None)
    scopes: list[str] = []
    honest = compilation.parts_to_compile

    def parts(model: nn.Module, scope: str) -> list[nn.Module]:
        scopes.append(scope)
        return honest(model, scope)

    monkeypatch.setattr(compilation, "parts_to_compile", parts)
    ((blocks,),) = worker.repeat([Candidate("fp32")], 1, False, False)
    ((whole,),) = worker.repeat([Candidate("fp32")], 1)
    assert scopes == ["blocks", "whole"]
    assert blocks.repeats
    assert whole.repeats

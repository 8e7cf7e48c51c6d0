from __future__ import annotations

import dataclasses

import pytest

from amptune.tune.study.outcomes import describe
from amptune.tune.study.progress import Progress
from amptune.tune.study.trial import Outcome


def test_without_a_terminal_each_stage_and_each_note_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(5)
    progress.stage("capturing the model")
    for done in range(3):
        progress.stage("measuring sites", done, 3)
    progress.stage("measuring fp32", has_line=True)
    progress.notes(["a", "b"])
    progress.notes(["b", "c"])
    assert capsys.readouterr().err.splitlines() == [
        "capturing the model ...", "measuring sites ...", "note: a", "note: b", "note: c",
    ]  # fmt: skip


def test_a_stage_that_goes_on_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(5)
    progress.still_at_work(15)
    progress.stage("compiling and measuring fp32", has_line=True)
    progress.still_at_work(15.2)
    progress.still_at_work(30.4)
    assert capsys.readouterr().err.splitlines() == [
        "compiling and measuring fp32 ... 15 s", "compiling and measuring fp32 ... 30 s",
    ]  # fmt: skip


def test_trials_of_an_earlier_run_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(9)
    progress.resume(7)
    progress.trial("trial 8: plan", "")
    progress.trial("trial 9: plan", "")
    assert capsys.readouterr().err.splitlines() == ["[8/9] trial 8: plan", "[9/9] trial 9: plan"]


def test_the_loss_gap_of_a_trial_is_told_once() -> None:
    step = {"median": 5.0, "low": 4.9, "high": 5.1, "repeats": 5}
    wide = "loss gap +1.000%, with its noise up to +3.000%, allowed 0.500%"
    outcome = Outcome("search", "invalid", wide, step_ms=step, loss_gap=0.01)
    assert describe(3, outcome) == f"trial 3: search plan: 5.00 ms a step, not valid: {wide}"
    wrong = dataclasses.replace(outcome, reason="the gradient of fc is not finite")
    assert describe(3, wrong).count("loss gap +1.000%") == 1

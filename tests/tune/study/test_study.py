from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from amptune.errors import InputError, UsageError
from amptune.tune.study.study import JOURNAL, StudyFile, locked_folder, open_study
from amptune.tune.study.trial import Outcome

CHOICES = {"a": ("fp32", "low"), "b": ("fp32", "low")}
STEP = {"median": 2.0, "low": 1.9, "high": 2.1, "repeats": 10}


def run_one(study: StudyFile, outcome: Outcome | None) -> None:
    trial, _ = study.ask(CHOICES)
    if outcome is not None:
        study.tell(trial, outcome)


def test_outcomes_come_back_after_reopening(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "refuse"):
        study = open_study(tmp_path, "refuse", seed=0)
        study.start({"identity": {"model": "x"}})
        study.enqueue({"a": "low", "b": "fp32"}, "stock", "autocast-bf16")
        run_one(study, Outcome("stock", "valid", recipe="autocast-bf16", step_ms=STEP))
        run_one(study, Outcome("search", "failed", reason="out of memory"))
    with locked_folder(tmp_path, "resume"):
        again = open_study(tmp_path, "resume", seed=0)
    assert again.resumed
    assert again.header["identity"] == {"model": "x"}
    first, second = again.records()
    assert (first.point, first.outcome.recipe, first.outcome.ranked_ms) == (
        {"a": "low", "b": "fp32"},
        "autocast-bf16",
        2,
    )
    assert second.outcome.reason == "out of memory"


def test_the_trial_in_flight_is_measured_again(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "refuse"):
        study = open_study(tmp_path, "refuse", seed=0)
        study.enqueue({"a": "low", "b": "low"}, "stock", "tf32")
        run_one(study, None)
    with locked_folder(tmp_path, "resume"):
        again = open_study(tmp_path, "resume", seed=0)
        assert again.requeue_interrupted() == 1
        trial, point = again.ask(CHOICES)
    assert point == {"a": "low", "b": "low"}
    assert trial.user_attrs["recipe"] == "tf32"


def test_a_torn_last_line_is_cut(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "refuse"):
        study = open_study(tmp_path, "refuse", seed=0)
        run_one(study, Outcome("search", "valid", step_ms=STEP))
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "study_')
    for _ in range(2):  # the second time shows that the append after the cut was sound
        with locked_folder(tmp_path, "resume"):
            again = open_study(tmp_path, "resume", seed=0)
            run_one(again, Outcome("search", "valid", step_ms=STEP))
    assert len(again.records()) == 3


def test_plain_optuna_reads_the_journal(tmp_path: Path) -> None:
    """As optuna-dashboard does: with Optuna's own storage, and without our lock."""
    with locked_folder(tmp_path, "refuse"):
        study = open_study(tmp_path, "refuse", seed=0)
        run_one(study, Outcome("search", "valid", step_ms=STEP))
        run_one(study, Outcome("search", "invalid", "loss gap", step_ms=STEP))
        run_one(study, Outcome("search", "failed", "out of memory"))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / JOURNAL)))
    (summary,) = optuna.get_all_study_summaries(storage)
    plain = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert [trial.state for trial in plain.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert plain.trials[0].params.keys() == CHOICES.keys()
    assert plain.best_trial.number == 0
    assert plain.best_value == STEP["median"]


def test_an_existing_study_is_refused_untouched(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "refuse"):
        open_study(tmp_path, "refuse", seed=0)
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(UsageError, match="--resume"), locked_folder(tmp_path, "refuse"):
        pass
    assert (tmp_path / JOURNAL).read_bytes() == before


def test_overwriting_starts_anew(tmp_path: Path) -> None:
    with locked_folder(tmp_path, "refuse"):
        run_one(open_study(tmp_path, "refuse", seed=0), Outcome("search", "valid", step_ms=STEP))
    with locked_folder(tmp_path, "overwrite"):
        assert open_study(tmp_path, "overwrite", seed=0).records() == []


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from amptune.tune.study.study import locked_folder\n"
        f"with locked_folder(Path({str(tmp_path)!r}), 'resume'): pass"
    )
    with locked_folder(tmp_path, "refuse"):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another amptune tune is working" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot make the folder .*file is no folder"),
        locked_folder(tmp_path / "file" / "out", "refuse"),
    ):
        pass


@pytest.mark.parametrize("damage", [b"garbage\n", b"[1]\n", b"\x00\xff\n"])
def test_a_damaged_study_is_not_continued(tmp_path: Path, damage: bytes) -> None:
    journal = tmp_path / JOURNAL
    with locked_folder(tmp_path, "refuse"):
        open_study(tmp_path, "refuse", 0)
    journal.write_bytes(journal.read_bytes() + damage + b'{"cut')
    with (
        pytest.raises(InputError, match=r":\d+: the study is damaged\n.*--overwrite"),
        locked_folder(tmp_path, "resume"),
    ):
        pass
    with locked_folder(tmp_path, "overwrite"):
        assert not open_study(tmp_path, "overwrite", 0).resumed


def test_a_study_that_is_a_folder_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(InputError, match="cannot read"), locked_folder(tmp_path, "resume"):
        pass

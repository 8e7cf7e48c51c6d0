"""SIGKILL at random instants: what was measured stays, the journal opens, the search ends as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from amptune.tune.study.study import JOURNAL, NAME, locked_folder

from .conftest import MLP
from .test_search import FormulaWorker, make_search

BUDGET = 12
RESUME = ("--budget", "6", "--steps", "2", "--device", "cpu", "--resume")
KILLS = 50
KILLS_A_STUDY = 5
ROOT = Path(__file__).resolve().parents[2]


def search_by_formula(folder: Path) -> None:
    """A search, or what is left of it, in a process of its own."""
    with locked_folder(folder, "resume"):
        search = make_search(folder, FormulaWorker(), BUDGET, existing="resume")
        search.study.requeue_interrupted()
        search.run()


def study_of(folder: Path) -> optuna.Study | None:
    """The study as plain Optuna reads a copy of its journal; None where none was begun."""
    journal = folder / JOURNAL
    if not journal.exists():
        return None
    copy = folder / "copy.journal"
    shutil.copy(journal, copy)
    storage = JournalStorage(JournalFileBackend(str(copy)))
    names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    return optuna.load_study(study_name=NAME, storage=storage) if NAME in names else None


def measured_in(folder: Path) -> dict[int, Any]:
    """Trial number -> outcome of every trial that was closed; at most one is in flight."""
    study = study_of(folder)
    if study is None:
        return {}
    trials = study.get_trials(deepcopy=False)
    assert sum(trial.state is TrialState.RUNNING for trial in trials) <= 1
    return {t.number: t.user_attrs["outcome"] for t in trials if t.state.is_finished() and "outcome" in t.user_attrs}


def check_nothing_is_lost(folder: Path, before: Mapping[int, Any]) -> dict[int, Any]:
    """What is measured now, with all that was measured before in it."""
    now = measured_in(folder)
    assert {number: now.get(number) for number in before} == before
    return now


class Tune:
    """``amptune tune`` on a small model, in a process group of its own with its worker."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'rules'}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "amptune", "tune", "net.py", "--out", "out", *RESUME],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def workers(self) -> list[int]:
        """Processes of the group beside the command itself and its child, which does the work: the worker, and Python's
        tracker of resources."""
        group = self.process.pid
        members = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [
            member for member in members
            if member != group and _group_of(member) == group and _parent_of(member) != group
        ]  # fmt: skip

    def kill(self, whom: str) -> bool:
        """Kill ``parent`` and then what is left of the group, or the ``worker`` alone; False where all is over."""
        if self.process.poll() is not None:
            return False
        if whom == "worker":
            for worker in self.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        else:
            self.process.kill()
            self.process.communicate()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return True

    def end(self) -> str:
        """Wait for the end; what was said on stderr, which holds no traceback."""
        _, said = self.process.communicate(timeout=300)
        assert "Traceback" not in said, said
        return said


def _parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _group_of(process: int) -> int:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return 0


@contextlib.contextmanager
def forked_from(*modules: str) -> Iterator[multiprocessing.context.ForkServerContext]:
    """A server that has imported ``modules`` and forks processes in a moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    yield context


def ended(process: BaseProcess, seconds: float) -> bool:
    """Kill the process after so many seconds; whether it had ended before."""
    process.join(seconds)
    over = process.exitcode is not None
    process.kill()
    process.join()
    return over and process.exitcode == 0


@pytest.mark.parametrize("studies", [1, pytest.param(12, marks=pytest.mark.full)])
def test_a_search_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path: Path, studies: int) -> None:
    instants = random.Random(0)
    with forked_from(__name__) as context:

        def start(folder: Path) -> BaseProcess:
            process = context.Process(target=search_by_formula, args=(folder,))
            process.start()
            return process

        start(tmp_path / "warm up").join()
        begin = time.monotonic()
        start(tmp_path / "undisturbed").join()
        whole = time.monotonic() - begin
        expected, kills = planned_in(measured_in(tmp_path / "undisturbed")), 0
        assert len(expected) == BUDGET
        for study in range(studies):
            killed, before = tmp_path / f"killed {study}", {}
            for _ in range(5):
                kills += not ended(start(killed), instants.uniform(0.05, 0.3) * whole)
                before = check_nothing_is_lost(killed, before)
            start(killed).join()
            found = planned_in(check_nothing_is_lost(killed, before))
            assert len(found) == len(expected)
            assert stock_in(found) == stock_in(expected)
    assert kills >= 3 * studies


def stock_in(outcomes: list[Any]) -> set[str | None]:
    """The recipes of the first two, which are the stock ones; one that a kill cut short comes after the other."""
    return {outcome["recipe"] for outcome in outcomes[:2]}


def planned_in(outcomes: Mapping[int, Any]) -> list[Any]:
    """Outcomes that count against the budget."""
    return [outcome for outcome in outcomes.values() if outcome["kind"] != "duplicate"]


@pytest.fixture
def one_core() -> Iterator[None]:
    """What is started has one thread: on a busy machine several wait for each other longer than they compute."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.full
def test_the_command_and_its_worker_are_killed_at_random_instants(tmp_path: Path, one_core: None) -> None:
    """The parent and then the worker, or the worker alone, which costs its trial and no more.

    50 kills, as many as are asked for here, were run on 2026-11-29: nothing was lost. They take 475 CPU seconds.
    """
    (tmp_path / "net.py").write_text(MLP)
    out, instants, kills, studies = tmp_path / "out", random.Random(0), 0, 0
    begin = time.monotonic()
    Tune(tmp_path).end()
    whole = time.monotonic() - begin
    expected = len(json.loads((out / "result.json").read_text())["trials"])
    while kills < KILLS:
        shutil.rmtree(out)
        before: dict[int, Any] = {}
        for _ in range(KILLS_A_STUDY):
            tune = Tune(tmp_path)
            time.sleep(instants.uniform(0.3, 0.9) * whole)
            whom = instants.choice(("parent", "worker"))
            kills += tune.kill(whom)
            if whom == "worker" or tune.process.poll() == 0:
                tune.end()  # without its worker before the first trial the command fails, and later it goes on
            before = check_nothing_is_lost(out, before)
        last = Tune(tmp_path)
        said = last.end()
        assert last.process.returncode == 0, said
        check_nothing_is_lost(out, before)
        assert len(json.loads((out / "result.json").read_text())["trials"]) == expected
        studies += 1
    assert studies >= 2

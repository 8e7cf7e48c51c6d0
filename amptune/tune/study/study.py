"""The Optuna study on disk: one journal file, one process at a time, nothing lost when that process is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import Trial, TrialState

from amptune.core.files import check_folder, make_folder
from amptune.errors import InputError, UsageError
from amptune.tune.study.trial import Outcome, TrialRecord

NAME = "amptune"
JOURNAL = "study.journal"
LOCK = ".study.lock"
HEADER = "header"
_ANEW = "start anew with --overwrite, or choose another --out"
NUM_STARTUP_TRIALS = 8


class StudyFile:
    """The study of one output folder."""

    def __init__(self, study: optuna.Study, resumed: bool) -> None:
        self.study = study
        self.resumed = resumed

    @property
    def header(self) -> dict[str, Any]:
        """What the study was started with: model, space, settings, cost table."""
        header: dict[str, Any] = self.study.user_attrs.get(HEADER, {})
        return header

    def start(self, header: Mapping[str, Any]) -> None:
        """Write the header of a new study."""
        self.study.set_user_attr(HEADER, dict(header))

    @property
    def lined_up(self) -> bool:
        """Whether the stock recipes and the front were lined up: a kill may have come before."""
        return bool(self.study.user_attrs.get("lined_up"))

    def mark_lined_up(self) -> None:
        """Remember that they were."""
        self.study.set_user_attr("lined_up", True)

    def enqueue(self, point: Mapping[str, str], kind: str, recipe: str | None = None) -> None:
        """Line up a point; enqueued points are asked for before the sampler, which fills in the choices it lacks."""
        self.study.enqueue_trial(dict(point), user_attrs={"kind": kind, "recipe": recipe})

    def ask(self, choices: Mapping[str, tuple[str, ...]]) -> tuple[Trial, dict[str, str]]:
        """The next trial and its point."""
        trial = self.study.ask()
        return trial, {name: str(trial.suggest_categorical(name, values)) for name, values in choices.items()}

    def keep_point(self, trial: Trial, point: Mapping[str, str]) -> None:
        """Write down what is measured where it is not what the sampler asked for."""
        if dict(point) != trial.params:
            trial.set_user_attr("point", dict(point))

    def tell(self, trial: Trial, outcome: Outcome, objective: str = "time") -> None:
        """Close a trial. A candidate that was measured but is not valid is complete with a violated constraint."""
        trial.set_user_attr("outcome", dataclasses.asdict(outcome))
        if outcome.step_ms is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint("quality", 1.0 if outcome.state == "invalid" else 0.0)
        if outcome.memory_excess is not None:
            trial.set_constraint("memory", float(outcome.memory_excess))
        self.study.tell(trial, outcome.score(objective)[0])

    def records(self) -> list[TrialRecord]:
        """All finished trials that were measured or failed as candidates, by number.

        A stock recipe that lost its worker is left out once it is lined up again: its later trial counts.
        """
        trials = self.study.get_trials(deepcopy=False)
        last = {trial.user_attrs.get("recipe"): trial.number for trial in trials}
        found = [TrialRecord.read(trial) for trial in trials if "outcome" in trial.user_attrs]
        return [r for r in found if not r.outcome.retriable or r.number == last[r.outcome.recipe]]

    def num_waiting(self) -> int:
        """How many points are lined up."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def requeue_interrupted(self) -> int:
        """Close trials that were in flight when the process died and line their points up again."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            # The point is complete only when all parameters were suggested before the kill.
            if trial.params or trial.user_attrs.get("kind"):
                fixed = trial.system_attrs.get("fixed_params", trial.params)
                attributes: dict[str, Any] = {k: trial.user_attrs.get(k) for k in ("kind", "recipe")}
                self.study.enqueue_trial(fixed, user_attrs=attributes)
            # Closed after that: a kill between the two lines the point up twice, which costs nothing, and loses none.
            self.study.tell(trial.number, state=TrialState.FAIL)
        return len(running)

    def requeue_lost(self) -> list[str]:
        """Line up again the stock recipes whose worker was lost; their names."""
        lost = [record for record in self.records() if record.outcome.retriable]
        for record in lost:
            self.enqueue(record.point, "stock", record.outcome.recipe)
        return [str(record.outcome.recipe) for record in lost]


class _HeldLock(BaseJournalFileLock):
    """The journal's lock: nothing to do, since this process holds the folder's lock for its whole life.

    Optuna's own lock file survives a kill and then costs 30 s of waiting; the operating system frees ours.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class _Journal(JournalFileBackend):
    """The journal, whose disk may be full."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_HeldLock())
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, or say that the file cannot be written; what is cut short then is left out by the next --resume."""
        try:
            super().append_logs(logs)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror or error}",
                             hint="free space, and go on with --resume; or choose another --out") from None  # fmt: skip


def check_study(folder: Path, existing: str) -> None:
    """Refuse an output folder before any work, and touch nothing in it.

    Raises:
        UsageError: a study is there and ``existing`` is ``refuse``.
        InputError: the folder cannot be made or written to, or the study to continue is damaged.
    """
    check_folder(folder)
    if existing == "refuse" and holds_study(folder):
        hint = "continue it with --resume, or start anew with --overwrite"
        raise UsageError(f"{folder / JOURNAL} already holds a study", hint=hint)
    if existing == "resume" and (folder / JOURNAL).exists():
        _check_journal(folder / JOURNAL)


@contextlib.contextmanager
def locked_folder(folder: Path, existing: str) -> Iterator[None]:
    """Hold ``folder`` (made when missing) for this process, after checking that its study may be touched.

    Raises:
        UsageError: a study is there and ``existing`` is ``refuse``, or another process works on it.
        InputError: the folder cannot be written.
    """
    check_study(folder, existing)
    make_folder(folder)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        message = f"{folder}: another amptune tune is working in this folder"
        raise UsageError(message, hint="choose another --out") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}", hint="choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def open_study(folder: Path, existing: str, seed: int) -> StudyFile:
    """The study in a locked folder: a new one, or the one to continue. ``seed`` is the sampler's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    if existing == "overwrite":
        path.unlink(missing_ok=True)
    resumed = holds_study(folder)
    if resumed:
        _cut_torn_line(path)
    storage = JournalStorage(_Journal(path))
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=NUM_STARTUP_TRIALS)
    study = optuna.create_study(
        storage=storage, study_name=NAME, direction="minimize", sampler=sampler, load_if_exists=True
    )
    return StudyFile(study, resumed)


def holds_study(folder: Path) -> bool:
    """Whether a folder has the journal of a study."""
    path = folder / JOURNAL
    return path.exists() and path.stat().st_size > 0


def _check_journal(path: Path) -> None:
    """Each whole line of a journal is an object in JSON; what follows the last newline was cut short."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", hint=_ANEW) from None
    for number, line in enumerate(lines, 1):
        try:
            is_entry = isinstance(json.loads(line), dict)
        except ValueError:
            is_entry = False
        if not is_entry:
            raise InputError(f"{path}:{number}: the study is damaged", hint=_ANEW)


def _cut_torn_line(path: Path) -> None:
    """Drop what follows the last newline: a write that a kill cut short would make the next append corrupt."""
    with open(path, "r+b") as stream:
        content = stream.read()
        end = content.rfind(b"\n") + 1
        if end != len(content):
            stream.truncate(end)
            os.fsync(stream.fileno())

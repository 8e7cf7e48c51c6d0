"""The Optuna study on disk: one journal file, one process at a time, nothing lost when that process is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, Trial, TrialState

from amptune.core.files import check_folder, make_folder
from amptune.errors import InputError, UsageError
from amptune.tune.noise import Noise

NAME = "amptune"
JOURNAL = "study.journal"
LOCK = ".study.lock"
HEADER = "header"
_ANEW = "start anew with --overwrite, or choose another --out"
NUM_STARTUP_TRIALS = 8
NORMAL_QUARTILES = 1.35
"""Standard deviations between the quartiles of a normal distribution."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one trial gave, as it is kept in the journal and told in result.json.

    ``state`` is valid, invalid (does not train as well; without a step where that was clear before compiling),
    too_large (trains, but takes more memory than is allowed), slow (given up) or failed; ``failing`` names the
    parameters whose gradients are wrong.
    ``gradient_noise`` has the fields of ``noise.Noise``.
    ``worker_lost`` says that the worker died or hung or lost the device, which may have had another cause.
    ``memory_excess`` is the memory minus the allowed one, where there is a limit. ``predicted_ms`` was predicted before
    the measurement, ``table_ms`` by the cost table alone, without what earlier trials taught. ``launch_ms`` is what
    Python takes to queue a step, where that is known. ``unsteady`` says that the time depends on the host's moment;
    then ``paired`` holds how the step compares with the one of an earlier trial that was timed again in turns with it:
    its number (``trial``), the median ``ratio`` with quartiles, how many ratios (``count``), and what the other one's
    step took there (``beside_ms``). ``recompiled`` says that torch.compile was still at work in the timed steps.
    ``loss_scale`` is what a loss scaler started with when training was judged, after it skipped steps with its own.
    ``seconds``: what the trial took to compare the formats that ran, to look at gradients before compiling, to measure
    its step, to judge how it trains, and for orders of the reference that nothing had asked for before.

    A step has three times, each of which says more than the one before:

    - by the clock: ``step_ms``, whose median is ``measured_ms``;
    - at the trial's end: ``compared_ms``, which for an unsteady one is ``paired_ms``, the ratio times the other trial's
      step as it was known then: on the scale of what was predicted before the trial, and compared with that;
    - in the end: ``ranked_ms``, by which trials are ranked and which the report draws: ``usual_ms`` where later trials
      have told more of that step (see ``moments``; it is no part of the journal), else ``compared_ms``.
    """

    kind: str
    state: str
    reason: str = ""
    recipe: str | None = None
    plan_hash: str | None = None
    step_ms: Mapping[str, Any] | None = None
    predicted_ms: float | None = None
    table_ms: float | None = None
    memory_bytes: int | None = None
    memory_excess: int | None = None
    loss_gap: float | None = None
    loss_gap_upper: float | None = None
    worst_cosine: float | None = None
    gradient_noise: Mapping[str, float] | None = None
    skipped_steps: int | None = None
    loss_scale: float | None = None
    evaluation: float | None = None
    compile_seconds: float | None = None
    launch_bound: bool = False
    launch_ms: float | None = None
    unsteady: bool = False
    paired: Mapping[str, Any] | None = None
    paired_ms: float | None = None
    usual_ms: float | None = None
    recompiled: bool = False
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failing: Sequence[str] = ()
    worker_lost: bool = False

    @property
    def valid(self) -> bool:
        """Whether the trial was measured and trains as well as the reference."""
        return self.state == "valid"

    @property
    def noise(self) -> Noise | None:
        """What rounding adds to the direction of the gradients, where that is known."""
        return Noise(**self.gradient_noise) if self.gradient_noise else None

    @property
    def retriable(self) -> bool:
        """Whether a resumed study tries it again: all else is compared with the stock recipes."""
        return self.worker_lost and self.recipe is not None

    @property
    def ranked_ms(self) -> float:
        """Step time to rank by (see the class); infinite when there is none."""
        return self.compared_ms if self.usual_ms is None else self.usual_ms

    @property
    def compared_ms(self) -> float:
        """Step time as it was known when the trial ended (see the class); infinite when there is none."""
        return self.measured_ms if self.paired_ms is None else self.paired_ms

    @property
    def measured_ms(self) -> float:
        """Step time as the clock had it; infinite when there is none."""
        return float(self.step_ms["median"]) if self.step_ms else math.inf

    def overlaps(self, other: Outcome) -> bool:
        """Whether the quartiles of their steps do, so that which is faster is open."""
        mine, theirs = self.step_ms, other.step_ms
        if mine is None or theirs is None:
            return False
        return bool(mine["low"] <= theirs["high"] and theirs["low"] <= mine["high"])

    @property
    def least_ms(self) -> float:
        """What a step takes at most on the GPU alone: most steps took longer; infinite when there is none."""
        return float(self.step_ms["low"]) if self.step_ms else math.inf

    @property
    def spread_ms(self) -> float:
        """Standard deviation of the step time, from quartiles; of the middle of its ratios where it is paired."""
        if self.paired:
            ratio, count = float(self.paired["ratio"]), int(self.paired["count"])
            return self.ranked_ms * _spread(self.paired) / ratio / math.sqrt(count)
        return _spread(self.step_ms) if self.step_ms else 0.0

    def score(self, objective: str) -> tuple[float, float]:
        """What is to be small: the step time, or the memory and then the step time."""
        if objective == "time":
            return self.ranked_ms, 0.0
        return math.inf if self.memory_bytes is None else float(self.memory_bytes), self.ranked_ms


def _spread(quartiles: Mapping[str, Any]) -> float:
    return (float(quartiles["high"]) - float(quartiles["low"])) / NORMAL_QUARTILES


@dataclasses.dataclass(frozen=True, eq=False)
class TrialRecord:
    """A finished trial: its number, the point that was measured and its outcome."""

    number: int
    point: dict[str, str]
    outcome: Outcome

    @classmethod
    def read(cls, trial: FrozenTrial) -> TrialRecord:
        """From the study."""
        point = trial.user_attrs.get("point") or dict(trial.params)
        return cls(trial.number, point, Outcome(**trial.user_attrs["outcome"]))


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
    if existing == "refuse" and _holds_study(folder / JOURNAL):
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
    resumed = _holds_study(path)
    if resumed:
        _cut_torn_line(path)
    storage = JournalStorage(_Journal(path))
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=NUM_STARTUP_TRIALS)
    study = optuna.create_study(
        storage=storage, study_name=NAME, direction="minimize", sampler=sampler, load_if_exists=True
    )
    return StudyFile(study, resumed)


def _holds_study(path: Path) -> bool:
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

"""A finalist: a trial that is measured again, in one of the ways to run its model, and the rounds of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amptune.errors import TuneError
from amptune.tune.finalists.finaltime import FinalTime
from amptune.tune.finalists.speedup import ERROR, Speedup
from amptune.tune.finalists.way import Way
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime, pooled
from amptune.tune.search import Search
from amptune.tune.study.trial import Outcome, TrialRecord
from amptune.tune.workers.process import TrialError


class EndlessError(TrialError):
    """torch.compile is never done with the model, whichever candidate it is."""


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A trial that is repeated in one way, with the step times of its rounds so far."""

    record: TrialRecord
    candidate: Candidate
    way: Way
    times: list[StepTime] = dataclasses.field(default_factory=list)

    @property
    def afresh(self) -> Finalist:
        """The same without its rounds."""
        return dataclasses.replace(self, times=[])

    @property
    def is_by_trial(self) -> bool:
        """Whether its blocks are compiled by what trials do, and not by its plan."""
        return self.way is Way.PARTS and not self.candidate.in_parts

    @property
    def step(self) -> StepTime:
        """All repeats of all rounds."""
        return pooled(self.times)

    @property
    def memory(self) -> int | None:
        """Peak memory in the rounds, which may be compiled otherwise than the trial was; else the trial's."""
        measured = self.step.memory if self.times else None
        return self.record.outcome.memory_bytes if measured is None else measured

    def speedup_of(self, plan: Finalist, error: float = ERROR) -> Speedup:
        """How much faster a plan is than this one."""
        return Speedup.of(self.times, plan.times, error)


def recipe_as(search: Search, record: TrialRecord, way: Way) -> Finalist:
    """The stock recipe of a trial, in one way."""
    recipe = search.recipes[str(record.outcome.recipe)]
    return Finalist(record, recipe.in_eager() if way is Way.EAGER else recipe, way)


def plan_as(search: Search, record: TrialRecord, way: Way) -> Finalist:
    """The plan of a trial, in one way; in parts it says itself what is compiled, if there are parts to say."""
    plan = search.plan_of(record)
    candidate = plan_candidate(search.parts.of(plan) if way is Way.PARTS else plan)
    return Finalist(record, candidate.in_eager() if way is Way.EAGER else candidate, way)


def compiled_plan(search: Search, record: TrialRecord) -> Finalist:
    """The plan of a trial compiled: in parts where there are any, which are what trials compile."""
    return plan_as(search, record, Way.PARTS if search.parts else Way.WHOLE)


def repeat(search: Search, finalists: Sequence[Finalist], rounds: int, clock: FinalTime) -> TrialError | None:
    """Add rounds of these in turns; why there are none, or nothing. After the first rounds compiled code is good."""
    candidates = [finalist.candidate for finalist in finalists]
    before, patience = clock.spent(), clock.patience(finalists, rounds)
    try:
        found: list[list[StepTime]] = search.worker.request(
            "repeat",
            candidates,
            rounds,
            clock.blocks > 0,
            not any(each.is_by_trial for each in finalists),
            timeout=patience,
        )
    except TrialError as failure:
        return failure
    except TuneError as error:  # a model that is compiled anew in each step, which trials in eager mode do not show
        return EndlessError(error.message)
    for finalist, times in zip(finalists, found, strict=True):
        finalist.times.extend(times)
    clock.note(clock.spent() - before, finalists, rounds)
    return None


def fits(search: Search, finalist: Finalist) -> bool:
    """Whether its repeats kept the memory limit, if there is one."""
    most = search.options.max_memory
    return most is None or all((step.memory or 0) <= most for step in finalist.times)


def outcomes_of(finalists: Sequence[Finalist]) -> list[Outcome]:
    """Of their trials."""
    return [finalist.record.outcome for finalist in finalists]


def width(speedup: Speedup) -> float:
    """Of the interval that it lies in."""
    return speedup.high - speedup.low

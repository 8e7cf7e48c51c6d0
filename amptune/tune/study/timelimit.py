"""``--timeout``: when no further trial starts, and when the one in flight is ended, so that the repeats have time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from amptune.tune.running.recipes import Candidate
from amptune.tune.study.trial import Outcome
from amptune.tune.workers.job import REFERENCE_SECONDS

OVERTIME = 0.1
"""Share of the limit that the trial in flight may take beyond it: what it measures is worth that."""


class OutOfTimeError(Exception):
    """The trial in flight was ended, or not begun, since it would end far beyond the limit."""


class TimeLimit:
    """Seconds for the trials of one search and its final repeats, from now on; None for no limit.

    Attributes:
        seconds: as asked for.
        kept: those of them that no trial takes, for the repeats.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.kept = 0.0
        self._aside = 0.0
        self._began = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether no further trial starts."""
        return self.spent() > self.for_trials

    @property
    def longest(self) -> float:
        """The limit; infinite where there is none."""
        return math.inf if self.seconds is None else self.seconds

    @property
    def for_trials(self) -> float:
        """Seconds of all trials."""
        return self.longest - self.kept

    def spent(self) -> float:
        """Seconds so far, without those that were set aside."""
        return time.monotonic() - self._began - self._aside

    def set_aside(self, seconds: float) -> None:
        """Not count what a trial spent on something else than its candidate."""
        self._aside += seconds

    def for_a_trial(self) -> float:
        """Seconds that a trial which starts now may take."""
        return max(0.0, self.for_trials + self._overtime - self.spent())

    @property
    def _overtime(self) -> float:
        return 0.0 if self.seconds is None else OVERTIME * self.seconds

    def seconds_for(self, candidate: Candidate, measured: Sequence[Outcome], most: float) -> float:
        """What the trial of a candidate may take: ``most``, or what is left once there is a recipe to report.

        Raises:
            OutOfTimeError: trials like it take longer.
        """
        left = self.for_a_trial()
        if left >= most or not any(outcome.recipe and outcome.valid for outcome in measured):
            return most
        expected = expected_seconds(candidate, measured)
        if expected > left:
            raise OutOfTimeError(
                f"{self.spent():.0f} of {self.longest:g} seconds are over, and the next trial ({candidate.name}) would "
                f"take about {expected:.0f}{self._but_kept}"
            )
        return left

    @property
    def text(self) -> str:
        """That the time of the trials is over."""
        return f"{self.spent():.0f} of {self.longest:g} seconds are over{self._but_kept}"

    @property
    def _but_kept(self) -> str:
        return f" (the final repeats are to have {self.kept:.0f})" if self.kept >= 1 else ""

    def ended(self, trial: str, after: float) -> str:
        """That a trial was ended for it."""
        return f"{self.text}: {trial} was ended after {after:.0f} s, --resume measures it"


def seconds_of(outcome: Outcome) -> float:
    """What a trial took for its own candidate."""
    return sum(seconds for what, seconds in outcome.seconds.items() if what != REFERENCE_SECONDS)


def expected_seconds(candidate: Candidate, measured: Sequence[Outcome]) -> float:
    """What a trial of a candidate is expected to take, by those of its kind, or by all; 0 where none is known.

    FP8 recipes are a kind of their own: under torch.compile one takes as long as three plans.
    """
    sort = _sort(candidate.is_stock, is_fp8=candidate.float8 is not None)
    known = [(outcome, seconds_of(outcome)) for outcome in measured if outcome.seconds]
    alike = [s for o, s in known if _sort(o.recipe is not None, is_fp8=(o.recipe or "").startswith("fp8")) == sort]
    return statistics.median(alike or [seconds for _, seconds in known] or [0.0])


def _sort(is_stock: bool, *, is_fp8: bool) -> tuple[bool, bool]:
    return is_stock, is_stock and is_fp8

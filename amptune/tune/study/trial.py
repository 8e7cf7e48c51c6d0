"""What is kept of a trial: its point and its outcome, with the words for what its step took."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from amptune.tune.quality.noise import Noise

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
    the measurement, ``table_ms`` by the cost table alone, without what earlier trials taught. ``gain_chance`` was the
    chance, before it, that the plan is better than the best one by more than the noise. ``launch_ms`` is what Python
    takes to queue a step, where that is known. ``unsteady`` says that the time depends on the host's moment;
    then ``paired`` holds how the step compares with the one of an earlier trial that was timed again in turns with it:
    its number (``trial``), the median ``ratio`` with quartiles, how many ratios (``count``), and what the other one's
    step took there (``beside_ms``). ``recompiled`` says that torch.compile was still at work in the timed steps.
    ``loss_scale`` is what a loss scaler started with when training was judged, after it skipped steps with its own.
    ``seconds``: what the trial took to compare the formats that ran, to look at gradients before compiling, to measure
    its step, to judge how it trains, and for what the reference trained meanwhile (see ``job.REFERENCE_SECONDS``).

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
    gain_chance: float | None = None
    memory_bytes: int | None = None
    memory_excess: int | None = None
    loss_gap: float | None = None
    loss_gap_upper: float | None = None
    loss_gap_allowed: float | None = None
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

"""What goes between the parent and the worker process: the job, and what is answered to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from amptune.tune.quality.quality import Quality
from amptune.tune.running.timing import StepTime
from amptune.tune.workers.options import TuneOptions


@dataclasses.dataclass(frozen=True)
class Job:
    """What the child needs to start.

    Attributes:
        options: settings.
        trial_source: the user's source with lookups at its functional ops; None for a model from a package.
        codes: site id of each functional op -> its place in that source.
        pins: functional sites that a plan may pin there.
        threads: of torch on the CPU.
        takes_gradients: whether the forward or the loss takes gradients itself.
        parameters: names of the parameters of the model that was captured; None where that is not known.
    """

    options: TuneOptions
    trial_source: str | None
    codes: dict[str, str]
    pins: tuple[str, ...]
    threads: int
    takes_gradients: bool = False
    parameters: frozenset[str] | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the parent learns once the reference has run."""

    device: dict[str, Any]
    noise: float
    initial_loss: float
    reference_loss: float
    quality_data: str
    notes: tuple[str, ...]


REFERENCE_SECONDS = "reference"
"""What a trial waited for the reference, which trains in a further order once a candidate needs it, or anew in a worker
that took the place of one that broke, counts under this name in ``seconds``: later trials have it for nothing."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One candidate, measured: ``step`` is None when it was given up as too slow, ``seconds`` what took how long."""

    step: StepTime | None
    memory: int | None
    quality: Quality | None
    mismatches: tuple[str, ...] = ()
    compile_seconds: float | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

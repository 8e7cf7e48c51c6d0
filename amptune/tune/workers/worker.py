"""What the child process that owns the device does: it prepares a search, and measures what the parent asks for.

A candidate that crashes the process, hangs or exhausts the memory takes this process with it and nothing else: the
parent starts a new one and goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path

from amptune.apply import check_realised, stale_weight_casts
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.core.scaler import GradientRecord
from amptune.tune.quality.gradients import record_gradients
from amptune.tune.quality.quality import Quality, judge, reference_itself, refused_ahead
from amptune.tune.quality.reference import NUM_ORDERS
from amptune.tune.quality.roundedloss import rounded_loss
from amptune.tune.running.compilation import forget_compiled
from amptune.tune.running.kernels import tensor_core_share
from amptune.tune.running.recipes import Candidate, autocast_region
from amptune.tune.running.recompiling import num_compiled
from amptune.tune.running.timing import StepTime, Yardstick, compared, measure_interleaved, measure_step, roughly_ms
from amptune.tune.running.training import eager, training, whole
from amptune.tune.workers.emitted import compare_emitted
from amptune.tune.workers.job import REFERENCE_SECONDS, Job, Measured
from amptune.tune.workers.preparing import Hold, Preparing, Report

COULD_WIN = 1.1
"""A candidate whose step takes more than this many times the best valid one is judged on one order of the batches."""


class Clock:
    """What took how many seconds, lap by lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def add(self, name: str, seconds: float) -> None:
        """Seconds that are part of no lap."""
        if seconds:
            self.laps[name] = round(self.laps.get(name, 0.0) + seconds, 3)

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.monotonic()
        self.laps[name], self._since = round(now - self._since, 3), now

    def part(self, name: str, of: str, seconds: float) -> None:
        """Tell seconds of a lap apart from the rest of it."""
        self.add(name, seconds)
        self.laps[of] = max(0.0, round(self.laps[of] - seconds, 3))


class Worker(Preparing):
    """Answers one request at a time; every public method is a request, those of :class:`Preparing` included."""

    def __init__(self, job: Job, report: Report, hold: Hold = lambda _is_held: None) -> None:
        super().__init__(job, report, hold)
        self._best_ms = math.inf

    def _seconds_of_reference(self) -> float:
        """What the reference takes now: nothing, unless this worker has taken the place of one that broke."""
        if self._reference is not None:
            return 0.0
        began = time.monotonic()
        self.prepare()
        return time.monotonic() - began

    def trial(self, candidate: Candidate, limit_ms: float | None, yardstick: Yardstick | None = None) -> Measured:
        """Check the realised formats, measure the step, then the quality of one candidate.

        An unsteady step is measured in turns with the yardstick's, if the candidate trains: it takes seconds.
        """
        in_new_worker = self._seconds_of_reference()
        self.model_loss.forget()
        self._forget_compiled()
        clock = Clock()
        clock.add(REFERENCE_SECONDS, in_new_worker)
        with eager(self.bench):
            mismatches = self._mismatches(candidate)
        if mismatches:
            return Measured(None, None, None, mismatches)
        clock.lap("formats")
        if self._is_doubtful(candidate):
            refused = refused_ahead(self.bench, candidate, self.batches, self.reference, self.options.seed)
            clock.lap("gradients")
            if refused is not None:
                return Measured(None, None, refused, seconds=clock.laps)
        before = num_compiled()
        step, memory, compile_seconds = measure_step(self.bench, candidate, self.batches, limit_ms, yardstick)
        # Where neither we compile the model nor the candidate its loss, the user's code did.
        if self.bench.compilation is None and not candidate.compiles_loss:
            self.bench.compiles_itself = self.bench.compiles_itself or num_compiled() > before
        clock.lap("step")
        if step is None:
            return Measured(None, None, None, compile_seconds=compile_seconds, seconds=clock.laps)
        waited = sum(self.reference.waits)
        quality = self._judge(candidate, step, yardstick)
        clock.lap("quality")
        clock.part(REFERENCE_SECONDS, "quality", sum(self.reference.waits) - waited)
        if quality.valid:
            step = compared(self.bench, candidate, self.batches, step, yardstick)
            clock.lap("pairs")
            step_ms = yardstick.milliseconds_of(step) if yardstick else step.median
            self._best_ms = min(self._best_ms, step_ms)
        return Measured(step, memory, quality, compile_seconds=compile_seconds, seconds=clock.laps)

    def _is_doubtful(self, candidate: Candidate) -> bool:
        """Whether gradients are looked at before anything is compiled, which takes far longer: of what is in FP8, which
        may train or not. A recipe is timed all the same, unless time is short."""
        is_compiled = self.bench.compilation is not None
        return is_compiled and candidate.has_fp8 and not (candidate.is_stock and self.options.timeout is None)

    def _judge(self, candidate: Candidate, step: StepTime, yardstick: Yardstick | None) -> Quality:
        if candidate == Candidate("fp32") and self.bench.compilation is None:
            return reference_itself(self.reference, self.batches)
        most_ms = COULD_WIN * self._best_ms
        # What seems too slow may have met a slow moment of the host, which the comparison that follows takes out.
        could_win = step.median <= most_ms or roughly_ms(self.bench, self.batches, step, yardstick) <= most_ms
        orders = NUM_ORDERS if could_win else 1
        return judge(self.bench, candidate, self.batches, self.reference, self.options.seed, orders)

    def repeat(
        self, candidates: list[Candidate], rounds: int, is_more: bool = False, is_whole: bool = True
    ) -> list[list[StepTime]]:
        """Measure finalists in turns; in compile mode each model whole, as the user will run it, or its blocks alone.

        A plan that says itself which parts are compiled has these.

        ``is_more``: of what was repeated just before, whose compiled code is still good.
        """

        def progress(done: int) -> None:
            self.report("measuring in turns", done, rounds)

        self.model_loss.forget()
        if not is_more and (self.options.compile_with or self.bench.compiles_itself):
            forget_compiled()
        with whole(self.bench, self.options.compile_with) if is_whole else contextlib.nullcontext():
            return measure_interleaved(self.bench, candidates, self.batches, rounds, progress)

    def tensor_core_shares(self, candidates: list[Candidate]) -> list[float | None]:
        """Share of GPU time in tensor core kernels for each candidate; None on a CPU. Runs what ``repeat`` compiled."""
        with whole(self.bench, self.options.compile_with):
            return [tensor_core_share(self.bench, candidate, self.batches) for candidate in candidates]

    def record_gradients(self, plan: Plan) -> GradientRecord:
        """Magnitudes of the gradients that FP16 has to hold, over the K training steps."""
        with eager(self.bench):
            return record_gradients(self.bench, plan, self.batches, self.options.seed)

    def check_emitted(self, path: Path, candidate: Candidate) -> list[str]:
        """Differences between the emitted file's model and the applied plan; empty when they agree bit for bit."""
        with eager(self.bench):
            return compare_emitted(self.bench, path, candidate, self.batches.train[0], self.options.seed)

    def rounded_loss(self, candidate: Candidate) -> Format | None:
        """The 16-bit format that a candidate's loss is rounded to, where the FP32 reference's is not."""
        with eager(self.bench):
            return rounded_loss(self.bench, candidate, self.batches.train[0])

    def _forget_compiled(self) -> None:
        """In compile mode each trial starts anew, and where the user's own code compiles something: torch would give up
        after a few plans. Otherwise compiled losses are kept."""
        if self.bench.compilation is not None or self.bench.compiles_itself:
            forget_compiled()

    def _mismatches(self, candidate: Candidate) -> tuple[str, ...]:
        if candidate.plan is None:
            return ()
        # What a compiled loss runs inside is not recorded; its uncompiled twin has the same formats.
        plan = dataclasses.replace(candidate.plan, loss_compile=False)
        candidate = dataclasses.replace(candidate, plan=plan, loss_compile=False)
        with training(self.bench, candidate) as run:
            batch = self.batches.train[0]

            def forward_and_backward() -> None:
                run.backward(run.loss(batch), batch)

            def forward() -> None:
                run.loss(batch)

            def step() -> None:
                run.step(batch)

            found = check_realised(
                self.bench.model, forward_and_backward, plan, takes_gradients=self.bench.takes_gradients,
                evaluates=self.bench.evaluates, region=lambda: autocast_region(candidate, self.bench.device),
            )  # fmt: skip
            found += stale_weight_casts(self.bench.model, step, forward, plan)
            return tuple(map(str, found))

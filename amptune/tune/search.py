"""The search: stock recipes, then the front of the cost model, then the sampler near the best, then repeats.

Measurement picks the winner, never the model. Everything measured is in the journal before the next trial starts.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from optuna.trial import Trial

from amptune.core.choice import Choice
from amptune.core.plan import Plan
from amptune.core.tables import CostTable, Edge
from amptune.errors import TuneError
from amptune.tune.allocate import problem_of
from amptune.tune.front import front_points, predicted_ms
from amptune.tune.options import TuneOptions
from amptune.tune.process import TrialError, WorkerProcess
from amptune.tune.progress import Progress
from amptune.tune.recipes import Candidate, plan_candidate
from amptune.tune.space import FOLLOW, HIGH, Space
from amptune.tune.study import Outcome, StudyFile, TrialRecord
from amptune.tune.worker import Measured, Prepared

FRONT_SHARE = 0.6
"""Share of the trials left after the stock recipes that the front may take."""
GIVE_UP_FACTOR = 3.0
"""A candidate whose first steps take this many times the best step so far is not worth measuring."""
GIVE_UP_MS = 20.0
"""And is this much slower, so that a hiccup in a step of a millisecond does not count."""
MAX_DUPLICATES = 20


@dataclasses.dataclass
class Search:
    """The state of one study: what was learnt before trial 1, and what every trial needs."""

    options: TuneOptions
    study: StudyFile
    worker: WorkerProcess
    prepared: Prepared
    recipes: dict[str, Candidate]
    space: Space
    table: CostTable
    edges: Sequence[Edge]
    plan_header: dict[str, str]
    progress: Progress
    on_best: Callable[[Plan], None] = lambda _plan: None

    def run(self) -> None:
        """Measure trials until the budget or the time is used up, or nothing new is left to try."""
        deadline = time.monotonic() + self.options.timeout if self.options.timeout else math.inf
        if not self.study.lined_up:
            self._enqueue_start()
            self.study.mark_lined_up()
        duplicates = 0
        while self._num_counted() < self.options.budget and time.monotonic() < deadline:
            if not self.study.num_waiting() and not self._enqueue_repair():
                self._enqueue_neighbour()
            trial, point = self.study.ask(self.space.choices())
            point = self.space.made_legal(point)
            candidate = self._candidate(trial, point)
            known = self._known(candidate)
            if known is not None:
                duplicates += 1
                reason = f"same plan as trial {known.number}"
                self.study.tell(trial, dataclasses.replace(known.outcome, kind="duplicate", reason=reason))
                if duplicates > MAX_DUPLICATES:
                    self.progress.line("every plan near the best has been measured: stopping early")
                    return
                continue
            duplicates = 0
            outcome = self._measure(trial.user_attrs.get("kind", "search"), candidate, point)
            best = self.best_plans(1)
            self.study.tell(trial, outcome)
            if outcome.valid and not outcome.recipe and (not best or outcome.median_ms < best[0].outcome.median_ms):
                self.on_best(self.space.decode(point, self.table, self.plan_header))
            self.progress.trial(describe(trial.number, outcome), self._best_text())

    def records(self) -> list[TrialRecord]:
        """Trials that were measured, without duplicates."""
        return [record for record in self.study.records() if record.outcome.kind != "duplicate"]

    def best_stock(self) -> TrialRecord:
        """The fastest valid stock recipe.

        Raises:
            TuneError: none could be measured; FP32 is its own reference, so that is never for its quality.
        """
        stock = [r for r in self.records() if r.outcome.recipe and r.outcome.valid]
        if not stock:
            reasons = [f"{r.outcome.recipe}: {r.outcome.reason}" for r in self.records() if r.outcome.recipe]
            raise TuneError("no stock recipe could be measured", hint="; ".join(reasons) or "raise --timeout")
        return min(stock, key=lambda r: r.outcome.median_ms)

    def best_plans(self, count: int) -> list[TrialRecord]:
        """The fastest valid plans, best first."""
        plans = [r for r in self.records() if not r.outcome.recipe and r.outcome.valid]
        return sorted(plans, key=lambda r: r.outcome.median_ms)[:count]

    def plan_of(self, record: TrialRecord) -> Plan:
        """The plan that a record measured."""
        return self.space.decode(self.space.made_legal(record.point), self.table, self.plan_header)

    def predicted_step(self, point: dict[str, str]) -> float | None:
        """Predicted milliseconds of a whole step: what the FP32 step takes beside its sites, plus the point's sites.

        None before the FP32 step is measured, and where a site has no kernel in its format.
        """
        reference = next((r for r in self.records() if r.outcome.recipe == "fp32" and r.outcome.step_ms), None)
        if reference is None:
            return None
        base = predicted_ms(self.space, self.table, self.edges, self.space.point({}))
        predicted = reference.outcome.median_ms - base + predicted_ms(self.space, self.table, self.edges, point)
        return predicted if math.isfinite(predicted) else None

    def _enqueue_start(self) -> None:
        for name, candidate in self.recipes.items():
            self.study.enqueue(self._stock_point(candidate), "stock", name)
        if not self.space.offered():
            self.progress.line("this device has no 16-bit format, or the model no site to plan: only stock recipes run")
            return
        left = self.options.budget - len(self.recipes)
        points = front_points(self.space, problem_of(self.space, self.table, self.edges))
        for point in points[: max(1, math.ceil(FRONT_SHARE * left))]:
            self.study.enqueue(point, "front")

    def _stock_point(self, candidate: Candidate) -> dict[str, str]:
        """The point that is most like a recipe, which itself is not in the space."""
        if candidate.autocast is None:
            return self.space.point({})
        pins = {group.name: FOLLOW for group in self.space.groups if group.kind == "pin"}
        return self.space.uniform(Choice(candidate.autocast)) | pins

    def _enqueue_neighbour(self) -> None:
        """Every other search trial is the untried single change of the best plan that the cost model likes most.

        TPE alone needs many trials to see that one group should flip; a change of one choice at a time finds it.
        """
        if len(self.study.records()) % 2:
            return
        best = self.best_plans(1)
        if not best:
            return
        known = self._tried()
        untried = [point for point in self._neighbours(best[0].point) if self._key(point) not in known]
        if untried:
            shuffled = random.Random(self.options.seed + len(known)).sample(untried, len(untried))
            self.study.enqueue(min(shuffled, key=self._predicted), "search")

    def _enqueue_repair(self) -> bool:
        """A plan with wrong gradients is tried again with the groups that they belong to in FP32."""
        known = self._tried()
        for record in sorted(self.records(), key=lambda r: r.outcome.median_ms):
            repaired = dict(record.point)
            for group in self.space.groups:
                if any(owns(site, name) for site in group.sites for name in record.outcome.failing):
                    repaired[group.name] = HIGH
            if not record.outcome.recipe and repaired != record.point and self._key(repaired) not in known:
                self.study.enqueue(repaired, "search")
                return True
        return False

    def _tried(self) -> set[str]:
        return {self._key(record.point) for record in self.study.records() if not record.outcome.recipe}

    def _neighbours(self, point: dict[str, str]) -> Iterator[dict[str, str]]:
        for name, values in self.space.choices().items():
            for value in values:
                if value != point[name] and self.space.is_legal(changed := point | {name: value}):
                    yield changed

    def _predicted(self, point: Mapping[str, str]) -> float:
        return predicted_ms(self.space, self.table, self.edges, point)

    def _key(self, point: dict[str, str]) -> str:
        return self.space.decode(point, self.table, self.plan_header).behaviour_hash()

    def _candidate(self, trial: Trial, point: dict[str, str]) -> Candidate:
        recipe = trial.user_attrs.get("recipe")
        if recipe:
            return self.recipes[recipe]
        return plan_candidate(self.space.decode(point, self.table, self.plan_header))

    def _known(self, candidate: Candidate) -> TrialRecord | None:
        if candidate.is_stock:
            return next((r for r in self.records() if r.outcome.recipe == candidate.name), None)
        return next((r for r in self.records() if r.outcome.plan_hash == candidate.key), None)

    def _num_counted(self) -> int:
        return len(self.records())

    def _measure(self, kind: str, candidate: Candidate, point: dict[str, str]) -> Outcome:
        self.progress.stage(f"measuring {candidate.name}")
        base = Outcome(
            kind=kind,
            state="failed",
            recipe=candidate.name if candidate.is_stock else None,
            plan_hash=None if candidate.is_stock else candidate.key,
            predicted_ms=None if candidate.is_stock else self.predicted_step(point),
        )
        limit = min((r.outcome.median_ms for r in self.records() if r.outcome.valid), default=math.inf)
        limit_ms = max(GIVE_UP_FACTOR * limit, limit + GIVE_UP_MS) if math.isfinite(limit) else None
        try:
            measured = self.worker.request("trial", candidate, limit_ms, timeout=self.options.trial_timeout)
        except TrialError as failure:
            return dataclasses.replace(base, reason=failure.reason)
        return _outcome(base, measured)

    def _best_text(self) -> str:
        records = [r for r in self.records() if r.outcome.valid]
        if not records:
            return ""
        best = min(records, key=lambda r: r.outcome.median_ms)
        return f"{best.outcome.recipe or 'plan'} {best.outcome.median_ms:.2f} ms"


def _outcome(base: Outcome, measured: Measured) -> Outcome:
    if measured.mismatches:
        shown = "; ".join(measured.mismatches[:3])
        return dataclasses.replace(base, reason=f"formats in the run differ from the plan: {shown}")
    base = dataclasses.replace(base, compile_seconds=measured.compile_seconds)
    if measured.step is None or measured.quality is None:
        return dataclasses.replace(base, state="slow", reason=f"a step takes over {GIVE_UP_FACTOR:g}x the best so far")
    quality = measured.quality
    finite = math.isfinite(quality.loss_gap)
    return dataclasses.replace(
        base,
        state="valid" if quality.valid else "invalid",
        reason=quality.reason,
        step_ms=measured.step.to_json(),
        memory_bytes=measured.memory,
        loss_gap=quality.loss_gap if finite else None,
        loss_gap_upper=quality.upper if finite else None,
        worst_cosine=quality.gate.worst_cosine if quality.gate else None,
        skipped_steps=quality.skipped,
        failing=quality.gate.failing if quality.gate else (),
        evaluation=quality.evaluation,
    )


def owns(site: str, parameter: str) -> bool:
    """Whether a parameter belongs to a module site: ``blocks.0.fc1`` owns ``blocks.0.fc1.weight``."""
    return "#" not in site and parameter.rpartition(".")[0] == site


def describe(number: int, outcome: Outcome) -> str:
    """One line about a trial."""
    name = outcome.recipe or f"{outcome.kind} plan"
    if outcome.step_ms is None:
        return f"trial {number}: {name}: {outcome.state}: {outcome.reason}"
    gap = f", loss gap {outcome.loss_gap:+.3%}" if outcome.loss_gap is not None else ""
    tail = "" if outcome.valid else f", not valid: {outcome.reason}"
    return f"trial {number}: {name}: {outcome.median_ms:.2f} ms a step{gap}{tail}"

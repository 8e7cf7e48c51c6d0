"""The search: stock recipes, then the front of the cost model, then what is expected to save most, then repeats.

Measurement picks the winner, never the model. Everything measured is in the journal before the next trial starts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from optuna.trial import Trial

from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.core.scaler import FP16_LOSS_SCALE
from amptune.core.sensitivity import Sensitivity
from amptune.core.tables import CostTable, Edge
from amptune.errors import TuneError
from amptune.tune.allocation.costmodel import TF32, CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.allocation.explain import why_all_fp32
from amptune.tune.choices.space import FOLLOW, Space
from amptune.tune.finalists.finaltime import seconds_kept
from amptune.tune.learning.adapt import Knowledge, can_learn, learn
from amptune.tune.learning.base import point_recipes
from amptune.tune.learning.promises import least_gain
from amptune.tune.learning.steering import Steering
from amptune.tune.learning.stockorder import recipes_in_front
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import Yardstick
from amptune.tune.study.moments import at_usual_moments
from amptune.tune.study.outcomes import GIVE_UP_FACTOR, describe, limited, newly_allowed, outcome_of, paired
from amptune.tune.study.progress import Progress
from amptune.tune.study.study import StudyFile
from amptune.tune.study.timelimit import OutOfTimeError, TimeLimit
from amptune.tune.study.trial import Outcome, TrialRecord
from amptune.tune.workers.job import REFERENCE_SECONDS, Prepared
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.parts import Parts
from amptune.tune.workers.process import TrialError, WorkerProcess

GIVE_UP_MS = 20.0
"""And is this much slower, so that a hiccup in a step of a millisecond does not count."""
MAX_DUPLICATES = 20
AS_FAST = 1.5
"""What unsteady steps are timed in turns with takes at most this many times the best step: it is timed for each."""


@dataclasses.dataclass
class Search:
    """The state of one study: what was learnt before trial 1, and what every trial needs.

    ``corrections``: how often trials have shown the table to be wrong. ``is_plain``: the model computes in FP32 by
    itself, so that a plan in FP32 is the recipe by another name.
    """

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
    sensitivity: Sensitivity = dataclasses.field(default_factory=Sensitivity)
    parts: Parts = dataclasses.field(default_factory=Parts)
    on_best: Callable[[Plan], None] = lambda _plan: None
    stopped: str = "budget"
    limit: TimeLimit = dataclasses.field(default_factory=lambda: TimeLimit(None))
    corrections: int = 0
    is_plain: bool = False
    _learnt: tuple[int, Knowledge | None] | None = None

    @property
    def compiles_trials(self) -> bool:
        """Whether trials compile the model, or parts of it."""
        return self.options.compile_with is not None and not self.parts.in_eager

    def run(self) -> None:
        """Measure trials until the budget or the time is used up, or nothing is left that is worth trying."""
        try:
            self._run()
        except KeyboardInterrupt:
            self.progress.kept = len(self.records())
            raise
        self.progress.kept = len(self.records())

    def _run(self) -> None:
        self.limit = TimeLimit(self.options.timeout)
        if not self.study.lined_up:
            self._enqueue_start()
            self.study.mark_lined_up()
        for record in self.plans():
            self._correct_costs(record.point, record.outcome)
        self.progress.resume(len(self.records()))
        steering, duplicates = Steering(self), 0
        while len(self.records()) < self.options.budget and duplicates <= MAX_DUPLICATES:
            self.limit.kept = seconds_kept(self)
            if self.limit.is_over:
                self._stop("timeout", self.limit.text)
                return
            if not self.study.num_waiting():
                gain = steering.nothing_to_gain()
                if gain and not steering.enqueue_unmeasured():
                    self._stop("no gain", gain)
                    return
                if not gain:
                    steering.enqueue_next()
            try:
                duplicates = 0 if self._trial(steering) else duplicates + 1
            except OutOfTimeError as end:
                self.study.requeue_interrupted()  # for --resume
                self._stop("timeout", str(end))
                return
        if duplicates > MAX_DUPLICATES:
            self._stop("exhausted", "every plan near the best has been measured")

    def _stop(self, how: str, why: str) -> None:
        self.stopped = how
        self.progress.line(f"stopping early: {why}")

    def _trial(self, steering: Steering) -> bool:
        """Ask for a point and measure it; False where that plan is known already."""
        trial, point = self.study.ask(self.space.choices())
        if "kind" not in trial.user_attrs:
            point = steering.without_hopeless(point)
        point = self.costs.made_legal(point)
        self.study.keep_point(trial, point)
        candidate = self._candidate(trial, point)
        known = self._known(candidate)
        if known is not None:
            reason = f"same plan as trial {known.number}"
            outcome = dataclasses.replace(known.outcome, kind="duplicate", reason=reason)
            self.study.tell(trial, outcome, self.options.objective)
            return False
        outcome = self._measure(trial.number, trial.user_attrs.get("kind", "search"), candidate, point)
        best = self.best_plans(1)
        self.study.tell(trial, outcome, self.options.objective)
        self._correct_costs(point, outcome)
        if outcome.valid and not outcome.recipe and (not best or self._score(outcome) < self._score(best[0].outcome)):
            self.on_best(self.plan_at(point))
        self.progress.trial(describe(trial.number, outcome), self._best_text())
        return True

    def records(self) -> list[TrialRecord]:
        """Trials that were measured, without duplicates."""
        return [record for record in at_usual_moments(self.study.records()) if record.outcome.kind != "duplicate"]

    def best_stock(self) -> TrialRecord:
        """The best valid stock recipe; where none keeps the memory limit, of those that train.

        Raises:
            TuneError: none could be measured; FP32 is its own reference, so that is never for its quality.
        """
        return self.best_stocks(1)[0]

    def best_stocks(self, count: int) -> list[TrialRecord]:
        """The best valid stock recipes, best first; where none keeps the memory limit, of those that train.

        Raises:
            TuneError: none could be measured.
        """
        recipes = [r for r in self.records() if r.outcome.recipe]
        stock = [r for r in recipes if r.outcome.valid] or [r for r in recipes if r.outcome.state == "too_large"]
        if not stock:
            reasons = [f"{r.outcome.recipe}: {r.outcome.reason}" for r in recipes]
            raise TuneError("no stock recipe could be measured", hint="; ".join(reasons) or "raise --timeout")
        return sorted(stock, key=lambda r: self._score(r.outcome))[:count]

    def best_plans(self, count: int) -> list[TrialRecord]:
        """The best valid plans, best first."""
        plans = [record for record in self.plans() if record.outcome.valid]
        return sorted(plans, key=lambda r: self._score(r.outcome))[:count]

    def plans(self) -> list[TrialRecord]:
        """Trials of plans, without the stock recipes."""
        return [record for record in self.records() if not record.outcome.recipe]

    def plan_of(self, record: TrialRecord) -> Plan:
        """The plan that a record measured."""
        return self.plan_at(record.point)

    def plan_at(self, point: Mapping[str, str]) -> Plan:
        """The plan of a point, with the loss scale that the gradients ask for: what is measured is what ships."""
        plan = self.space.decode(self.costs.without_idle(point), self.table, self.plan_header)
        scale = min(self.sensitivity.loss_scale, self.largest_scale)
        scaler = dataclasses.replace(plan.scaler, init_scale=scale)
        return dataclasses.replace(plan, scaler=scaler) if plan.uses_fp16 else plan

    @property
    def largest_scale(self) -> float:
        """What a loss scale may start at: a model that makes its loss itself makes it in the format of its outputs."""
        return math.inf if self.space.losses and not self.space.makes_loss else FP16_LOSS_SCALE

    @functools.cached_property
    def costs(self) -> CostModel:
        """The measured costs of the space."""
        return CostModel(self.space, self.table, self.edges, self.sensitivity)

    @functools.cached_property
    def encoding(self) -> Encoding:
        """The rows of the space."""
        return Encoding(self.costs)

    def _correct_costs(self, point: Mapping[str, str], outcome: Outcome) -> None:
        """Of a plan that ran though the table has no kernel for a choice in it: that was timed in a slow moment.

        Beside an infinite time of the best plan nothing could be expected to gain.
        """
        if outcome.recipe or outcome.step_ms is None or math.isfinite(self.costs.predicted(point)):
            return
        self.table = self.table.with_kernels(self.space.site_choices(point))
        self.corrections += 1
        self._learnt = None
        for name in ("costs", "encoding"):  # they are made of the table
            self.__dict__.pop(name, None)

    def evidence(self, group: str, choice: Choice) -> str:
        """What the trials of plans with this choice showed, as half a sentence."""
        found = [r.outcome for r in self.plans() if r.point.get(group) == choice.label]
        times = [outcome.ranked_ms for outcome in found if outcome.valid]
        if times:
            return f"the fastest measured plan with it takes {min(times):.2f} ms"
        wrong = next((outcome for outcome in found if outcome.state == "invalid"), None)
        return f"plans with it did not train: {wrong.reason}" if wrong else "no measured plan had it"

    def knowledge(self) -> Knowledge | None:
        """What the trials so far teach; None before the stock recipes that it takes are measured."""
        records = self.records()
        if self._learnt is None or self._learnt[0] != len(records):
            self._learnt = len(records), self._learn(records)
        return self._learnt[1]

    def _learn(self, records: Sequence[TrialRecord]) -> Knowledge | None:
        stock = [record for record in records if record.outcome.recipe]
        compiled = self.compiles_trials
        if not can_learn(self.costs, stock, compiled=compiled):
            return None
        limit = self.options.max_memory or math.inf
        plans = [record for record in records if not record.outcome.recipe]
        objective = self.options.objective
        return learn(self.encoding, plans, stock, objective=objective, max_memory=limit, compiled=compiled)

    def _enqueue_start(self) -> None:
        for name in recipes_in_front(self):
            self.enqueue_recipe(name)
        if why := why_all_fp32(self.space):
            self.progress.line(why)

    def enqueue_recipe(self, name: str) -> None:
        """Line up a stock recipe."""
        self.study.enqueue(self.stock_point(name), "stock", name)

    def unmeasured(self) -> list[str]:
        """Stock recipes without a trial."""
        tried = {record.outcome.recipe for record in self.records()}
        return [name for name in self.recipes if name not in tried]

    def stock_point(self, name: str) -> dict[str, str]:
        """The point that is most like a recipe, which itself is not in the space."""
        candidate = self.recipes[name]
        tf32 = {TF32: "on" if candidate.tf32 else "off"} if self.space.tf32 else {}
        if candidate.low is None:
            return self.space.point(tf32)
        if candidate.autocast is not None and not candidate.float8:
            return self.space.under_autocast(candidate.autocast) | tf32
        pins = {group.name: FOLLOW for group in self.space.groups if group.kind == "pin"}
        float8 = Choice(Format.FP8_E4M3, candidate.float8) if candidate.float8 else None
        return self.space.uniform(float8 or Choice(candidate.low)) | pins | tf32

    def is_tried(self, point: dict[str, str]) -> bool:
        """Whether the plan of a point was measured, or failed."""
        return self._known(plan_candidate(self.plan_at(point))) is not None

    def _score(self, outcome: Outcome) -> tuple[float, float]:
        return outcome.score(self.options.objective)

    def _candidate(self, trial: Trial, point: dict[str, str]) -> Candidate:
        recipe = trial.user_attrs.get("recipe")
        if recipe:
            return self.recipes[recipe]
        return plan_candidate(self.plan_at(point))

    def _known(self, candidate: Candidate) -> TrialRecord | None:
        if candidate.is_stock:
            return next((r for r in self.records() if r.outcome.recipe == candidate.name), None)
        records = self.records()
        if candidate.plan is not None and candidate.plan.is_fp32 and self._is_as_written(candidate.plan):
            name = "tf32" if candidate.tf32 else "fp32"
            if recipe := next((r for r in records if r.outcome.recipe == name and r.outcome.step_ms), None):
                return recipe
        return next((r for r in records if r.outcome.plan_hash == candidate.key), None)

    def _is_as_written(self, plan: Plan) -> bool:
        """Whether a plan in FP32 computes what the user's code does by itself, with the same kernels."""
        return self.is_plain and self.space.rewritten.isdisjoint(plan.sites)

    def _measure(self, number: int, kind: str, candidate: Candidate, point: dict[str, str]) -> Outcome:
        seconds = self.limit.seconds_for(candidate, [r.outcome for r in self.records()], self.options.trial_timeout)
        what = "compiling and measuring" if self.compiles_trials else "measuring"
        self.progress.stage(f"{what} {candidate.name}", has_line=True)
        base = Outcome(
            kind=kind,
            state="failed",
            recipe=candidate.name if candidate.is_stock else None,
            plan_hash=None if candidate.is_stock else candidate.key,
        )
        if not candidate.is_stock:
            base = self._with_prediction(base, point)
        limit_ms, beside = self._limit_ms(candidate), self._beside()
        yardstick = self._yardstick(beside) if beside else None
        try:
            measured = self.worker.request("trial", candidate, limit_ms, yardstick, timeout=seconds)
        except TrialError as failure:
            self._set_aside(failure.held)
            if failure.worker_lost and seconds < self.options.trial_timeout and not self.limit.for_a_trial():
                raise OutOfTimeError(self.limit.ended(f"trial {number} ({candidate.name})", seconds)) from failure
            return dataclasses.replace(base, reason=failure.reason, worker_lost=failure.worker_lost)
        self._set_aside(measured.seconds.get(REFERENCE_SECONDS, 0.0))
        outcome = limited(outcome_of(base, measured), self.options.max_memory)
        known = max(self.options.tolerance, self.prepared.noise)
        if said := newly_allowed(outcome, (r.outcome for r in self.records()), known):
            self.progress.line(said)
        return paired(outcome, measured, beside.number, yardstick) if beside and yardstick else outcome

    def _set_aside(self, waited: float) -> None:
        """Not count what the reference took, in further orders or in a new worker: the next trials need it too."""
        self.limit.set_aside(waited)
        if waited >= 1 and self.options.timeout is not None:
            self.progress.line(f"the FP32 reference trained once more: {waited:.0f} s that --timeout leaves out")

    def _limit_ms(self, candidate: Candidate) -> float | None:
        """Milliseconds of a step from which on a candidate is given up; None for what predictions need."""
        best = min((r.outcome.ranked_ms for r in self.records() if r.outcome.valid), default=math.inf)
        if math.isinf(best) or (candidate.name in point_recipes(self.costs) and self.knowledge() is None):
            return None
        return max(GIVE_UP_FACTOR * best, best + GIVE_UP_MS)

    def _beside(self) -> TrialRecord | None:
        """The trial that unsteady steps are compared with: the first unsteady one that is not far slower than the best.

        Always the same one where it can be, so that all ratios compare. A compiled yardstick would have to be compiled
        anew for each trial.
        """
        if self.compiles_trials or self.options.objective != "time":
            return None
        measured = [record for record in self.records() if record.outcome.step_ms]
        best_ms = min((r.outcome.ranked_ms for r in measured if r.outcome.valid), default=math.inf)
        unsteady = (r for r in measured if r.outcome.unsteady and r.outcome.ranked_ms <= AS_FAST * best_ms)
        return next(unsteady, None)

    def _yardstick(self, record: TrialRecord) -> Yardstick:
        recipe = record.outcome.recipe
        candidate = self.recipes[recipe] if recipe else plan_candidate(self.plan_of(record))
        return Yardstick(candidate, record.outcome.ranked_ms)

    def _with_prediction(self, outcome: Outcome, point: dict[str, str]) -> Outcome:
        known = self.knowledge()
        if known is None or not math.isfinite(predicted := known.predicted(point)):
            return outcome
        table, best, chance = known.base_ms + known.model.predicted(point), self.best_plans(1), None
        if best:
            chance = known.chance_to_gain(point, best[0].point, least_gain(known, best[0].outcome))
        return dataclasses.replace(outcome, predicted_ms=predicted, table_ms=table, gain_chance=chance)

    def _best_text(self) -> str:
        records = [r for r in self.records() if r.outcome.valid]
        if not records:
            return ""
        best = min(records, key=lambda r: self._score(r.outcome))
        return f"{best.outcome.recipe or 'plan'} {best.outcome.ranked_ms:.2f} ms"

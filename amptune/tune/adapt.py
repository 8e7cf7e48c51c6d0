"""The adaptive part of a search: what the trials so far say about the next one, and whether there should be one."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from amptune.core.choice import FP32, Choice
from amptune.tune.caps import Caps
from amptune.tune.costmodel import CostModel
from amptune.tune.front import distinct
from amptune.tune.propose import best_point
from amptune.tune.space import HIGH, Group, Space
from amptune.tune.stepmodel import Feature, Observation, Point, StepModel, fit_model
from amptune.tune.study import TrialRecord

_NORMAL = statistics.NormalDist()
IsTried = Callable[[dict[str, str]], bool]

REGION = 4
"""Choices that a trial of the sampler may change against the incumbent."""
DRAWS = 12
"""Samples of the posterior whose best plans are candidates for the next trial."""
MOST_BLAMED = 2
NOISE_FLOOR = 0.003
"""Smallest share of a step that counts as a gain: clocks and temperature alone change as much."""
GLOBAL_COST = 0.25
"""What a choice of the whole plan (TF32, layout, loss) may cost, as a share of the step, before it is measured."""
FAR = 0.15
"""How far the costs of a slow plan may fail to add up, as a share of what it takes beyond the best: it pays for casts
and casts back that no plan near the best has, so what it teaches about those counts less."""


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What a search knows at one moment.

    Attributes:
        model: the measured costs.
        records: plans that were measured or failed, without stock recipes.
        step: posterior of the cost model's residuals.
        base_ms: what a step takes beside the sites that the cost model adds up.
        noise_ms: standard deviation of a measured step.
        banned: group -> choices whose gradients were wrong and that no valid plan has.
        caps: of memory, and of the error that a plan can have and still train.
        objective: ``time`` or ``memory``.
    """

    model: CostModel
    records: Sequence[TrialRecord]
    step: StepModel
    base_ms: float
    noise_ms: float
    banned: Mapping[str, set[Choice]]
    caps: Caps
    objective: str = "time"

    def predicted(self, point: Point, weights: np.ndarray | None = None) -> float:
        """Milliseconds of a step, corrected by what was measured."""
        return self.base_ms + self.model.predicted(point) + self.step.correction(point, weights)

    def promising(self, seed: int, best: Point, is_tried: IsTried) -> tuple[dict[str, str] | None, float]:
        """The untried plan that is expected to save most over the best one, and what it is expected to save: the mean
        over the posterior of the milliseconds saved where it does (expected improvement), or bytes by objective.

        Candidates are the best plans for costs drawn from the posterior, and every change of one choice of the best.
        """
        rng = np.random.default_rng(seed)
        weights = (self.step.sample(rng) for _ in range(DRAWS))
        drawn = [best_point(self.model, self.step, w, self.caps, self.banned, self.objective)[0] for w in weights]
        found = [point for point in distinct([*drawn, *self._neighbours(best)]) if not is_tried(point)]
        gains = [(self.expected_gain(point, best), point) for point in found]
        gain, point = max(gains, key=lambda item: item[0], default=(0.0, None))
        return point, gain

    def drawn(self, seed: int, is_tried: IsTried) -> dict[str, str] | None:
        """An untried plan that is best for drawn costs: where there is no valid plan to start from."""
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS):
            point, _ = best_point(self.model, self.step, self.step.sample(rng), self.caps, self.banned, self.objective)
            if not is_tried(point):
                return point
        return None

    def expected_gain(self, point: Point, best: Point) -> float:
        """Milliseconds, or bytes, that ``point`` is expected to save over ``best``; none where it is worse."""
        if self.objective != "time":
            return max(0.0, self.model.bytes(best) - self.model.bytes(point))
        more, spread = self.step.difference(point, best)
        saved = self.model.predicted(best) - self.model.predicted(point) - more
        if not math.isfinite(saved):
            return 0.0
        if spread == 0.0:
            return max(0.0, saved)
        z = saved / spread
        return saved * _NORMAL.cdf(z) + spread * _NORMAL.pdf(z)

    def _neighbours(self, best: Point) -> Iterator[dict[str, str]]:
        """Changes of one choice that neither run nor train for sure are left out, and so is what errs too much."""
        hopeless = self.hopeless()
        for point in neighbours(self.model.space, best):
            legal = self.model.made_legal(point)
            if not any(legal[name] in bad for name, bad in hopeless.items()) and self._keeps_caps(legal):
                yield legal

    def _keeps_caps(self, point: Point) -> bool:
        return self.model.error(point) <= self.caps.error and self.model.bytes(point) <= self.caps.bytes

    def region(self, seed: int, best: Point) -> dict[str, str]:
        """The best plan without the few choices that the sampler shall fill in: mostly those that are least known."""
        names = list(self.model.space.choices())
        rng = random.Random(seed)
        # Exponential races: each name's chance is its share of what is left of the spread.
        race = {name: rng.expovariate(1.0) / max(self.step.spread(name), 1e-12) for name in names}
        free = set(sorted(names, key=race.__getitem__)[:REGION])
        return {name: best[name] for name in names if name not in free}

    def hopeless(self) -> dict[str, set[str]]:
        """Group -> labels of choices that are vetoed, did not train, or have no kernel."""
        problem = self.model.problem(banned=self.banned)
        return {
            name: {choice.label for choice, ms in values.items() if math.isinf(ms)}
            for name, values in problem.times.items()
        }


def learn(
    model: CostModel,
    records: Sequence[TrialRecord],
    reference_ms: float,
    *,
    objective: str = "time",
    max_memory: float = math.inf,
) -> Knowledge:
    """What the plans measured so far teach; ``reference_ms`` is the FP32 step."""
    base = reference_ms - model.predicted(model.space.point({}))
    measured = [r for r in records if r.outcome.step_ms and math.isfinite(model.predicted(r.point))]
    step_ms = min((r.outcome.median_ms for r in measured), default=reference_ms)
    noise = _noise(measured, step_ms)
    costs: dict[Feature, float] = model.costs()
    for name, values in model.space.choices().items():
        if name.startswith(":"):
            costs |= {(name, value): GLOBAL_COST * step_ms for value in values}
    seen = [
        Observation(r.point, ms - base - model.predicted(r.point), math.hypot(noise, FAR * (ms - step_ms)))
        for r in measured
        if (ms := r.outcome.median_ms)
    ]
    step = fit_model(model.space.choices(), costs, step_ms, seen, noise)
    banned = _banned(model.space, records)
    caps = Caps(_byte_cap(model, measured, max_memory), _error_cap(model, records, banned))
    return Knowledge(model, records, step, base, noise, banned, caps, objective)


def neighbours(space: Space, point: Point) -> Iterator[dict[str, str]]:
    """Every legal point that differs in one choice."""
    for name, values in space.choices().items():
        for value in values:
            if value != point[name] and space.is_legal(changed := {**point, name: value}):
                yield changed


def repaired(space: Space, record: TrialRecord) -> dict[str, str]:
    """The point of a plan with wrong gradients, with the groups that they belong to in more bits."""
    point = dict(record.point)
    for group in space.groups:
        if _has_wrong_gradient(group, record):
            is_fp8 = group.kind == "module" and Choice.parse(point[group.name]).format.is_fp8
            point[group.name] = Choice.parse(point[group.name]).output_format.label if is_fp8 else HIGH
    return space.made_legal(point)


def owns(site: str, parameter: str) -> bool:
    """Whether a parameter belongs to a module site: ``blocks.0.fc1`` owns ``blocks.0.fc1.weight``."""
    return "#" not in site and parameter.rpartition(".")[0] == site


def _has_wrong_gradient(group: Group, record: TrialRecord) -> bool:
    return any(owns(site, name) for site in group.sites for name in record.outcome.failing)


def _noise(measured: Sequence[TrialRecord], step_ms: float) -> float:
    spreads = [(float(r.outcome.step_ms["high"]) - float(r.outcome.step_ms["low"])) / 1.35
               for r in measured if r.outcome.step_ms]  # fmt: skip
    return max(statistics.median(spreads) if spreads else 0.0, NOISE_FLOOR * step_ms)


def _banned(space: Space, records: Sequence[TrialRecord]) -> dict[str, set[Choice]]:
    """Choices of groups that own wrong gradients; what some valid plan has is not to blame.

    Where the gradients of many groups are wrong, what broke lies downstream of them, and nothing is blamed.
    """
    most = max(MOST_BLAMED, len(space.module_groups()) // 3)
    blamed: dict[str, set[Choice]] = {}
    cleared: dict[str, set[Choice]] = {}
    for record in records:
        wrong = [group.name for group in space.module_groups() if _has_wrong_gradient(group, record)]
        for group in space.module_groups():
            choice = Choice.parse(record.point[group.name])
            if record.outcome.valid:
                cleared.setdefault(group.name, set()).add(choice)
            elif group.name in wrong and len(wrong) <= most:
                blamed.setdefault(group.name, set()).add(choice)
    return {name: found - cleared.get(name, set()) - {FP32} for name, found in blamed.items()}


def _error_cap(model: CostModel, records: Sequence[TrialRecord], banned: Mapping[str, set[Choice]]) -> float:
    """Between the largest error that still trained and the smallest that did not, where no single group is to blame."""
    valid = [model.error(r.point) for r in records if r.outcome.valid]
    unexplained = (r for r in records if r.outcome.state == "invalid" and not _is_explained(model.space, r, banned))
    wrong = [model.error(record.point) for record in unexplained]
    wrong = [error for error in wrong if error > max(valid, default=0.0)]
    if not wrong:
        return math.inf
    return math.sqrt(max(valid) * min(wrong)) if valid and max(valid) > 0 else min(wrong) / 2


def _is_explained(space: Space, record: TrialRecord, banned: Mapping[str, set[Choice]]) -> bool:
    return any(Choice.parse(record.point[g.name]) in banned.get(g.name, ()) for g in space.module_groups())


def _byte_cap(model: CostModel, measured: Sequence[TrialRecord], max_memory: float) -> float:
    """What the choices may keep, once it is known what a plan takes beside it."""
    rest = [r.outcome.memory_bytes - model.bytes(r.point) for r in measured if r.outcome.memory_bytes]
    if not rest or math.isinf(max_memory):
        return math.inf
    return max(1.0, max_memory - statistics.median(rest))

"""The adaptive part of a search: what the trials so far say about the next one, and whether there should be one."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from amptune.core.choice import FP32, Choice
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding, Rows
from amptune.tune.choices.space import HIGH, Group, Space
from amptune.tune.learning.acquire import Acquisition
from amptune.tune.learning.base import AUTOCAST, base_ms, is_known
from amptune.tune.learning.host import Host
from amptune.tune.learning.stepmodel import Point, StepModel
from amptune.tune.learning.steptimes import learn_times, noise_of
from amptune.tune.learning.validity import Tried, Validity, learn_validity
from amptune.tune.running.float8 import STOCK_SCALINGS
from amptune.tune.study.trial import TrialRecord

IsTried = Callable[[dict[str, str]], bool]

NUM_STARTS = 12
"""Plans that descents may begin at."""
MOST_BLAMED = 2
SHOWING = {*AUTOCAST, *(f"fp8-{scaling}" for scaling in STOCK_SCALINGS)}
"""Stock recipes that show whether layers train in a format: each is much like one point of the space."""


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What a search knows at one moment. A step is the longer of what the GPU and what the host takes.

    Attributes:
        encoding: the rows of the space, with the measured costs.
        records: plans that were measured or failed, without stock recipes.
        step: posterior of the cost model's residuals.
        validity: what is known of which plans train.
        base_ms: what the GPU takes in a step beside the sites that the cost model adds up.
        noise_ms: standard deviation of a measured step.
        banned: group -> choices whose gradients were wrong and that no valid plan has.
        failing: (name, choice) beside the formats with which plans ended in an error that ran without it.
        max_bytes: what the choices may keep.
        objective: ``time`` or ``memory``.
        host: what Python takes to queue a step; None where that is not known.
    """

    encoding: Encoding
    records: Sequence[TrialRecord]
    step: StepModel
    validity: Validity
    base_ms: float
    noise_ms: float
    banned: Mapping[str, set[Choice]]
    max_bytes: float = math.inf
    objective: str = "time"
    host: Host | None = None
    failing: frozenset[tuple[str, str]] = frozenset()

    @property
    def model(self) -> CostModel:
        """The measured costs."""
        return self.encoding.model

    def predicted(self, point: Point) -> float:
        """Milliseconds of a step, corrected by what was measured."""
        return max(self.predicted_by_part(point))

    def predicted_by_part(self, point: Point) -> tuple[float, float]:
        """Milliseconds of a step on the GPU, and what the host takes to queue it; 0 where that is not known."""
        row = self.encoding.encode(point)[None]
        on_gpu = self.base_ms + self.model.predicted(point) + float(self.step.corrections(row)[0])
        return on_gpu, float(self.host.milliseconds(row)[0]) if self.host else 0.0

    def chance(self, point: Point) -> float:
        """The chance that a plan trains."""
        return float(self.validity.probability(self.encoding.encode(point)[None])[0])

    def gain(self, point: Point, best: Point) -> float:
        """What the trial of a plan is expected to save over the best one."""
        return float(self._acquisition(best).gains(self.encoding.encode(point)[None])[0])

    def chance_to_gain(self, point: Point, best: Point, least: float) -> float:
        """The chance that a plan trains and saves more than ``least`` milliseconds, or bytes by objective, over the
        best one."""
        return float(self._acquisition(best).chances(self.encoding.encode(point)[None], least)[0])

    def promising(self, seed: int, best: Point, is_tried: IsTried) -> tuple[dict[str, str] | None, float]:
        """The untried plan that is expected to save most over the best one, and what it is expected to save: the mean
        over the posterior of the milliseconds saved where it does (expected improvement), or bytes by objective, times
        the chance that it trains."""
        acquisition = self._acquisition(best)
        rows, gains = acquisition.candidates(np.random.default_rng(seed), self._starts())
        for row, gain in zip(rows, gains, strict=True):
            point = self.model.made_legal(self.encoding.decode(row))
            if gain > 0 and not is_tried(point):
                return point, float(gain)
        return None, 0.0

    def _acquisition(self, best: Point) -> Acquisition:
        row = self.encoding.encode(best)
        of_memory = self.objective == "memory"
        return Acquisition(
            self.encoding, self.step, self.validity, row, self.max_bytes, of_memory, self.base_ms, self.host
        )

    def _starts(self) -> Rows:
        """Where descents may begin: the plans so far, fastest first, FP32, and each choice everywhere."""
        space = self.model.space
        measured = sorted((r for r in self.records if r.outcome.step_ms), key=lambda r: r.outcome.ranked_ms)
        points = [record.point for record in measured[:NUM_STARTS]]
        points += [space.point({}), *(space.uniform(choice) for choice in space.offered())]
        return self.encoding.rows(points)

    def hopeless(self) -> dict[str, set[str]]:
        """Name of a choice -> labels that are vetoed, did not train, have no kernel, or end plans in an error."""
        found = {name: {c.label for c in choices} for name, choices in _hopeless(self.model, self.banned).items()}
        for name, choice in self.failing:
            found.setdefault(name, set()).add(choice)
        return found


def can_learn(model: CostModel, stock: Sequence[TrialRecord], *, compiled: bool = False) -> bool:
    """Whether enough stock recipes were measured to predict a plan."""
    return is_known(model, _steps(stock), compiled=compiled)


def _steps(stock: Sequence[TrialRecord]) -> dict[str, float]:
    return {r.outcome.recipe: r.outcome.ranked_ms for r in stock if r.outcome.recipe and r.outcome.step_ms}


def learn(
    encoding: Encoding,
    records: Sequence[TrialRecord],
    stock: Sequence[TrialRecord],
    *,
    objective: str = "time",
    max_memory: float = math.inf,
    compiled: bool = False,
) -> Knowledge:
    """What the plans measured so far teach; ``stock``: trials of the stock recipes, for which ``can_learn`` holds."""
    model = encoding.model
    recipes = _steps(stock)
    base = base_ms(model, recipes, compiled=compiled)
    measured = [r for r in records if r.outcome.step_ms and math.isfinite(model.predicted(r.point))]
    step_ms = min((r.outcome.ranked_ms for r in measured), default=recipes.get("fp32", min(recipes.values())))
    as_plans = _as_plans(model, stock) if compiled else []
    step, host = learn_times(encoding, [*as_plans, *measured], [r.outcome for r in stock], base, step_ms)
    noise = noise_of(measured, step_ms)
    banned = _banned(model.space, records)
    limit = _max_bytes(model, measured, max_memory)
    lowered = [r for r in stock if r.outcome.recipe in SHOWING]
    failing = _failing_sides(records, stock)
    validity = _validity(encoding, [*lowered, *records], banned, failing)
    return Knowledge(encoding, records, step, validity, base, noise, banned, limit, objective, host, failing)


def _as_plans(model: CostModel, stock: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The recipes that take, compiled, what a plan of their formats takes (see ``base``), if they lower any layer."""
    timed = [r for r in stock if r.outcome.recipe in AUTOCAST and r.outcome.step_ms]
    lowering = [r for r in timed if any(r.point[group.name] != FP32.label for group in model.space.module_groups())]
    return [record for record in lowering if math.isfinite(model.predicted(record.point))]


def repaired(space: Space, record: TrialRecord) -> dict[str, str]:
    """The point of a plan with wrong gradients, with the groups that they belong to in more bits."""
    point = dict(record.point)
    for group in space.groups:
        if _has_wrong_gradient(group, record):
            is_fp8 = group.kind == "module" and Choice.parse(point[group.name]).format.is_fp8
            point[group.name] = Choice.parse(point[group.name]).output_format.label if is_fp8 else HIGH
    return space.made_legal(point)


def adds_up(record: TrialRecord) -> bool:
    """Whether a plan was refused because rounding errors add up, so that no layer is to blame by itself."""
    return record.outcome.noise is not None and record.outcome.noise.adds_up


def owns(site: str, parameter: str) -> bool:
    """Whether a parameter belongs to a module site: ``blocks.0.fc1`` owns ``blocks.0.fc1.weight``."""
    return "#" not in site and parameter.rpartition(".")[0] == site


def _has_wrong_gradient(group: Group, record: TrialRecord) -> bool:
    return any(owns(site, name) for site in group.sites for name in record.outcome.failing)


def _banned(space: Space, records: Sequence[TrialRecord]) -> dict[str, set[Choice]]:
    """Choices of groups that own wrong gradients; what some valid plan has is not to blame.

    Where the gradients of many groups are wrong, what broke lies downstream of them, and nothing is blamed; nor where
    all gradients are off and these happen to be the most.
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
            elif group.name in wrong and len(wrong) <= most and not adds_up(record):
                blamed.setdefault(group.name, set()).add(choice)
    return {name: found - cleared.get(name, set()) - {FP32} for name, found in blamed.items()}


def side_choices(point: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    """The choices beside the formats: loss, memory format, TF32."""
    return frozenset((name, choice) for name, choice in point.items() if name.startswith(":"))


def ended_in_an_error(record: TrialRecord) -> bool:
    """Whether the user's model, its loss or a kernel raised under a plan."""
    return record.outcome.state == "failed" and not record.outcome.worker_lost


def unproven_sides(record: TrialRecord, others: Iterable[TrialRecord]) -> frozenset[tuple[str, str]]:
    """What a trial had beside its formats, and none of the others that ran."""
    ran = (side_choices(other.point) for other in others if other.outcome.step_ms)
    return side_choices(record.point).difference(*ran)


def _failing_sides(records: Sequence[TrialRecord], stock: Sequence[TrialRecord]) -> frozenset[tuple[str, str]]:
    """Of plans that ended in an error and whose formats ran otherwise: what nothing that ran had beside its formats."""
    formats_ran = {_formats(record) for record in records if record.outcome.step_ms}
    failed = [record for record in records if ended_in_an_error(record) and _formats(record) in formats_ran]
    return frozenset[tuple[str, str]]().union(*(unproven_sides(record, (*records, *stock)) for record in failed))


def _formats(record: TrialRecord) -> frozenset[tuple[str, str]]:
    return frozenset(record.point.items()) - side_choices(record.point)


def _validity(
    encoding: Encoding,
    records: Sequence[TrialRecord],
    banned: Mapping[str, set[Choice]],
    failing: frozenset[tuple[str, str]],
) -> Validity:
    space = encoding.model.space
    valid = [r for r in records if r.outcome.valid or r.outcome.state == "too_large"]
    unexplained = [r for r in records if r.outcome.state == "invalid" and not _is_explained(space, r, banned)]
    uniform = (encoding.model.error(space.uniform(c)) for c in space.offered() if not c.format.is_fp8)
    unit = max(uniform, default=0.0)
    forbidden = encoding.columns_of(_hopeless(encoding.model, banned)) | encoding.columns_with(failing)
    return learn_validity(encoding, _tried(encoding, valid), _tried(encoding, unexplained), forbidden, unit)


def _tried(encoding: Encoding, records: Sequence[TrialRecord]) -> Tried:
    return Tried(encoding.rows(r.point for r in records), [r.outcome.noise for r in records])


def _hopeless(model: CostModel, banned: Mapping[str, set[Choice]]) -> dict[str, set[Choice]]:
    times = model.problem(banned=banned).times
    return {name: {choice for choice, ms in values.items() if math.isinf(ms)} for name, values in times.items()}


def _is_explained(space: Space, record: TrialRecord, banned: Mapping[str, set[Choice]]) -> bool:
    return any(Choice.parse(record.point[g.name]) in banned.get(g.name, ()) for g in space.module_groups())


def _max_bytes(model: CostModel, measured: Sequence[TrialRecord], max_memory: float) -> float:
    """What the choices may keep, once it is known what a plan takes beside it."""
    rest = [r.outcome.memory_bytes - model.bytes(r.point) for r in measured if r.outcome.memory_bytes]
    if not rest or math.isinf(max_memory):
        return math.inf
    return max(1.0, max_memory - statistics.median(rest))

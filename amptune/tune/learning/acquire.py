"""The plan that the next trial may gain most from: expected improvement, times the chance that the plan trains.

Candidates are the plans that are best in worlds drawn from what is known (Thompson sampling), found by descents from
the plans so far, and the neighbours of the best one; the best candidates then climb on the acquisition itself.

Where it is known what the host takes, a step is the longer of that and of the GPU's time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from amptune.tune.allocation.encoded import Encoding, Row, Rows
from amptune.tune.learning.host import Host
from amptune.tune.learning.stepmodel import StepModel
from amptune.tune.learning.validity import Validity

DRAWS = 12
"""Worlds that are drawn for one trial in a space of up to ``MANY_CHOICES``; fewer in a larger one, to take as long."""
MIN_DRAWS, MANY_CHOICES = 5, 26
MAX_PAIRS = 256
"""Changes of two linked groups that a descent looks at before it ends."""
MAX_MOVES = 60
"""Of one descent or climb."""
CLIMBERS = 3
"""Candidates that climb on the acquisition."""
PENALTY = 1e3
"""Of what is forbidden in a drawn world, in units of the step."""

Changes = Callable[[Rows], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Acquisition:
    """What a trial of a plan may gain over the best one.

    Attributes:
        encoding: the rows.
        step: posterior of the step time.
        validity: what is known of which plans train.
        best: the row of the best plan.
        max_bytes: what a plan may keep.
        of_memory: whether bytes are to be saved, and not milliseconds.
        base_ms: what the GPU takes beside what the encoding adds up; of use with ``host`` alone.
        host: what the host takes; None where only the GPU counts.
    """

    encoding: Encoding
    step: StepModel
    validity: Validity
    best: Row
    max_bytes: float = math.inf
    of_memory: bool = False
    base_ms: float = 0.0
    host: Host | None = None

    def gains(self, rows: Rows) -> np.ndarray:
        """What each row is expected to save where it is better, times the chance that it trains."""
        gains: np.ndarray = self._may_run(rows) * self.improvements(rows)
        return gains

    def chances(self, rows: Rows, least: float) -> np.ndarray:
        """The chance that each row trains and saves more than ``least`` milliseconds, or bytes, over the best."""
        found: np.ndarray = self._may_run(rows) * chance_above(least, *self._saved(rows))
        return found

    def improvements(self, rows: Rows) -> np.ndarray:
        """Milliseconds, or bytes, that each row is expected to save over the best where it is better."""
        return expected_improvement(*self._saved(rows))

    def _may_run(self, rows: Rows) -> np.ndarray:
        """The chance that each row trains; none where it is not to be measured."""
        chance: np.ndarray = self.validity.probability(rows) * self.encoding.is_legal(rows)
        if math.isfinite(self.max_bytes):
            chance = chance * (self.encoding.bytes(rows) <= self.max_bytes)
        return chance

    def _saved(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the milliseconds, or bytes, that each row saves over the best."""
        best = self.best[None]
        if self.of_memory:
            return self.encoding.bytes(best) - self.encoding.bytes(rows), np.zeros(len(rows))
        more, spread = self.step.differences(rows, self.best)
        on_gpu = self.encoding.milliseconds(best)
        saved = on_gpu - self.encoding.milliseconds(rows) - more
        if self.host is None:
            return saved, spread
        on_gpu = self.base_ms + on_gpu + self.step.corrections(best)
        on_host = self.host.milliseconds(best)
        longer = np.maximum(on_gpu, on_host)
        saved_on_host, host_spread = self.host.saved(rows, self.best)
        return smaller_of(saved + longer - on_gpu, spread, saved_on_host + longer - on_host, host_spread)

    def candidates(self, rng: np.random.Generator, starts: Rows) -> tuple[Rows, np.ndarray]:
        """Candidates and what they may gain, best first."""
        best = self.best[None]
        found = [self._drawn(rng, starts), self.encoding.single_changes(best)[0], self.encoding.pair_changes(best)[0]]
        rows = np.unique(np.concatenate(found), axis=0)
        gains = self.gains(rows)
        climbed = self._climbed(rows[np.argsort(-gains, kind="stable")[:CLIMBERS]])
        rows = np.unique(np.concatenate([rows, climbed]), axis=0)
        gains = self.gains(rows)
        order = np.argsort(-gains, kind="stable")
        return rows[order], gains[order]

    def _climbed(self, rows: Rows) -> Rows:
        """All neighbours on the way up from some rows."""
        seen, heights = [rows], self.gains(rows)
        for _ in range(MAX_MOVES):
            near = self.encoding.single_changes(rows)
            gains = self.gains(_flat(near)).reshape(near.shape[:2])
            seen.append(_flat(near))
            tops, each = gains.argmax(axis=1), np.arange(len(rows))
            higher = gains[each, tops] > heights
            if not higher.any():
                break
            rows, heights = near[each, tops][higher], gains[each, tops][higher]
        return np.concatenate(seen)

    def _drawn(self, rng: np.random.Generator, starts: Rows) -> Rows:
        """The best plan of each drawn world, by descents from the best plan and from another of the starts."""
        draws = max(MIN_DRAWS, min(DRAWS, DRAWS * MANY_CHOICES // max(1, len(self.best))))
        worlds = Worlds(self, rng, draws)
        others = starts[rng.integers(len(starts), size=draws)]
        rows = np.concatenate([np.repeat(self.best[None], draws, axis=0), others])
        ends, costs = worlds.descended(rows, np.tile(np.arange(draws), 2))
        first = costs[:draws] <= costs[draws:]
        found: np.ndarray = np.where(first[:, None], ends[:draws], ends[draws:])
        return found


class Worlds:
    """What plans cost in drawn worlds, with penalties for those that do not train there."""

    def __init__(self, known: Acquisition, rng: np.random.Generator, draws: int) -> None:
        self.known = known
        self.rng = rng
        self.bounds = [DrawnTimes(known.encoding, known.step, rng, draws, known.base_ms)]
        if known.host:
            self.bounds.append(DrawnTimes(known.host.encoding, known.host.step, rng, draws, known.host.fixed_ms))
        drawn = [known.validity.sample(rng) for _ in range(draws)]
        self.limits = np.array([limit for _, limit, _ in drawn])
        self.by_value = [np.stack([errors, forbidden], axis=1) for errors, _, forbidden in drawn]
        """For each world and value of a choice: error, and whether it is forbidden."""
        self.unit = max(float(known.encoding.milliseconds(known.best[None])[0]), 1e-9)

    def descended(self, rows: Rows, owners: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Where descents from the rows end, each in the world that owns it, and what that costs there."""
        rows, costs = rows.copy(), self.costs(rows[:, None], owners)[:, 0]
        live = np.arange(len(rows))
        for _ in range(MAX_MOVES):
            moved = self._moved(self.known.encoding.single_changes, rows, costs, owners, live)
            # What no single change betters may change in pairs.
            stuck = np.setdiff1d(live, moved)
            live = np.union1d(moved, self._moved(self._some_pairs, rows, costs, owners, stuck))
            if not len(live):
                break
        return rows, costs

    def _moved(
        self, changes: Changes, rows: Rows, costs: np.ndarray, owners: np.ndarray, active: np.ndarray
    ) -> np.ndarray:
        """Moves the active rows to the best of their changes; those that got better."""
        near = changes(rows[active])
        if not near.size:
            return active[:0]
        found = self.costs(near, owners[active])
        lowest, each = found.argmin(axis=1), np.arange(len(active))
        better = found[each, lowest] < costs[active] * (1 - 1e-9)
        moved: np.ndarray = active[better]
        rows[moved], costs[moved] = near[each, lowest][better], found[each, lowest][better]
        return moved

    def _some_pairs(self, rows: Rows) -> np.ndarray:
        return self.known.encoding.pair_changes(rows, self.rng, MAX_PAIRS)

    def costs(self, rows: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """Milliseconds, or bytes, for rows x changes x choices; the first axis is that of the owners."""
        known, encoding = self.known, self.known.encoding
        flat, shape = _flat(rows), rows.shape[:2]
        one_hot = encoding.one_hot(flat).reshape(*shape, -1)
        found = np.max([bound.milliseconds(rows, owners) for bound in self.bounds], axis=0)
        sums = np.stack([one_hot[i] @ self.by_value[owner] for i, owner in enumerate(owners)])
        if known.of_memory or math.isfinite(known.max_bytes):
            kept = encoding.bytes(flat).reshape(shape)
        if known.of_memory:
            found = 1e-3 * found + self.unit * kept / max(float(encoding.bytes(known.best[None])[0]), 1.0)
        excess = np.maximum(0.0, np.log(np.maximum(sums[:, :, 0], 1e-300) / self.limits[owners, None]))
        if math.isfinite(known.max_bytes):
            excess = excess + np.maximum(0.0, kept / known.max_bytes - 1)
        broken = sums[:, :, 1] + ~encoding.is_legal(flat).reshape(shape)
        total: np.ndarray = found + PENALTY * self.unit * (broken + excess)
        return np.where(np.isfinite(total), total, 1e300)


class DrawnTimes:
    """Milliseconds of plans by weights that were drawn for each world."""

    def __init__(
        self, encoding: Encoding, step: StepModel, rng: np.random.Generator, draws: int, base_ms: float
    ) -> None:
        self.encoding, self.step = encoding, step
        weights = [step.sample(rng) for _ in range(draws)]
        self.fixed = base_ms + np.array([step.features.of_all(w) for w in weights])
        self.scaling = np.array([step.features.of_scaling(w) for w in weights])
        self.links = [step.features.link_matrices(w) for w in weights]
        self.by_value = [step.features.of_values(w) for w in weights]

    def milliseconds(self, rows: np.ndarray, owners: np.ndarray) -> np.ndarray:
        """For rows x changes x choices; the first axis is that of the owners."""
        flat, shape = _flat(rows), rows.shape[:2]
        weighed = self.step.features.encoding.weighed(flat).reshape(*shape, -1)
        found = self.encoding.milliseconds(flat).reshape(shape)
        indicators = [i.reshape(*shape, -1) for i in self.step.features.indicators(flat)]
        for i, owner in enumerate(owners):
            found[i] += weighed[i] @ self.by_value[owner]
            for each, matrix in zip(indicators, self.links[owner], strict=True):
                found[i] += ((each[i] @ matrix) * each[i]).sum(axis=1)
        found += self.fixed[owners, None] + self.scaling[owners, None] * self.encoding.is_scaled(flat).reshape(shape)
        return found


def smaller_of(
    a: np.ndarray, a_spread: np.ndarray, b: np.ndarray, b_spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the smaller of two independent normal variables (Clark, 1961)."""
    apart = np.hypot(a_spread, b_spread)
    z = np.divide(b - a, apart, out=np.where(b >= a, 40.0, -40.0), where=apart > 0)
    z = np.clip(np.nan_to_num(z, nan=-40.0, posinf=40.0, neginf=-40.0), -40.0, 40.0)
    share = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    density = apart * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(known, a, 0.0), np.where(known, b, 0.0)
    mean = a * share + b * (1 - share) - density
    square = (a**2 + a_spread**2) * share + (b**2 + b_spread**2) * (1 - share) - (a + b) * density
    return np.where(known, mean, -np.inf), np.sqrt(np.maximum(square - mean**2, 0.0))


def _flat(rows: np.ndarray) -> Rows:
    return rows.reshape(-1, rows.shape[-1])


def expected_improvement(saved: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Mean of what a normal variable has above zero; zero where it is not finite."""
    z = _deviations(saved, spread)
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    gains = np.where(np.isfinite(saved), saved, 0.0) * _below(z) + spread * density
    return np.where(np.isfinite(saved), np.maximum(gains, 0.0), 0.0)


def chance_above(least: float, saved: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The chance that a normal variable is more than ``least``; zero where it is not finite."""
    return np.where(np.isfinite(saved), _below(_deviations(saved - least, spread)), 0.0)


def _deviations(saved: np.ndarray, spread: np.ndarray) -> np.ndarray:
    z = np.divide(saved, spread, out=np.where(saved > 0, 40.0, -40.0), where=spread > 0)
    found: np.ndarray = np.clip(np.nan_to_num(z, nan=-40.0, posinf=40.0, neginf=-40.0), -40.0, 40.0)
    return found


def _below(z: np.ndarray) -> np.ndarray:
    """The distribution function of a standard normal variable."""
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])

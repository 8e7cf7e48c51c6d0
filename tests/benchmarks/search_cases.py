"""Allocation problems with a hidden truth: synthetic ones, and recorded cost tables of real models.

A search sees the measured table, the edges and the rounding errors. What a plan really takes differs: every cost is off
by some percent, pairs of groups interact, steps are noisy, and whether a plan trains depends on errors that add up only
roughly, and on a few fragile choices. In what ways they differ is their nature; that of the recorded tables is what the
trials of the reports beside this file show: beyond a share that all plans have in common, tables are some percent off.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.allocate import Problem, problem_of
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding, Rows
from amptune.tune.choices.space import Group, Space
from amptune.tune.quality.noise import Noise

DATA = Path(__file__).parent / "data"
COST_ERROR = 0.12
"""Standard deviation of the logarithm of true over measured cost."""
INTERACTION = 0.01
"""Standard deviation of what a pair of neighbours takes together beyond the sum, as a share of the FP32 step."""
NOISE = 0.004
"""Standard deviation of a measured step: the reports of this repository show 0.2 to 1 %."""
ERROR_SPREAD = 0.5
NUM_FRAGILE = 2

SHARE_SPREAD, SHARE_SPREAD_16 = 0.5, 1.5
"""Standard deviation of the logarithm of the noise in gradients over what the true error says, with FP8 and without."""
WORST_TO_TYPICAL = (0.8, 0.4)
"""Mean and standard deviation of the logarithm of the worst gradient's noise over the median one's."""

Point = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Nature:
    """In what ways a truth differs from its table.

    Attributes:
        cost_error: standard deviation of the logarithm of true over measured cost.
        interaction: standard deviation of what two groups take together beyond the sum, as a share of the FP32 step.
        between: the groups that interact: ``linked`` by a tensor and both in 16 bits, linked and ``differing`` in
            format (casts that cost something else), or ``any`` two, as many pairs as are linked.
        together: whether ``interaction`` is that of all groups together, as a share of the fastest step with one choice
            everywhere.
        error_spread: standard deviation of the logarithm of true over measured rounding error.
        fragile: choices that do not train by themselves.
        is_named: whether their gradients give them away; else all that is seen is that the plan does not train.
    """

    cost_error: float = COST_ERROR
    interaction: float = INTERACTION
    between: str = "linked"
    together: bool = False
    error_spread: float = ERROR_SPREAD
    fragile: int = NUM_FRAGILE
    is_named: bool = True


NATURES = {
    "": Nature(),
    "additive": Nature(interaction=0.0, fragile=0),
    "casts": Nature(cost_error=0.2, between="differing", error_spread=0.3, fragile=1),
    "anywhere": Nature(between="any", error_spread=0.8),
    "fragile": Nature(interaction=0.005, fragile=8),
    "recorded": Nature(interaction=0.03, together=True),
    "unnamed": Nature(interaction=0.005, fragile=3, is_named=False),
}
"""By the second half of a case's name: synthetic-24-casts."""


@dataclasses.dataclass
class Truth:
    """What a plan really takes and whether it trains."""

    model: CostModel
    rest_ms: float
    factors: dict[tuple[str, str], float]
    pairs: dict[tuple[str, str], float]
    errors: dict[tuple[str, str], float]
    limit: float
    fragile: set[tuple[str, str]]
    nature: Nature = Nature()

    @classmethod
    def of(cls, model: CostModel, rest_ms: float, seed: int, nature: Nature = Nature()) -> Truth:
        """A truth that the model's measurements could come from."""
        rng = np.random.default_rng(seed)
        groups = model.space.module_groups()
        values = [(group.name, choice.label) for group in groups for choice in group.choices]
        factors = {value: float(rng.lognormal(0, nature.cost_error)) for value in values}
        scale = nature.interaction * (rest_ms + model.predicted(model.space.point({})))
        linked = {tuple(sorted(pair)) for edge in model.edges
                  for pair in itertools.product(_owners(model, edge.sources), _owners(model, edge.into))}  # fmt: skip
        linked = {(a, b) for a, b in linked if a != b}
        if nature.between == "any":
            every = list(itertools.combinations([group.name for group in groups], 2))
            linked = {every[i] for i in rng.choice(len(every), min(len(linked), len(every)), replace=False)}
        if nature.together:
            fastest = min(rest_ms + model.predicted(model.space.uniform(c)) for c in model.space.offered())
            scale = nature.interaction * fastest / math.sqrt(max(1, len(linked)))
        pairs = {pair: float(rng.normal(0, scale)) for pair in sorted(linked)}
        errors = {value: float(rng.lognormal(0, nature.error_spread)) for value in values}
        halves = [value for value in values if value[1] != FP32.label]
        fragile = {halves[i] for i in rng.choice(len(halves), min(nature.fragile, len(halves)), replace=False)}
        truth = cls(model, rest_ms, factors, pairs, errors, math.inf, fragile, nature)
        # Between all in 16 bits, which trains as a rule, and all in FP8 where that is offered, which may not.
        uniform = sorted(truth.error(model.space.uniform(choice)) for choice in model.space.offered())
        truth.limit = float(rng.uniform(0.6, 1.2)) * (uniform[len(uniform) // 2] if uniform else 1.0)
        return truth

    @functools.cached_property
    def problem(self) -> Problem:
        """Costs and errors without vetoes: what overflows runs all the same, it just does not train."""
        times = problem_of(self.model.space, self.model.table, self.model.edges)
        return dataclasses.replace(times, errors=self.model.problem().errors)

    def ms(self, point: Point) -> float:
        """The step without noise."""
        chosen = {group.name: Choice.parse(point[group.name]) for group in self.model.space.module_groups()}
        off = sum(self.problem.times[name][c] * (self.factors[name, c.label] - 1) for name, c in chosen.items())
        both = sum(ms for (a, b), ms in self.pairs.items() if self._interact(chosen[a], chosen[b]))
        # A step is never shorter than what the processor needs to launch it.
        return max(self.rest_ms + self.model.predicted(point) + off + both, 1.02 * self.rest_ms)

    def _interact(self, one: Choice, other: Choice) -> bool:
        if self.nature.between == "differing":
            return one.output_format is not other.output_format
        return one != FP32 and other != FP32

    def error(self, point: Point) -> float:
        """The rounding error of a point: the sum of what its groups really add."""
        return sum(
            self.problem.errors[g.name][Choice.parse(point[g.name])] * self.errors[g.name, point[g.name]]
            for g in self.model.space.module_groups()
        )

    def failing(self, point: Point) -> list[str]:
        """Groups whose gradients are wrong by themselves."""
        vetoes = self.model.vetoes
        return [
            group.name
            for group in self.model.space.module_groups()
            if (group.name, point[group.name]) in self.fragile
            or Choice.parse(point[group.name]) in vetoes.get(group.name, {})
        ]

    def trains(self, point: Point) -> bool:
        """Whether a plan is valid."""
        return not self.failing(point) and self.error(point) <= self.limit

    def noise(self, point: Point) -> Noise:
        """What is seen of its gradients: the error roughly, on the right side of the bar; of what is fragile anything
        beyond it. The same each time."""
        rng = np.random.default_rng(zlib.crc32(repr(sorted(point.items())).encode()))
        has_fp8 = any(Choice.parse(point[group.name]).format.is_fp8 for group in self.model.space.module_groups())
        share = self.error(point) / self.limit
        seen = share * math.exp(rng.normal(0, SHARE_SPREAD if has_fp8 else SHARE_SPREAD_16))
        seen = min(seen, 0.99) if share <= 1 else max(seen, 1.01)
        typical = seen / math.exp(abs(rng.normal(*WORST_TO_TYPICAL)))
        return Noise(max(seen, math.exp(rng.uniform(0.05, 8))) if self.failing(point) else seen, typical)

    def optimum(self, seed: int, starts: int = 40) -> float:
        """The least step of a valid plan that descents from many starts, by one and two changes, find."""
        rng = np.random.default_rng(seed)
        space, encoding = self.model.space, self.encoding
        points = [space.point({}), *(space.uniform(choice) for choice in space.offered())]
        values = space.choices().items()
        points += [space.made_legal({name: str(rng.choice(list(v))) for name, v in values}) for _ in range(starts)]
        return min(self._descend(encoding.encode(point)) for point in points)

    def costs(self, rows: Rows) -> np.ndarray:
        """The step of each row; of one that does not train, more than any step, and the more the worse it is."""
        encoding = self.encoding
        one_hot = encoding.one_hot(rows)
        ms = self.rest_ms + encoding.milliseconds(rows) + one_hot @ self._by_column["ms"]
        formats = encoding.formats(rows)
        low = formats > 0
        if self.nature.between == "differing":
            same = sum(np.einsum("ni,ij,nj->n", formats == f, self._pair_matrix, formats == f) for f in range(3))
            ms += self._pair_matrix.sum() - same
        else:
            ms += np.einsum("ni,ij,nj->n", low, self._pair_matrix, low)
        excess = np.maximum(0.0, one_hot @ self._by_column["errors"] / self.limit - 1)
        failing = one_hot @ self._by_column["failing"] + ~encoding.is_legal(rows)
        broken = np.where(failing + excess > 0, 1e6 * (1 + failing + excess), 0.0)
        found: np.ndarray = np.maximum(ms, 1.02 * self.rest_ms) + broken
        return found

    @functools.cached_property
    def encoding(self) -> Encoding:
        """The rows of the space."""
        return Encoding(self.model)

    @functools.cached_property
    def _by_column(self) -> dict[str, np.ndarray]:
        """What each value of each choice adds, in the order of ``Encoding.one_hot``."""
        encoding, problem, vetoes = self.encoding, self.problem, self.model.vetoes
        values = [(n, Choice.parse(v)) for n, vs in zip(encoding.names, encoding.values, strict=True) for v in vs]
        return {
            "ms": np.array([problem.times[n][c] * (self.factors[n, c.label] - 1) for n, c in values]),
            "errors": np.array([problem.errors[n][c] * self.errors[n, c.label] for n, c in values]),
            "failing": np.array([(n, c.label) in self.fragile or c in vetoes.get(n, {}) for n, c in values], float),
        }

    @functools.cached_property
    def _pair_matrix(self) -> np.ndarray:
        index = {group.name: i for i, group in enumerate(self.model.space.module_groups())}
        found = np.zeros((len(index), len(index)))
        for (a, b), ms in self.pairs.items():
            found[index[a], index[b]] += ms
        return found

    def _descend(self, row: np.ndarray) -> float:
        here = float(self.costs(row[None])[0])
        while True:
            for moves in (self.encoding.single_changes, self.encoding.pair_changes):
                near = moves(row[None])[0]
                costs = self.costs(near) if len(near) else np.array([math.inf])
                if costs.min() < here - 1e-9:
                    row, here = near[costs.argmin()], float(costs.min())
                    break
            else:
                return here


def _owners(model: CostModel, sites: tuple[str, ...]) -> list[str]:
    return [group.name for group in model.space.module_groups() if set(group.sites) & set(sites)]


def synthetic(seed: int, num_groups: int) -> tuple[CostModel, float]:
    """A residual network of random layers with costs like those measured on GPUs, and the rest of its step."""
    rng = np.random.default_rng(1000 + seed)
    groups, sites, sensitivity = [], {}, {}
    for index in range(num_groups):
        name = f"layer{index:02d}"
        linear = rng.random() < 0.7
        choices = (FP32, BF16, FP16, *(FP8[:2] if linear else ()))
        groups.append(Group(name, (name,), "module", ("swap",), choices, frozenset({name} if linear else ())))
        sites[name] = _site_costs(rng, linear)
        sensitivity[name] = _site_errors(rng, choices)
    per_ms = float(rng.uniform(0.5, 1.5)) * 2e-8
    pairs = itertools.combinations((Format.FP32, Format.BF16, Format.FP16), 2)
    table = CostTable(sites, {frozenset(pair): CastPrice(0.01, per_ms) for pair in pairs})
    space = Space(tuple(groups), tf32=False, channels_last=False, meets=(frozenset(g.name for g in groups[::3]),))
    total = sum(cost[FP32].ms for cost in sites.values())
    return CostModel(space, table, _residual_edges(groups, rng), Sensitivity(sensitivity)), 0.3 * total


def _site_costs(rng: np.random.Generator, linear: bool) -> dict[Choice, SiteCost]:
    base = float(rng.lognormal(0, 0.8))
    half = base * float(rng.uniform(0.15, 0.5) if linear else rng.uniform(0.5, 1.1))
    costs = {FP32: SiteCost(base), BF16: SiteCost(half), FP16: SiteCost(half * float(rng.uniform(0.8, 1.15)))}
    if linear:
        costs |= {choice: SiteCost(half * float(rng.uniform(0.55, 1.4))) for choice in FP8[:2]}
    return costs


def _site_errors(rng: np.random.Generator, choices: tuple[Choice, ...]) -> SiteSensitivity:
    weight = float(rng.lognormal(0, 0.7))
    errors = {c: RoundingError(weight * c.format.epsilon, weight * c.format.epsilon) for c in choices if c != FP32}
    vetoes = {FP16: "overflows"} if rng.random() < 0.15 else {}
    return SiteSensitivity({c: e for c, e in errors.items() if c not in vetoes}, vetoes)


def _residual_edges(groups: list[Group], rng: np.random.Generator) -> list[Edge]:
    """A stream that every third layer writes; the others follow one another between."""
    edges, stream, before = [Edge((INPUT,), (groups[0].sites[0],), 10**6, 0.5)], (groups[0].sites[0],), ""
    for index, group in enumerate(groups[1:], 1):
        numel = int(rng.integers(1, 20)) * 10**5
        edges.append(Edge((before,) if before else stream, group.sites, numel))
        before = group.sites[0]
        if index % 3 == 0:
            edges.append(Edge((before,), (*stream, before), numel, 0.5))
            stream, before = (*stream, before), ""
    return edges


def recorded(path: Path) -> tuple[CostModel, float, dict[str, Any]]:
    """A table that ``record_table.py`` wrote: the cost model, the rest of the step, and where it comes from."""
    data = json.loads(path.read_text())
    groups = tuple(
        Group(g["name"], tuple(g["sites"]), "module", ("swap",) * len(g["sites"]),
              tuple(map(Choice.parse, g["choices"])), frozenset(g["fp8"]))
        for g in data["groups"]
    )  # fmt: skip
    space = Space(groups, tf32=False, channels_last=False, meets=tuple(map(frozenset, data["meets"])))
    edges = [Edge.from_json(edge) for edge in data["edges"]]
    model = CostModel(space, CostTable.from_json(data["costs"]), edges, Sensitivity.from_json(data["sensitivity"]))
    rest = max(0.05 * data["fp32_step_ms"], data["fp32_step_ms"] - model.predicted(space.point({})))
    return model, rest, {key: data[key] for key in ("model", "device", "fp32_step_ms")}

"""How soon a search finds a plan with as much FP8 as trains, where FP8 everywhere is the fastest and does not train.

    PYTHONPATH=.:rules python tests/benchmarks/fp8_limit.py                    # writes reports/fp8_limit.md
    PYTHONPATH=.:rules python tests/benchmarks/fp8_limit.py --what halves      # writes reports/fp8_halves.md

Transformers of eight blocks and a head as Llama 0.6 B under torch.compile: FP8 takes 0.6 to 0.85 of BF16's time, and
everything in FP8 errs 0.8, 1.3, 3 or 12 times as much as trains (12 was seen with Llama of 8 B's shapes). What a plan
takes and errs differs from what the tables say: by 6 % for the time, a factor of exp(0.5) for the error of a choice,
and of exp(0.3) for that of a layer; the noise of gradients shows the error but for a factor of exp(0.4). Six stock
recipes, two of them in FP8, are measured as the search asks for them. Regret: the true step of the best plan so far by
noisy measurements, over the fastest that trains with whole groups (by an integer program on the truth), minus 1; the
mean over seeds, by the number of plans measured. Before a plan trains, autocast's step stands for it. The difference
has its 95 % interval over the seeds, each searched both ways. Halves of groups are choices of the search alone, so that
its regret may be below zero.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy import stats

from amptune.capture import TargetSpec
from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.allocate import allocate, problem_of
from amptune.tune.allocation.caps import Caps
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.splits import split_where_it_pays
from amptune.tune.quality.gate import GradientGate
from amptune.tune.quality.noise import Noise
from amptune.tune.quality.quality import Quality
from amptune.tune.running.recipes import Candidate, float8_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.search import Search
from amptune.tune.study.progress import Progress
from amptune.tune.study.study import open_study
from amptune.tune.workers.job import Measured, Prepared
from amptune.tune.workers.options import TuneOptions

COMPARED = {
    "limits": ("amptune.tune.allocation.front._of_less_error", "the front has no plans under limits of the error"),
    "halves": ("amptune.tune.learning.splits._worth_in_fp8", "groups in which FP8 saves time are not halved by error"),
}
"""What is left out -> the function that gives it, and what is said of it."""
REPORTS = Path(__file__).parent / "reports"
SHARES = (0.8, 1.3, 3.0, 12.0)
Regrets = NDArray[np.float64]
AFTER = (1, 2, 3, 4, 6, 10)
BUDGET = 16
NUM_BLOCKS = 8
LINEAR = {"qkv": 1.5, "o": 0.5, "gate": 2.0, "up": 2.0, "down": 2.0}
PLAIN = {"norm1": 0.1, "norm2": 0.1}
MS = 0.35
"""Milliseconds of a unit of these sizes in BF16."""
HEAD, NORM, REST_MS = 5.0, 0.035, 15.0
TENSORWISE, ROWWISE, HIGH_GRADIENT = FP8[:3]
NOISE = 0.004
RECIPES = (
    Candidate("fp32"), Candidate("tf32", tf32=True), Candidate("autocast-bf16", autocast=Format.BF16),
    Candidate("autocast-fp16", autocast=Format.FP16), float8_candidate("tensorwise"), float8_candidate("rowwise"),
)  # fmt: skip
Choices = Mapping[str, Choice]


def model_of(seed: int) -> CostModel:
    """What a search would have measured."""
    rng = np.random.default_rng(seed)
    gain = float(rng.uniform(0.6, 0.85))
    layer = np.exp(rng.normal(0, 0.2, NUM_BLOCKS))
    roles = [*LINEAR, "head"]
    price, error = (dict(zip(roles, np.exp(rng.normal(0, s, len(roles))), strict=True)) for s in (0.08, 0.3))
    sites, errors, by_role = {}, {}, dict[str, list[str]]()
    for index in range(NUM_BLOCKS):
        for role, size in (PLAIN | LINEAR).items():
            name = f"layers.{index}.{role}"
            by_role.setdefault(role, []).append(name)
            weight = float(error.get(role, 1.0) * layer[index])
            sites[name], errors[name] = _site(size * MS, gain * float(price.get(role, 0)), weight)
    for role, ms in (("norm", NORM), ("head", HEAD)):
        by_role[role] = [role]
        sites[role], errors[role] = _site(ms, gain * float(price.get(role, 0)), 0.7 * float(error.get(role, 1.0)))
    groups = tuple(
        Group(role if len(names) == 1 else f"layers.*.{role}", tuple(names), "module", ("swap",) * len(names),
              tuple(sites[names[0]]), frozenset(names if TENSORWISE in sites[names[0]] else ()))
        for role, names in by_role.items()
    )  # fmt: skip
    pairs = ((Format.FP32, Format.BF16), (Format.FP32, Format.FP16), (Format.BF16, Format.FP16))
    table = CostTable(sites, {frozenset(pair): CastPrice(0.0, 1e-9) for pair in pairs})
    return CostModel(Space(groups, tf32=False, channels_last=False), table, _edges(), Sensitivity(errors))


def _site(ms: float, fp8: float, weight: float) -> tuple[dict[Choice, SiteCost], SiteSensitivity]:
    """Costs and errors of a site; without FP8 where that takes no time."""
    costs = {FP32: ms * (8 if fp8 else 1.6), BF16: ms, FP16: 1.03 * ms}
    found = {c: RoundingError(c.format.epsilon, c.format.epsilon) for c in (BF16, FP16)}
    if fp8:
        costs |= {TENSORWISE: fp8 * ms, ROWWISE: (fp8 + 0.12) * ms, HIGH_GRADIENT: (fp8 + 0.17) * ms}
        tensor, row = 0.036 * weight, 0.033 * weight
        found |= {TENSORWISE: RoundingError(tensor, tensor, tensor), ROWWISE: RoundingError(row, row, row),
                  HIGH_GRADIENT: RoundingError(row, row, 0.002)}  # fmt: skip
    return {choice: SiteCost(value) for choice, value in costs.items()}, SiteSensitivity(found)


def _edges() -> list[Edge]:
    found, before = [], INPUT
    for index in range(NUM_BLOCKS):
        chain = [before, *(f"layers.{index}.{role}" for role in ("norm1", "qkv", "o", "norm2", "gate", "down"))]
        pairs = [*itertools.pairwise(chain), (f"layers.{index}.norm2", f"layers.{index}.up")]
        found += [Edge((a,), (b,), 2 * 10**6) for a, b in pairs]
        before = chain[-1]
    return [*found, Edge((before,), ("norm",), 2 * 10**6), Edge(("norm",), ("head",), 2 * 10**6)]


class Truth:
    """What a plan really takes and errs; everything in FP8 errs ``share`` times as much as trains."""

    def __init__(self, model: CostModel, seed: int, share: float) -> None:
        rng = np.random.default_rng(seed + 77)
        self.model = model
        self.group = {site: group.name for group in model.space.groups for site in group.sites}
        keys = [(group.name, choice) for group in model.space.groups for choice in group.choices]
        self.times, self.errors = (
            dict(zip(keys, np.exp(rng.normal(0, s, len(keys))), strict=True)) for s in (0.06, 0.5)
        )
        self.layers = dict(zip(self.group, np.exp(rng.normal(0, 0.3, len(self.group))), strict=True))
        self.autocast = float(rng.uniform(1.0, 1.06))
        self.limit = self.error(self.uniform(TENSORWISE)) / share

    def uniform(self, choice: Choice) -> dict[str, Choice]:
        """One choice wherever it is offered, BF16 elsewhere."""
        return {site: choice if choice in self.model.table.sites[site] else BF16 for site in self.group}

    def site_ms(self, site: str, choice: Choice) -> float:
        return float(self.model.table.site(site, choice).ms * self.times[self.group[site], choice])

    def site_error(self, site: str, choice: Choice) -> float:
        known = self.model.sensitivity.error(site, choice)
        return float(known * self.errors.get((self.group[site], choice), 1.0) * self.layers[site])

    def error(self, choices: Choices) -> float:
        return sum(self.site_error(site, choice) for site, choice in choices.items())

    def ms(self, choices: Choices) -> float:
        """The step without noise."""
        casts = self.model.table.total(choices, self.model.edges) - self.model.table.total(choices, [])
        return REST_MS + casts + sum(self.site_ms(site, choice) for site, choice in choices.items())

    def noise(self, choices: Choices) -> Noise:
        """What is seen of the gradients: the same each time."""
        told = repr(sorted((site, choice.label) for site, choice in choices.items()))
        rng = np.random.default_rng(zlib.crc32(told.encode()))
        share = self.error(choices) / self.limit
        seen = share * math.exp(rng.normal(0, 0.4 if any(c.format.is_fp8 for c in choices.values()) else 1.5))
        seen = min(seen, 0.99) if share <= 1 else max(seen, 1.01)
        return Noise(seen, seen / math.exp(abs(rng.normal(0.8, 0.4))))

    def fastest(self) -> float:
        """The step of the fastest plan that trains."""
        groups = self.model.space.module_groups()
        problem = problem_of(self.model.space, self.model.table, self.model.edges)
        times, errors = (
            {g.name: {c: sum(of(site, c) for site in g.sites) for c in g.choices} for g in groups}
            for of in (self.site_ms, self.site_error)
        )
        chosen = allocate(dataclasses.replace(problem, times=times, errors=errors), caps=Caps(error=self.limit))
        return self.ms({site: chosen[name] for site, name in self.group.items()})


class TruthWorker:
    """Answers a search as its worker does, and notes what it would hand over after each plan."""

    def __init__(self, truth: Truth, seed: int) -> None:
        self.truth = truth
        self.rng = np.random.default_rng(seed)
        self.best = math.inf, truth.autocast * truth.ms(truth.uniform(BF16))
        self.handed: list[float] = []

    def request(self, name: str, *arguments: Any, timeout: float) -> Measured:
        assert name == "trial"
        candidate: Candidate = arguments[0]
        truth, plan = self.truth, candidate.plan
        choices = {site: plan.sites[site].choice for site in truth.group} if plan else self._of_recipe(candidate)
        true = truth.ms(choices) * (truth.autocast if candidate.autocast else 1.0)
        noisy = true * (1 + float(self.rng.normal(0, NOISE)))
        trains = truth.error(choices) <= truth.limit
        if plan:
            self.best = min(self.best, (noisy, true)) if trains else self.best
            self.handed.append(self.best[1])
        failing = () if trains else ("layers.0.gate.weight",)
        gate = GradientGate(1.0, (), failing, truth.noise(choices))
        step = StepTime(noisy, 0.997 * noisy, 1.003 * noisy, (noisy,) * 5)
        return Measured(step, None, Quality(0.0, 0.0, 0.005, gate, 0, 60, "" if trains else "points elsewhere"))

    def _of_recipe(self, candidate: Candidate) -> dict[str, Choice]:
        if candidate.float8:
            return self.truth.uniform(Choice(Format.FP8_E4M3, candidate.float8))
        return self.truth.uniform(Choice(candidate.autocast) if candidate.autocast else FP32)


class Quiet(Progress):
    """Says nothing."""

    def line(self, text: str) -> None:
        pass


def regrets(seed: int, share: float) -> list[float]:
    """Regret after each number of plans in ``AFTER``."""
    model = model_of(seed)
    worker = TruthWorker(Truth(model, seed, share), seed)
    searched, _ = split_where_it_pays(model)
    with tempfile.TemporaryDirectory() as folder:
        options = TuneOptions(TargetSpec("m.py"), Path(folder), budget=BUDGET, seed=seed, compile_with="inductor")
        Search(
            options=options, study=open_study(Path(folder), "refuse", seed),
            worker=worker,  # type: ignore[arg-type]
            prepared=Prepared({"gpu": "truth"}, 0.0, 3.0, 2.0, "train_batches", ()),
            recipes={recipe.name: recipe for recipe in RECIPES}, space=searched.space, table=model.table,
            edges=model.edges, plan_header={}, progress=Quiet(BUDGET), sensitivity=model.sensitivity,
        ).run()  # fmt: skip
    best = worker.truth.fastest()
    return [worker.handed[min(count, len(worker.handed)) - 1] / best - 1 for count in AFTER]


def _means(regrets_of_seeds: Regrets) -> list[str]:
    return [f"{mean:.2%}" for mean in regrets_of_seeds.mean(axis=0)]


def _differences(pairs: Regrets) -> list[str]:
    """Means with half of their 95 % interval by Student's t."""
    half = stats.t.ppf(0.975, max(1, len(pairs) - 1)) * stats.sem(pairs, axis=0)
    return [f"{mean:+.2%} ± {width:.2%}" for mean, width in zip(pairs.mean(axis=0), half, strict=True)]


class Kept:
    """Regrets of finished searches, in a file of JSON lines that a later run, or another process, reads on."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.found = dict(map(json.loads, lines))

    def regrets(self, what: str, share: float, seed: int, *, is_without: bool) -> list[float]:
        """Of one search, which is run unless it was kept."""
        key = f"{what} {share:g} {seed} {'without' if is_without else 'with'}"
        if key not in self.found:
            left_out = mock.patch(COMPARED[what][0], return_value=[]) if is_without else contextlib.nullcontext()
            with left_out:
                self.found[key] = regrets(seed, share)
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([key, self.found[key]]) + "\n")
        return self.found[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=COMPARED, default="limits", help="what is left out to compare with")
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--first", type=int, default=200, help="the first seed")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--kept", type=Path, help="a file for finished searches, to go on from")
    parser.add_argument("--report", help="name of the report; - for none")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _, said = COMPARED[args.what]
    lines = [
        "# Plans with as much FP8 as trains, by the number of plans measured", "", *(__doc__ or "").split("\n")[5:],
        f"Seeds {args.first} to {args.first + args.seeds - 1}. Without: {said}.", "",
        "| everything in FP8 errs | " + " | ".join(f"after {count}" for count in AFTER) + " |",
        "|---|" + "---|" * len(AFTER),
    ]  # fmt: skip
    kept, seeds = Kept(args.kept), range(args.first, args.first + args.seeds)
    for share in args.shares:
        pairs = [[kept.regrets(args.what, share, seed, is_without=w) for w in (True, False)] for seed in seeds]
        before, after = np.array(pairs).transpose(1, 0, 2)
        named = {"without": _means(before), "with": _means(after), "difference": _differences(after - before)}
        for name, cells in named.items():
            lines.append(f"| {share:g} times as much as trains, {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    name = args.report or f"fp8_{'limit' if args.what == 'limits' else args.what}"
    if name != "-":
        (REPORTS / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

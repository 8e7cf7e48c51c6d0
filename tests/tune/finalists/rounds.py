"""Repeats of finalists on simulated hosts: what the procedure says beside what is true, without a search before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.finalists import finaltime
from amptune.tune.finalists.finals import Verdict, decide
from amptune.tune.finalists.way import Way
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.study.trial import Outcome
from amptune.tune.workers.parts import Parts
from tests.tune.hosts import Host

STEP_MS = 27.0
"""Of the stock recipe."""
SHORT, LONG = 30.0, 3000.0
"""Seconds of searches that leave time for a few rounds, and for all of them."""
HOSTS: dict[str, dict[str, Any]] = {
    "calm": {"calm": True},
    "noise of 1 %": {"calm": True, "noise": 0.01},
    "noise of 3 %": {"calm": True, "noise": 0.03},
    "noise of 10 %": {"calm": True, "noise": 0.1},
    "drift of 5 % in a second": {"calm": True, "drift": 0.05},
    "a third slower for 0.3 s": {"dwell": 0.3},
    "a third slower for 1.5 s": {"dwell": 1.5},
    "a third slower for 6 s": {"dwell": 6.0},
    "a third slower for 30 s": {"dwell": 30.0},
    "a tenth slower for 1.5 s, noise of 2 %": {"dwell": 1.5, "slow": 1.1, "noise": 0.02},
    "a third slower for 1.5 s, drift of 2 %": {"dwell": 1.5, "drift": 0.02},
}
"""What each host is like; times are means."""


@dataclasses.dataclass(frozen=True)
class Said:
    """What the repeats said of plans that are so many times as fast as the stock recipe.

    Attributes:
        verdict: as it was said.
        truth: the speedup of the plan that won, as it is compiled, over the fastest way of the recipes; 1 where the
            recipe won.
        blocks: how often a candidate was timed.
    """

    verdict: Verdict
    truth: float
    blocks: int

    @property
    def is_too_much(self) -> bool:
        """Whether the lower end of the speedup is above the true one."""
        return self.verdict.speedup_low > self.truth


@dataclasses.dataclass(frozen=True)
class _Record:
    """As far as a TrialRecord is asked for."""

    number: int
    outcome: Outcome


class _Simulated:
    """A search that has ended and its worker, as far as the repeats ask for them."""

    def __init__(
        self,
        host: Host,
        speedups: Sequence[float],
        seconds: float,
        *,
        is_compiled: bool,
        device: str,
        stock: Mapping[str, tuple[float, float]],
        by_clock: Mapping[str, float],
        ways: Mapping[str, float] | None,
        in_parts: float | None,
    ) -> None:
        self.host, self.worker, self.blocks = host, self, 0
        self.compiles_trials = is_compiled
        self.ways, self.in_parts = ways or {}, in_parts
        compile_with = "inductor" if is_compiled or ways else None
        self.options = SimpleNamespace(objective="time", trial_timeout=1.0, compile_with=compile_with, timeout=None,
                                       device=device, max_memory=None)  # fmt: skip
        self.progress = SimpleNamespace(seconds=lambda: seconds, stage=lambda *_: None, line=lambda *_: None)
        self.space = SimpleNamespace(groups=())
        self.recipes = {name: Candidate(name) for name in stock}
        self.parts = Parts(("blocks.0",) if in_parts else (), in_eager=bool(ways))
        self.stock = [_record(len(speedups), trial, name, by_clock.get(name)) for name, (trial, _) in stock.items()]
        self.plans = [_record(index, STEP_MS / speedup) for index, speedup in enumerate(speedups)]
        self.milliseconds = {
            plan_candidate(self.plan_of(record)).key: record.outcome.ranked_ms for record in self.plans
        } | {Candidate(name).key: truth for name, (_, truth) in stock.items()}

    def best_stock(self) -> _Record:
        return self.stock[0]

    def best_stocks(self, count: int) -> list[_Record]:
        return self.stock[:count]

    def best_plans(self, count: int) -> list[_Record]:
        return self.plans[:count]

    def records(self) -> list[_Record]:
        return [*self.stock, *self.plans]

    def plan_of(self, record: _Record) -> Plan:
        return Plan({f"layer.{record.number}": SitePlan(Format.BF16)}, loss_format=Format.FP32)

    def truly(self, candidate: Candidate, is_whole: bool) -> float:
        """Milliseconds of a step, compiled or not."""
        name = candidate.name.removesuffix("+parts")
        times = self.ways.get(name, 1.0) if is_whole and not candidate.eager else 1.0
        if candidate.in_parts:
            times *= self.in_parts or 1.0
        return self.milliseconds[candidate.as_written().key if name == "plan" else Candidate(name).key] * times

    def request(
        self, _name: str, candidates: Sequence[Candidate], rounds: int, _: bool, is_whole: bool, *, timeout: float
    ) -> Any:
        times: list[list[StepTime]] = [[] for _ in candidates]
        for index in range(rounds):
            order = list(zip(candidates, times, strict=True))
            for candidate, found in reversed(order) if index % 2 else order:
                found.append(self.host.block(self.truly(candidate, is_whole)))
                self.blocks += 1
        return times


def _record(number: int, milliseconds: float, recipe: str | None = None, by_clock: float | None = None) -> _Record:
    step = StepTime.of([by_clock or milliseconds]).to_json()
    outcome = Outcome("stock" if recipe else "search", "valid", recipe=recipe, step_ms=step)
    return _Record(number, dataclasses.replace(outcome, paired_ms=milliseconds) if by_clock else outcome)


STOCK = {"fp32": (STEP_MS, STEP_MS)}


def repeated(
    host: Host,
    speedups: Sequence[float],
    seconds: float = LONG,
    *,
    is_compiled: bool = False,
    device: str = "cuda",
    stock: Mapping[str, tuple[float, float]] = STOCK,
    by_clock: Mapping[str, float] | None = None,
    quartiles: Mapping[str, tuple[float, float]] | None = None,
    ways: Mapping[str, float] | None = None,
    in_parts: float | None = None,
) -> Said:
    """Repeats after a search of so many seconds, on the host's own clock, of plans with these true speedups.

    ``stock``: stock recipes, best trial first -> milliseconds of its trial, and what its step really takes.
    ``by_clock``: what the clock had in trials that were compared with another.
    ``quartiles``: of the steps in a recipe's trial, where they differ.
    ``ways``: trials are in eager mode; how many times that a step takes compiled, of each recipe and of ``plan``.
    ``in_parts``: the model has parts; how many times that of a model compiled whole a step takes with them compiled.
    """
    search = _Simulated(host, speedups, seconds, is_compiled=is_compiled, device=device, stock=stock,
                        by_clock=by_clock or {}, ways=ways, in_parts=in_parts)  # fmt: skip
    for record in search.stock:
        low, high = (quartiles or {}).get(str(record.outcome.recipe), (math.inf, math.inf))
        if record.outcome.step_ms and low < high:
            record.outcome.step_ms.update(low=low, high=high)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finaltime, "time", SimpleNamespace(monotonic=lambda: host.now))
        verdict = decide(search)  # type: ignore[arg-type]
    truth = speedups[verdict.record.number] if verdict.kind == "plan" and not verdict.record.outcome.recipe else 1.0
    if verdict.kind == "plan" and verdict.way is Way.PARTS:
        truth /= in_parts or 1.0
    if ways and verdict.kind == "plan":
        best = min(ms * min(1.0, ways.get(name, 1.0)) for name, (_, ms) in stock.items()) / STEP_MS
        truth *= best / (1.0 if verdict.way is Way.EAGER else ways.get("plan", 1.0))
    return Said(verdict, truth, search.blocks)


def chance_of_more(wrong: int, count: int, error: float = 0.05) -> float:
    """Chance of so many or more errors in so many cases, each with a chance of ``error``."""
    fewer = sum(math.comb(count, k) * error**k * (1 - error) ** (count - k) for k in range(wrong))
    return max(0.0, 1.0 - fewer)

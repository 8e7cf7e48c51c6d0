"""Compile mode whose trials ran in eager mode: the finalists in both ways, each candidate in the faster one.

Where compiling takes a minute, trials cannot wait for it. Nor is it sure to pay: ResNet-50 took 27 ms a step compiled
whole under autocast in FP16, which Python needed to launch its kernels, and 23 in eager mode in channels_last (H200,
128 images, torch 2.11). So the recipe is measured as its users compile it and as it is, and so is the plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amptune.tune.finalist import EndlessError, Finalist, fits, outcomes_of, repeat
from amptune.tune.finaltime import CHOICE_ROUNDS, NUM_STOCK, FinalTime, seconds_of_rounds, seconds_to_compile
from amptune.tune.judging import fastest, plan_as_tried, plan_in_parts
from amptune.tune.process import TrialError
from amptune.tune.search import Search

COULD_LEAD = 1.5
"""A recipe that takes this many times the best one's step in eager mode may still be the fastest once compiled:
autocast in BF16 took 1.27 times FP16's with ResNet-50 on an H200, for its norms, which a compiler makes itself."""


@dataclasses.dataclass(frozen=True)
class Ways:
    """The ways that are measured in turns.

    Attributes:
        recipes: of stock recipes, the one in eager mode that won there first.
        plans: of the plan, eager mode first.
    """

    recipes: tuple[Finalist, ...]
    plans: tuple[Finalist, ...]

    @property
    def all(self) -> list[Finalist]:
        """Those of recipes and of the plan."""
        return [*self.recipes, *self.plans]


def faster_ways(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime) -> tuple[Finalist, Finalist]:
    """The fastest way of the stock recipes, of which ``stock`` is the best in eager mode, and that of the plan, without
    their times.

    Compiled are that recipe, the plan, and another recipe, in this order, as far as there is time.
    """
    stocks = [stock, *_others(search, stock)]
    fitting = _num_fitting(search, clock, len(stocks) + 1)
    if not fitting:
        clock.leave_out("no time to compile the finalists: they are compared in eager mode, as their trials ran")
    why = "for want of time to compile"
    for ways in _attempts(search, stocks, leader, fitting):
        clock.is_whole = len(ways.all) > 2
        if not clock.is_whole:
            break
        search.progress.stage("compiling the finalists")
        failure = _compile_and_repeat(search, ways.all, clock)
        if failure is None:
            _say_what_is_missing(stocks, ways, clock, why)
            stock = _best(search, ways.recipes, clock, "which way of the recipes")
            return stock, _best(search, ways.plans, clock, "which way of the plan")
        why = f"since compiling failed ({failure.reason})"
        # What took this long takes as long again, and what is compiled anew in each step is so with fewer.
        if isinstance(failure, EndlessError) or (failure.worker_lost and clock.is_limited):
            break
    if fitting:
        clock.leave_out(f"the finalists are compared in eager mode, {why}")
    return left_in_eager(search, stocks[0], leader, clock)


def left_in_eager(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime) -> tuple[Finalist, Finalist]:
    """The two with nothing compiled, as their trials ran."""
    clock.is_whole = False
    return _in_eager(stock), _in_eager(plan_as_tried(search, leader.record))


def _compile_and_repeat(search: Search, ways: Sequence[Finalist], clock: FinalTime) -> TrialError | None:
    """The first rounds, in which models are compiled: that says nothing of what rounds take."""
    before = clock.spent()
    failure = repeat(search, ways, CHOICE_ROUNDS, clock)
    rounds = 0.0 if failure else seconds_of_rounds(outcomes_of(ways), CHOICE_ROUNDS)
    clock.set_aside(max(0.0, clock.spent() - before - rounds))
    return failure


def _others(search: Search, best: Finalist) -> list[Finalist]:
    """The next recipe of the trials in eager mode, which may be the fastest once it is compiled."""
    most = COULD_LEAD * best.record.outcome.median_ms
    return [
        Finalist(record, search.recipes[str(record.outcome.recipe)], [])
        for record in search.best_stocks(NUM_STOCK)
        if record.number != best.record.number and record.outcome.median_ms <= most
    ]


def _num_fitting(search: Search, clock: FinalTime, wanted: int) -> int:
    """How many models there is time to compile."""
    if not clock.is_limited:
        return wanted
    return min(wanted, int((clock.left() + clock.overtime) / max(seconds_to_compile(search), 1e-3)))


def _attempts(search: Search, stocks: Sequence[Finalist], leader: Finalist, fitting: int) -> list[Ways]:
    """What to measure, and what after that failed: each time with one model less compiled, in the end with none."""
    compiled = [Finalist(stock.record, stock.candidate, []) for stock in stocks]
    plan = plan_in_parts(search, leader.record)
    eager, eager_plan = _in_eager(stocks[0]), _in_eager(leader)
    attempts = [
        Ways((eager,), (eager_plan,)),
        Ways((eager, compiled[0]), (eager_plan,)),
        Ways((eager, compiled[0]), (eager_plan, plan)),
        Ways((eager, *compiled), (eager_plan, plan)),
    ]
    return attempts[fitting::-1]


def _in_eager(finalist: Finalist) -> Finalist:
    return Finalist(finalist.record, finalist.candidate.in_eager(), [])


def _say_what_is_missing(stocks: Sequence[Finalist], ways: Ways, clock: FinalTime, why: str) -> None:
    """What was measured in eager mode alone."""
    compiled = {way.candidate.name for way in ways.recipes if not way.candidate.eager}
    missing = [stock.candidate.name for stock in stocks if stock.candidate.name not in compiled]
    missing += ["the plan"] if len(ways.plans) == 1 else []
    if missing:
        clock.leave_out(f"measured in eager mode alone, {why}: {', '.join(missing)}")


def _best(search: Search, ways: Sequence[Finalist], clock: FinalTime, which: str) -> Finalist:
    """Of those that keep the memory limit, if any does: compiled, a model can take far more than in its trial."""
    ways = [way for way in ways if fits(search, way)] or ways[:1]
    if search.options.objective == "memory":
        return dataclasses.replace(min(ways, key=lambda way: way.memory or 0), times=[])
    return fastest(search, ways, clock, which)

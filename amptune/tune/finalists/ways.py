"""Compile mode: the ways of the finalists, each candidate in the faster one.

Compiled whole a plan can be slower than with its blocks compiled alone, as its trial had them, and the other way round.
Where compiling takes a minute, trials cannot wait for it and run in eager mode. Nor is it sure to pay: ResNet-50 took
27 ms a step compiled whole under autocast in FP16, which Python needed to launch its kernels, and 23 in eager mode in
channels_last (H200, 128 images, torch 2.11). So there the recipe is measured as its users compile it and as it is, and
so is the plan; without one two or three recipes are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amptune.tune.finalists.finalist import EndlessError, Finalist, compiled_plan, plan_as, recipe_as
from amptune.tune.finalists.finaltime import (
    CHOICE_ROUNDS,
    MAX_ROUNDS,
    NUM_STOCK,
    FinalTime,
    compiling_whole,
    seconds_to_compile,
)
from amptune.tune.finalists.judging import faster_way, first_rounds
from amptune.tune.finalists.way import Way
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


def faster_ways(
    search: Search, stocks: Sequence[Finalist], leader: Finalist, clock: FinalTime
) -> tuple[list[Finalist], Finalist]:
    """What may be the best stock recipe, and the plan, each in the way that it is judged in."""
    if search.parts.in_eager:
        return _compiled_or_eager(search, stocks, leader, clock)
    return [*stocks], _whole_or_parts(search, stocks[0], leader, clock)


def left_in_eager(search: Search, stocks: Sequence[Finalist], leader: Finalist) -> tuple[list[Finalist], Finalist]:
    """Recipes and plan with nothing compiled, as their trials ran."""
    records = {stock.record.number: stock.record for stock in stocks}
    recipes = [recipe_as(search, record, Way.EAGER) for record in records.values()]
    return recipes, plan_as(search, leader.record, Way.EAGER)


def _whole_or_parts(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime) -> Finalist:
    """The leader with the whole model compiled in place of its parts, where that is faster.

    Where memory is to be small, it stays as it was measured in its trial: whole it can take far more. So it does where
    it then takes more than it may.
    """
    if not (leader.way is Way.PARTS and stock.way is Way.WHOLE and search.options.objective == "time"):
        return leader
    whole = plan_as(search, leader.record, Way.WHOLE)
    takes = clock.expected([stock, leader], 2 * CHOICE_ROUNDS + MAX_ROUNDS)
    if clock.is_limited and takes + compiling_whole(search, leader.record.outcome) > clock.left():
        clock.leave_out("no time to compile the plan's model whole: its parts are compiled, each by itself")
        return leader
    search.progress.stage("compiling the plan's model whole")
    ways = [leader.afresh, whole]
    if first_rounds(search, ways, clock):
        return leader
    kept = clock.expected([stock], MAX_ROUNDS) if clock.is_limited else 0.0
    return faster_way(search, ways, clock, "which way of the plan", kept)[0]


def fastest_recipe(search: Search, best: Sequence[Finalist], clock: FinalTime) -> Finalist | None:
    """The fastest of the stock recipes, compiled or as it is, where there is no plan; None where nothing is compiled.

    ``best``: those that are or may be the best in eager mode.
    """
    stocks = [best[0], *_others(search, best[0], NUM_STOCK + 1)]
    ways = _first_that_compiles(search, best, stocks, None, clock)
    return faster_way(search, ways.recipes, clock, "which way of the recipes")[0] if ways else None


def _compiled_or_eager(
    search: Search, best: Sequence[Finalist], leader: Finalist, clock: FinalTime
) -> tuple[list[Finalist], Finalist]:
    """The fastest way of the stock recipes, of which ``best`` are or may be the best in eager mode, and of the plan."""
    stocks = [best[0], *_others(search, best[0], NUM_STOCK)]
    ways = _first_that_compiles(search, best, stocks, leader, clock)
    if ways is None:
        return left_in_eager(search, best, leader)
    recipes = faster_way(search, ways.recipes, clock, "which way of the recipes")
    return recipes, faster_way(search, ways.plans, clock, "which way of the plan")[0]


def _first_that_compiles(
    search: Search,
    best: Sequence[Finalist],
    stocks: Sequence[Finalist],
    leader: Finalist | None,
    clock: FinalTime,
) -> Ways | None:
    """The ways after their first rounds; None where nothing can be compiled.

    Compiled are the first recipe, the plan, and other recipes, in this order, as far as there is time.
    """
    what, then = "finalists", "the finalists are compared in eager mode"
    if leader is None:
        what, then = "stock recipes", "the best stock recipe stands by its trial in eager mode"
    fitting = num_fitting(search, clock, len(stocks) + bool(leader))
    why = "for want of time to compile"
    if not fitting:
        clock.leave_out(f"no time to compile the {what}: {then}")
        return None
    for ways in _attempts(search, best, stocks, leader)[:fitting][::-1]:
        search.progress.stage(f"compiling the {what}")
        failure = first_rounds(search, ways.all, clock)
        if failure is None:
            _say_what_is_missing(stocks, ways, clock, why)
            return ways
        why = f"since compiling failed ({failure.reason})"
        # What took this long takes as long again, and what is compiled anew in each step is so with fewer.
        if isinstance(failure, EndlessError) or (failure.worker_lost and clock.is_limited):
            break
    clock.leave_out(f"{then}, {why}")
    return None


def _others(search: Search, best: Finalist, count: int) -> list[Finalist]:
    """The next of so many recipes by the trials in eager mode, which may be the fastest once they are compiled."""
    most = COULD_LEAD * best.record.outcome.ranked_ms
    return [
        recipe_as(search, record, Way.EAGER)
        for record in search.best_stocks(count)
        if record.number != best.record.number and record.outcome.ranked_ms <= most
    ]


def num_fitting(search: Search, clock: FinalTime, wanted: int) -> int:
    """How many models there is time to compile."""
    if not clock.is_limited:
        return wanted
    return min(wanted, int((clock.left() + clock.overtime) / max(seconds_to_compile(search), 1e-3)))


def _attempts(
    search: Search, best: Sequence[Finalist], stocks: Sequence[Finalist], leader: Finalist | None
) -> list[Ways]:
    """What to measure, each time with one model more compiled; after one that failed, the one before it."""
    compiled = [recipe_as(search, stock.record, Way.WHOLE) for stock in stocks]
    if leader is None:
        eager = [recipe_as(search, stock.record, Way.EAGER) for stock in best]
        return [Ways((*eager, *compiled[: count + 1]), ()) for count in range(len(compiled))]
    eager, eager_plan = left_in_eager(search, best, leader)
    plans = (eager_plan, compiled_plan(search, leader.record))
    return [
        Ways((*eager, compiled[0]), plans[:1]),
        Ways((*eager, compiled[0]), plans),
        Ways((*eager, *compiled), plans),
    ]


def _say_what_is_missing(stocks: Sequence[Finalist], ways: Ways, clock: FinalTime, why: str) -> None:
    """Say what was measured in eager mode alone."""
    compiled = {way.candidate.name for way in ways.recipes if way.way is not Way.EAGER}
    missing = [stock.candidate.name for stock in stocks if stock.candidate.name not in compiled]
    missing += ["the plan"] if len(ways.plans) == 1 else []
    if missing:
        clock.leave_out(f"measured in eager mode alone, {why}: {', '.join(missing)}")

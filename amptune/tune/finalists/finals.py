"""The finalists: measured again in turns, so that the winner is decided by paired rounds and not by one lucky trial.

First the plans alone say which of them is judged, and two close stock recipes which of them it is judged beside: both,
where their rounds leave it open. Then these are measured in rounds that had no part in that choice, and the recipe
whole and in parts in rounds of their own; without a plan these are the only ones. The first are looked at twice at
most, the others once, each time with an equal part of the error, so that a plan whose steps take as long as the
recipe's is said to be faster in at most 5 % of searches, and the lower end of the speedup lies above the true one in at
most 5 %: whatever the noise is like, where it treats both alike and rounds are independent. Where time is so short that
only two to four rounds fit, noise has to be normal for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from amptune.tune.finalists.attribution import speedup_of_formats
from amptune.tune.finalists.finalist import Finalist, compiled_plan, outcomes_of, plan_as, recipe_as, repeat
from amptune.tune.finalists.finaltime import (
    CHOICE_ROUNDS,
    MAX_ROUNDS,
    NUM_FINALISTS,
    NUM_STOCK,
    FinalTime,
    seconds_of_rounds,
)
from amptune.tune.finalists.judging import (
    CHOICE_SHARE,
    LOOKS,
    WORTH,
    Judged,
    faster_of,
    fastest,
    go_on,
    judge,
    may_be_in_parts,
    may_have_rival,
    maybe_fastest,
    recipe_in_parts,
    rival_of,
    rounds_fitting,
)
from amptune.tune.finalists.speedup import ERROR
from amptune.tune.finalists.way import Way
from amptune.tune.finalists.ways import faster_ways, fastest_recipe, left_in_eager, num_fitting
from amptune.tune.running.timing import StepTime
from amptune.tune.search import Search
from amptune.tune.study.trial import Outcome, TrialRecord
from amptune.tune.workers.process import TrialError

CLOSE = 1.1
"""A plan whose trial took more than this many times the best one's step is no finalist."""
CLOSE_ON_CPU = 2.0
"""The same of stock recipes in eager mode on a CPU, which other programs take from a whole trial."""
CLOSE_COMPILED = 1.02
"""The same in compile mode, where a finalist costs the compiling of the whole model."""
MEMORY_NOISE = 0.99


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How the search ended.

    Attributes:
        kind: ``plan`` when a plan beats the best stock recipe beyond the noise in what is to be small, else ``stock``.
        stock: the best stock recipe's trial.
        stock_step: its step time in the repeats.
        record: the winning trial: a plan's, or the stock recipe's again.
        step: its step time in the repeats.
        speedup: over the best stock recipe, median of the paired rounds; 1.0 for the recipe itself.
        speedup_low: lower end of its one-sided 95 % interval.
        repeated: whether the repeats ran; without them the recorded trials decide.
        left_out: what there was no time for in the repeats, a sentence each.
        formats_only: speedup of the same plan without padding, layout and loss choices, compiled whole; None when not
            measured.
        stock_in_parts: speedup of the best stock recipe with these parts compiled; None when not measured.
        missed: the best plan as it was judged, where it is not faster beyond the noise; None where none was judged.
        way: how the winner's model was run, and has to be.
        stock_way: how the best stock recipe's was.
    """

    kind: Literal["plan", "stock"]
    stock: TrialRecord
    stock_step: StepTime
    record: TrialRecord
    step: StepTime
    speedup: float = 1.0
    speedup_low: float = 1.0
    formats_only: float | None = None
    repeated: bool = True
    left_out: tuple[str, ...] = ()
    stock_in_parts: float | None = None
    missed: Judged | None = None
    way: Way = Way.EAGER
    stock_way: Way = Way.EAGER


def decide(search: Search) -> Verdict:
    """Repeat the best plans and the best stock recipe in turns, and name the winner."""
    record = search.best_stock()
    plans = _finalists(search, record)
    is_in_parts = search.compiles_trials and may_be_in_parts(search, record)
    if not (plans or is_in_parts or search.parts.in_eager):
        return _by_its_trial(search, record, _first_way(search))
    clock = FinalTime(search)
    verdict = _decided(search, plans, clock)
    return dataclasses.replace(verdict, left_out=tuple(clock.left_out))


def _decided(search: Search, records: Sequence[TrialRecord], clock: FinalTime) -> Verdict:
    search.progress.stage("repeating the finalists")
    recipes, plans = _in_one_way(search, _near(search), records, clock)
    if not plans and search.parts.in_eager:
        return _of_recipes(search, recipes, clock)
    stocks = _stocks(search, recipes, plans, clock)
    in_parts = recipe_in_parts(search, stocks[0])
    if not (first := plans[0] if plans else in_parts):
        return _by_its_trial(search, stocks[0].record, stocks[0].way)
    leader = first
    if plans:
        stocks, leader = faster_ways(search, stocks, _leader(search, stocks, plans, clock), clock)
    has_rival = bool(plans) and any(may_have_rival(search, stock, leader) for stock in stocks)
    error = ERROR / (LOOKS + has_rival)  # the recipe in parts has a look of its own
    judged = judge(search, stocks, leader, clock, error)
    is_compiled = any(each.way is not Way.EAGER for each in (*stocks, leader))
    if isinstance(judged, TrialError) and search.parts.in_eager and is_compiled:
        clock.leave_out(f"the finalists are compared in eager mode, since compiled they failed ({judged.reason})")
        stocks, leader = left_in_eager(search, stocks, leader)
        judged = judge(search, stocks, leader, clock, error)
    if isinstance(judged, TrialError):
        clock.leave_out(f"the repeats failed ({judged.reason}): the best stock recipe stands, by its trial")
        return _by_its_trial(search, stocks[0].record, Way.PARTS if search.compiles_trials else Way.EAGER)
    has_won = _has_won(search, judged)
    rival = rival_of(search, judged, clock, error) if plans else None
    if rival and rival.gain.low > (judged.gain.ratio if has_won else WORTH):
        judged, has_won = rival, True
    stock, leader, gain = judged.stock, judged.winner, judged.gain
    if not has_won:
        verdict = _stock_verdict(search, stock.record, stock.step, stock.way)
        is_told = search.options.objective == "time" and not leader.record.outcome.recipe
        return dataclasses.replace(verdict, missed=judged if is_told else None)
    if leader.record.outcome.recipe:
        rival = judged
    return Verdict(
        "plan", stock.record, stock.step, leader.record, leader.step, gain.ratio, gain.low,
        speedup_of_formats(search, stock, leader, clock), stock_in_parts=rival.gain.ratio if rival else None,
        way=_shipped(search, leader.way), stock_way=_shipped(search, stock.way),
    )  # fmt: skip


def _of_recipes(search: Search, recipes: Sequence[Finalist], clock: FinalTime) -> Verdict:
    """Without a plan, where trials ran in eager mode: the best recipe, compiled or not."""
    best = fastest_recipe(search, recipes, clock)
    if best is None:
        return _by_its_trial(search, recipes[0].record, Way.EAGER)
    return _stock_verdict(search, best.record, best.step, best.way)


def _first_way(search: Search) -> Way:
    """In which way recipes are measured first: whole, as their users compile them, but in eager mode as trials are."""
    return Way.WHOLE if search.compiles_trials else Way.EAGER


def _shipped(search: Search, way: Way) -> Way:
    """How the user has to run what was measured in one way: whole where there are no parts to say."""
    return Way.WHOLE if way is Way.PARTS and not search.parts else way


def _has_won(search: Search, judged: Judged) -> bool:
    """Whether what was judged is better than the stock recipe in what is to be small."""
    if search.options.objective == "memory":
        return _saves_memory(judged.winner, judged.stock)
    return judged.gain.low > WORTH


def _in_one_way(
    search: Search, stocks: Sequence[TrialRecord], plans: Sequence[TrialRecord], clock: FinalTime
) -> tuple[list[Finalist], list[Finalist]]:
    """Stock recipes and plans as finalists in the way that there is time for; where time is limited, that is told.

    Whole models that take too long to compile have their blocks compiled alone.
    """

    def finalists(way: Way) -> tuple[list[Finalist], list[Finalist]]:
        recipes = [recipe_as(search, record, way) for record in stocks]
        if way is Way.WHOLE:
            return recipes, [compiled_plan(search, record) for record in plans]
        return recipes, [plan_as(search, record, way) for record in plans]

    recipes, leading = finalists(_first_way(search))
    if not clock.is_limited:
        return recipes, leading
    pair = [recipes[0], *leading[:1]]
    seconds = clock.expected(pair, MAX_ROUNDS)
    if search.compiles_trials and seconds > clock.allowed + clock.overtime:
        clock.leave_out(
            f"the finalists are compiled by their blocks, as in the trials: whole they would take about {seconds:.0f} s"
        )
        recipes, leading = finalists(Way.PARTS)
        pair = [recipes[0], *leading[:1]]
    if search.parts.in_eager:
        pair += [recipe_as(search, stocks[0], Way.WHOLE)] * num_fitting(search, clock, NUM_STOCK + 1)
    most = max(clock.allowed, clock.patience(pair, MAX_ROUNDS))
    about = f"{clock.expected(pair, MAX_ROUNDS):.0f} s"
    search.progress.line(f"the final repeats take about {about} or a little more, {most:.0f} s at most")
    return recipes, leading


def _near(search: Search) -> list[TrialRecord]:
    """The best stock recipe, and another that may be as fast."""
    records = search.best_stocks(NUM_STOCK)
    best = records[0].outcome
    near = [record for record in records[1:] if _is_near(search, record.outcome, best)]
    return [records[0], *near]


def _stocks(search: Search, near: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> list[Finalist]:
    """The stock recipes that the plan is judged beside.

    Of two with trials near each other the faster one in rounds of their own, or both, where these leave it open: the
    other's trial may have had the better moment, and a plan would gain by that.
    """
    if len(near) == 1 or search.options.objective != "time":
        return [near[0]]
    if not _has_time_for(near, plans, clock):
        return _stocks_by_trials(near, plans, clock)
    if repeat(search, near, CHOICE_ROUNDS, clock):
        return _stocks_by_trials(near[:1], plans, clock)
    found = faster_of(near)
    if found.record.outcome.ranked_ms > CLOSE * near[0].record.outcome.ranked_ms:
        # Slow moments can hit so few rounds: what its trial does not show takes more of them.
        go_on(search, near, MAX_ROUNDS, clock)
    return maybe_fastest(near)


def _stocks_by_trials(near: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> list[Finalist]:
    """The same where there is no time for rounds that choose: both, if their trials are close to each other.

    Where there is hardly time at all, the one that the clock had less for: one that was compared with a trial in a fast
    moment may look faster than another that was only timed.
    """
    first = near[0]
    if clock.is_compiled:  # one more is one more model to compile
        if len(near) > 1:
            named = " and ".join(stock.candidate.name for stock in near)
            clock.leave_out(f"which of {named} is faster is not known: their trials came in moments of different speed")
        return [first]
    best = first.record.outcome
    close = [each for each in near if each.record.outcome.ranked_ms <= CLOSE * best.ranked_ms]
    if clock.is_limited and not rounds_fitting([*close, *plans[:1]], clock):
        return [min(near, key=lambda stock: stock.record.outcome.measured_ms)]
    return close


def _is_near(search: Search, outcome: Outcome, best: Outcome) -> bool:
    """Whether a recipe may be faster than the one with the best trial.

    In compile mode it takes the compiling of one more model to know: there where the quartiles of their steps overlap.
    """
    if search.compiles_trials:
        return outcome.overlaps(best)
    is_timed_apart = outcome.paired is None and best.paired is None
    close = CLOSE_ON_CPU if is_timed_apart and search.options.device.startswith("cpu") else CLOSE
    return outcome.ranked_ms <= close * best.ranked_ms


def _has_time_for(near: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> bool:
    """Whether rounds of recipes leave the time that judging a plan takes."""
    takes = clock.expected(near, CHOICE_ROUNDS)
    if not clock.is_compiled:
        return takes <= clock.left() / CHOICE_SHARE
    return takes + clock.expected(plans[:1], MAX_ROUNDS) <= clock.left()


def _leader(search: Search, stocks: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> Finalist:
    """The plan that is judged: the fastest in rounds of the plans alone, or in its trial, where there is no time.

    A few rounds in slow moments make a leader of any of them, so those that may be the fastest go on.
    """
    first = plans[0]
    if len(plans) == 1:
        return first
    if clock.is_compiled and not clock.is_limited and not search.parts:
        if repeat(search, [first], 1, clock):  # which tells what compiling one model whole takes
            return first
        others = clock.longest * len(plans)  # the stock recipe is one of them
    else:
        others = clock.expected([stocks[0], *plans], 0)
    rounds = seconds_of_rounds(outcomes_of(plans), CHOICE_ROUNDS) + seconds_of_rounds(
        outcomes_of([*stocks, first]), MAX_ROUNDS
    )
    first.times.clear()
    if others + rounds > clock.left():
        if clock.is_limited:
            clock.leave_out(
                f"no time to repeat plans beside the one whose trial was the fastest: {len(plans) - 1} near it"
            )
        return first
    if repeat(search, plans, CHOICE_ROUNDS, clock):
        return first
    return fastest(search, plans, clock, "which plan")[0]


def _finalists(search: Search, stock: TrialRecord) -> list[TrialRecord]:
    """The best plans, without those that their trials show to be slower: each has to be compiled in compile mode.

    So too beside a recipe in parts, which is what its trial has compiled.
    """
    plans = search.best_plans(1 if search.options.objective == "memory" else NUM_FINALISTS)
    close = CLOSE_COMPILED if search.compiles_trials else CLOSE
    rivals = [*plans[:1], *([stock] if search.compiles_trials and may_be_in_parts(search, stock) else [])]
    best = min((record.outcome.ranked_ms for record in rivals), default=math.inf)
    return [record for record in plans if record.outcome.ranked_ms <= close * best]


def _saves_memory(plan: Finalist, stock: Finalist) -> bool:
    """Whether a plan takes noticeably less memory than a recipe: an allocator rounds by less than a percent."""
    mine, theirs = plan.memory, stock.memory
    return mine is not None and theirs is not None and mine < MEMORY_NOISE * theirs


def _by_its_trial(search: Search, stock: TrialRecord, way: Way) -> Verdict:
    """That the stock recipe stands, where there are no repeats of it."""
    return dataclasses.replace(_stock_verdict(search, stock, _recorded(stock), way), repeated=False)


def _stock_verdict(search: Search, stock: TrialRecord, step: StepTime, way: Way) -> Verdict:
    """That it stands; compiled by its blocks, where it was measured so: so it has to ship."""
    way = _shipped(search, way)
    return Verdict("stock", stock, step, stock, step, way=way, stock_way=way)


def _recorded(record: TrialRecord) -> StepTime:
    step = record.outcome.step_ms or {}
    return StepTime(step["median"], step["low"], step["high"], (step["median"],) * int(step["repeats"]))

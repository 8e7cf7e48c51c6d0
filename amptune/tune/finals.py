"""The finalists: measured again in turns, so that the winner is decided by paired rounds and not by one lucky trial.

First the plans alone say which of them is judged, and two close stock recipes which of them it is judged beside. Then
these two are measured in rounds that had no part in that choice, and the recipe whole and in parts in rounds of their
own; without a plan these are the only ones. The first are looked at twice at most, the others once, each time with an
equal part of the error, so that a plan whose steps take as long as the
recipe's is said to be faster in at most 5 % of searches, and the lower end of the speedup lies above the true one in at
most 5 %: whatever the noise is like, where it treats both alike and rounds are independent. Where time is so short that
only two to four rounds fit, noise has to be normal for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from amptune.tune.attribution import speedup_of_formats
from amptune.tune.finalist import Finalist, fits, outcomes_of, repeat
from amptune.tune.finaltime import (
    CHOICE_ROUNDS,
    MAX_ROUNDS,
    NUM_FINALISTS,
    NUM_STOCK,
    FinalTime,
    compiling_whole,
    seconds_of_rounds,
)
from amptune.tune.judging import (
    CHOICE_SHARE,
    WORTH,
    Judged,
    faster_of,
    fastest,
    go_on,
    judge,
    may_be_in_parts,
    plan_as_tried,
    recipe_in_parts,
    rival_of,
)
from amptune.tune.process import TrialError
from amptune.tune.recipes import plan_candidate
from amptune.tune.search import Search
from amptune.tune.speedup import ERROR
from amptune.tune.study import Outcome, TrialRecord
from amptune.tune.timing import StepTime
from amptune.tune.ways import faster_ways, left_in_eager

CLOSE = 1.1
"""A plan whose trial took more than this many times the best one's step is no finalist."""
CLOSE_ON_CPU = 2.0
"""The same of stock recipes in eager mode on a CPU, which other programs take from a whole trial."""
CLOSE_COMPILED = 1.02
"""The same in compile mode, where a finalist costs the compiling of the whole model."""
LOOKS = 2
"""Rounds are looked at when the first are there, and when all are; where parts can be compiled, the recipe in parts has
a look of its own. Each may err with a part of ``ERROR``."""
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
        in_parts: whether the winner has parts of the model compiled, each by itself.
        in_eager: whether it is left in eager mode, though compile mode is asked for.
        stock_in_eager: whether the best stock recipe was.
        stock_in_parts: speedup of the best stock recipe with these parts compiled; None when not measured.
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
    in_parts: bool = False
    stock_in_parts: float | None = None
    in_eager: bool = False
    stock_in_eager: bool = False


def decide(search: Search) -> Verdict:
    """Repeat the best plans and the best stock recipe in turns, and name the winner."""
    record = search.best_stock()
    plans = [plan_as_tried(search, found) for found in _finalists(search, record)]
    if not plans and not (search.compiles_trials and may_be_in_parts(search, record)):
        verdict = _stock_verdict(record, _recorded(record), repeated=False)
        return dataclasses.replace(verdict, in_eager=search.parts.in_eager, stock_in_eager=search.parts.in_eager)
    clock = FinalTime(search)
    verdict = _decided(search, plans, clock)
    return dataclasses.replace(verdict, left_out=tuple(clock.left_out))


def _decided(search: Search, plans: Sequence[Finalist], clock: FinalTime) -> Verdict:
    search.progress.stage("repeating the finalists")
    recipes = _near(search, clock)
    _announce(search, [recipes[0], *plans[:1]], clock)
    stock = _stock(search, recipes, plans, clock)
    in_parts = recipe_in_parts(search, stock) if clock.is_whole else None  # else the recipe itself is so compiled
    if not (first := plans[0] if plans else in_parts):
        return _by_its_trial(search, stock, clock)
    error = ERROR / (LOOKS + bool(plans and in_parts))
    leader = _leader(search, stock, plans, clock) if plans else first
    if search.parts.in_eager:
        stock, leader = faster_ways(search, stock, leader, clock)
    elif plans:
        leader = _faster_way(search, stock, leader, clock)
    judged = judge(search, stock, leader, clock, error)
    if isinstance(judged, TrialError) and search.parts.in_eager and clock.is_whole:
        clock.leave_out(f"the finalists are compared in eager mode, since compiled they failed ({judged.reason})")
        stock, leader = left_in_eager(search, stock, leader, clock)
        judged = judge(search, stock, leader, clock, error)
    if isinstance(judged, TrialError):
        clock.leave_out(f"the repeats failed ({judged.reason}): the best stock recipe stands, by its trial")
        return _by_its_trial(search, stock, clock)
    has_won = _has_won(search, judged)
    rival = rival_of(search, judged, in_parts, clock, error) if plans else None
    if rival and rival.gain.low > (judged.gain.ratio if has_won else WORTH):
        judged, has_won = rival, True
    if not has_won:
        # Compiled by its blocks, as a plan in parts is: so it has to ship.
        in_eager = judged.stock.candidate.eager
        return dataclasses.replace(
            _stock_verdict(judged.stock.record, judged.stock.step), in_parts=_is_in_parts(search, clock),
            in_eager=in_eager, stock_in_eager=in_eager,
        )  # fmt: skip
    if judged.winner.record.outcome.recipe:
        rival = judged
    stock, leader, gain = judged.stock, judged.winner, judged.gain
    return Verdict(
        "plan", stock.record, stock.step, leader.record, leader.step, gain.ratio, gain.low,
        speedup_of_formats(search, stock, leader, clock), in_parts=leader.candidate.in_parts,
        stock_in_parts=rival.gain.ratio if rival else None,
        in_eager=leader.candidate.eager, stock_in_eager=stock.candidate.eager,
    )  # fmt: skip


def _by_its_trial(search: Search, stock: Finalist, clock: FinalTime) -> Verdict:
    """That the stock recipe stands, where there are no repeats of it."""
    in_eager = search.parts.in_eager
    return dataclasses.replace(
        _stock_verdict(stock.record, _recorded(stock.record), repeated=False), in_parts=_is_in_parts(search, clock),
        in_eager=in_eager, stock_in_eager=in_eager,
    )  # fmt: skip


def _has_won(search: Search, judged: Judged) -> bool:
    """Whether what was judged is better than the stock recipe in what is to be small."""
    if search.options.objective == "memory":
        return _saves_memory(judged.winner, judged.stock)
    return judged.gain.low > WORTH


def _announce(search: Search, pair: Sequence[Finalist], clock: FinalTime) -> None:
    """Where time is limited, say what the repeats take, and compile blocks alone where whole models take too long."""
    if not clock.is_limited:
        return
    if clock.is_whole and (seconds := clock.expected(pair, MAX_ROUNDS)) > clock.allowed + clock.overtime:
        clock.is_whole = False
        clock.leave_out(
            f"the finalists are compiled by their blocks, as in the trials: whole they would take about {seconds:.0f} s"
        )
    most = max(clock.allowed, clock.patience(pair, MAX_ROUNDS))
    about = f"{clock.expected(pair, MAX_ROUNDS):.0f} s"
    search.progress.line(f"the final repeats take about {about} or a little more, {most:.0f} s at most")


def _near(search: Search, clock: FinalTime) -> list[Finalist]:
    """The best stock recipe, and another that may be as fast."""
    records = search.best_stocks(NUM_STOCK)
    best = records[0].outcome
    near = [record for record in records[1:] if _is_near(search, record.outcome, best)]
    return [Finalist(record, search.recipes[str(record.outcome.recipe)], []) for record in (records[0], *near)]


def _stock(search: Search, near: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> Finalist:
    """The stock recipe that the plan is judged beside.

    Of two with trials near each other the faster one in rounds of their own: the other's trial may have had the better
    moment, and a plan would gain by that. Where there is no time for rounds, the one that the clock had less for: one
    that was compared with a trial in a fast moment may look faster than another that was only timed.
    """
    first, *others = near
    if not others or search.options.objective != "time":
        return first
    if not _has_time_for(near, plans, clock) or repeat(search, near, CHOICE_ROUNDS, clock):
        if not clock.is_compiled:
            return min(near, key=lambda stock: stock.record.outcome.measured_ms)
        named = " and ".join(stock.candidate.name for stock in near)
        clock.leave_out(f"which of {named} is faster is not known: their trials came in moments of different speed")
        return first
    found = faster_of(near)
    if found.record.outcome.median_ms > CLOSE * first.record.outcome.median_ms:
        # Slow moments can hit so few rounds: what its trial does not show takes more of them.
        go_on(search, near, MAX_ROUNDS, clock)
        found = faster_of(near)
    return dataclasses.replace(found, times=[])


def _is_near(search: Search, outcome: Outcome, best: Outcome) -> bool:
    """Whether a recipe may be faster than the one with the best trial.

    In compile mode it takes the compiling of one more model to know: there where the quartiles of their steps overlap.
    """
    if search.compiles_trials:
        return outcome.overlaps(best)
    is_timed_apart = outcome.paired_ms is None and best.paired_ms is None
    close = CLOSE_ON_CPU if is_timed_apart and search.options.device.startswith("cpu") else CLOSE
    return outcome.median_ms <= close * best.median_ms


def _has_time_for(near: Sequence[Finalist], plans: Sequence[Finalist], clock: FinalTime) -> bool:
    """Whether rounds of recipes leave the time that judging a plan takes."""
    takes = clock.expected(near, CHOICE_ROUNDS)
    if not clock.is_compiled:
        return takes <= clock.left() / CHOICE_SHARE
    return takes + clock.expected(plans[:1], MAX_ROUNDS) <= clock.left()


def _leader(search: Search, stock: Finalist, plans: Sequence[Finalist], clock: FinalTime) -> Finalist:
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
        others = clock.expected([stock, *plans], 0)
    rounds = seconds_of_rounds(outcomes_of(plans), CHOICE_ROUNDS) + seconds_of_rounds(
        outcomes_of([stock, first]), MAX_ROUNDS
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
    return fastest(search, plans, clock, "which plan")


def _is_in_parts(search: Search, clock: FinalTime) -> bool:
    """Whether the stock recipe was measured in parts, for want of time to compile its model whole."""
    return bool(search.parts) and not search.parts.in_eager and not clock.is_whole


def _faster_way(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime) -> Finalist:
    """The leader with the whole model compiled in place of its parts, where that is faster.

    Where memory is to be small, it stays as it was measured in its trial: whole it can take far more. So it does where
    it then takes more than it may.
    """
    if not (search.parts and clock.is_whole and search.options.objective == "time"):
        return leader
    whole = Finalist(leader.record, plan_candidate(search.plan_of(leader.record)), [])
    takes = clock.expected([stock, leader], 2 * CHOICE_ROUNDS + MAX_ROUNDS)
    if clock.is_limited and takes + compiling_whole(search, leader.record.outcome) > clock.left():
        clock.leave_out("no time to compile the plan's model whole: its parts are compiled, each by itself")
        return leader
    search.progress.stage("compiling the plan's model whole")
    ways = [dataclasses.replace(leader, times=[]), whole]
    if repeat(search, ways, CHOICE_ROUNDS, clock) or not fits(search, whole):
        return leader
    return dataclasses.replace(faster_of(ways), times=[])


def _finalists(search: Search, stock: TrialRecord) -> list[TrialRecord]:
    """The best plans, without those that their trials show to be slower: each has to be compiled in compile mode.

    So too beside a recipe in parts, which is what its trial has compiled.
    """
    plans = search.best_plans(1 if search.options.objective == "memory" else NUM_FINALISTS)
    close = CLOSE_COMPILED if search.compiles_trials else CLOSE
    rivals = [*plans[:1], *([stock] if search.compiles_trials and may_be_in_parts(search, stock) else [])]
    best = min((record.outcome.median_ms for record in rivals), default=math.inf)
    return [record for record in plans if record.outcome.median_ms <= close * best]


def _saves_memory(plan: Finalist, stock: Finalist) -> bool:
    """Whether a plan takes noticeably less memory than a recipe: an allocator rounds by less than a percent."""
    mine, theirs = plan.memory, stock.memory
    return mine is not None and theirs is not None and mine < MEMORY_NOISE * theirs


def _stock_verdict(stock: TrialRecord, step: StepTime, repeated: bool = True) -> Verdict:
    return Verdict("stock", stock, step, stock, step, repeated=repeated)


def _recorded(record: TrialRecord) -> StepTime:
    step = record.outcome.step_ms or {}
    return StepTime(step["median"], step["low"], step["high"], (step["median"],) * int(step["repeats"]))

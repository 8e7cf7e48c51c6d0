"""The finalists: measured again in turns, so that the winner is decided by paired rounds and not by one lucky trial.

First the plans alone say which of them is judged, and two close stock recipes which of them it is judged beside. Then
these two are measured in rounds that had no part in that choice. They are looked at twice at most, and the recipe in
parts once beside them, each time with an equal part of the error, so that a plan whose steps take as long as the
recipe's is said to be faster in at most 5 % of searches, and the lower end of the speedup lies above the true one in at
most 5 %: whatever the noise is like, where it treats both alike and rounds are independent. Where time is so short that
only two to four rounds fit, noise has to be normal for that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from amptune.tune.attribution import VAGUE, recipe_in_parts, speedup_of_formats
from amptune.tune.finalist import Finalist, outcomes_of, repeat, width
from amptune.tune.finaltime import (
    CHOICE_ROUNDS,
    MAX_ROUNDS,
    NUM_FINALISTS,
    FinalTime,
    compiling_whole,
    seconds_of_rounds,
)
from amptune.tune.process import TrialError
from amptune.tune.recipes import plan_candidate
from amptune.tune.search import Search
from amptune.tune.speedup import ERROR, Speedup
from amptune.tune.study import TrialRecord
from amptune.tune.timing import StepTime

NUM_STOCK = 2
CLOSE = 1.1
"""A plan whose trial took more than this many times the best one's step is no finalist."""
CLOSE_COMPILED = 1.02
"""The same in compile mode, where a finalist costs the compiling of the whole model."""
NEAR_ROUNDS = 12
"""Further rounds of the plans that may be the fastest, where the first leave it open."""
CHOICE_SHARE = 3
"""One part in so many of the time left may go to these further rounds: judging the chosen plan takes the rest."""
CHOSEN = 0.03
"""Width of the interval of a plan's speedup over another up to which it does not matter which is chosen."""
LOOKS = 2
"""Rounds are looked at when the first are there, and when all are; where parts can be compiled, the recipe in parts has
a look of its own. Each may err with a part of ``ERROR``."""
MAX_PAIRED_ROUNDS = 40
"""Rounds of the leading plan and the best stock recipe, where the first rounds did not tell them apart."""
TOLD_APART = 0.01
"""Width of the interval of a speedup up to which more rounds would not tell who is faster."""
MEMORY_NOISE = 0.99
WORTH = 1.003
"""A plan has to be faster than the best stock recipe by this factor: clocks and temperature alone change as much."""


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


def decide(search: Search) -> Verdict:
    """Repeat the best plans and the best stock recipe in turns, and name the winner."""
    record = search.best_stock()
    plans = [_in_parts(search, found) for found in _finalists(search)]
    plans = [*_recipe_in_parts(search, record, plans), *plans]
    if not plans:
        return _stock_verdict(record, _recorded(record), repeated=False)
    clock = FinalTime(search)
    verdict = _decided(search, plans, clock)
    return dataclasses.replace(verdict, left_out=tuple(clock.left_out))


def _decided(search: Search, plans: Sequence[Finalist], clock: FinalTime) -> Verdict:
    search.progress.stage("repeating the finalists")
    stock = _stock(search, clock)
    record = stock.record
    _announce(search, [stock, plans[0]], clock)
    leader = _leader(search, stock, plans, clock)
    leader = _faster_way(search, stock, leader, clock)
    failure = _repeat_pair(search, [stock, leader], clock)
    if failure is not None and _may_do_in_blocks(search, failure, clock):
        clock.is_whole = False
        clock.leave_out(f"the finalists are compiled by their blocks, as in the trials: whole, {failure.reason}")
        leader = leader if leader.candidate.in_parts else _in_parts(search, leader.record)
        failure = _repeat_pair(search, [stock, leader], clock)
    if failure is not None:
        search.progress.line(f"the repeats failed ({failure.reason}): the best stock recipe stands")
        return _stock_verdict(record, _recorded(record), repeated=False)
    rival = None
    if search.options.objective == "memory":
        found = stock.speedup_of(leader)
        won = _saves_memory(leader.record, record)
    else:
        error = ERROR / (LOOKS + bool(search.parts))
        found = _judged(search, stock, leader, clock, error)
        won = found.low > WORTH
        rival = recipe_in_parts(search, stock, leader, clock)
        if rival is not None and (gain := rival[0].speedup_of(rival[1], error)).low > (found.ratio if won else WORTH):
            (stock, leader), found, won = rival, gain, True
    if not won:
        # Compiled by its blocks, as a plan in parts is: so it has to ship.
        return dataclasses.replace(_stock_verdict(record, stock.step), in_parts=_is_in_parts(search, clock))
    step = stock.step
    return Verdict(
        "plan", record, step, leader.record, leader.step, found.ratio, found.low,
        speedup_of_formats(search, stock, leader, clock), in_parts=leader.candidate.in_parts,
        stock_in_parts=rival[0].speedup_of(rival[1]).ratio if rival else None,
    )  # fmt: skip


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


def _repeat_pair(search: Search, pair: Sequence[Finalist], clock: FinalTime) -> TrialError | None:
    """The first rounds of the chosen plan and the best stock recipe."""
    fitting = int(clock.left() / seconds_of_rounds(outcomes_of(pair), 1))
    # Beside compiling two models rounds take no time.
    rounds = MAX_ROUNDS if clock.is_compiled else max(2, min(MAX_ROUNDS, fitting))
    return repeat(search, pair, rounds, clock)


def _may_do_in_blocks(search: Search, failure: TrialError, clock: FinalTime) -> bool:
    """Whether to compile blocks alone: whole models cannot be compiled or take far longer than was expected.

    Where they cannot be, the blocks have to ship so.
    """
    return clock.is_whole and bool(search.parts or (failure.worker_lost and clock.is_limited))


def _stock(search: Search, clock: FinalTime) -> Finalist:
    """The stock recipe that the plan is judged beside.

    Of two with trials near each other the faster one in rounds of their own: the other's trial may have had the better
    moment, and a plan would gain by that. Where there is no time for rounds, the one that the clock had less for: one
    that was compared with a trial in a fast moment may look faster than another that was only timed.
    """
    records = search.best_stocks(NUM_STOCK)
    near = [
        Finalist(record, search.recipes[str(record.outcome.recipe)], [])
        for record in records
        if record.outcome.median_ms <= CLOSE * records[0].outcome.median_ms
    ]
    first, *others = near
    takes = seconds_of_rounds(outcomes_of(near), CHOICE_ROUNDS)
    if not others or search.options.objective != "time" or clock.is_compiled:
        return first
    if takes > clock.left() / CHOICE_SHARE or repeat(search, near, CHOICE_ROUNDS, clock):
        return min(near, key=lambda stock: stock.record.outcome.measured_ms)
    fastest = max(near, key=lambda stock: first.speedup_of(stock).ratio)
    return dataclasses.replace(fastest, times=[])


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

    def fastest(among: Sequence[Finalist]) -> Finalist:
        return max(among, key=lambda plan: among[0].speedup_of(plan).ratio)

    leader = fastest(plans)
    near = [plan for plan in plans if plan is leader or leader.speedup_of(plan).high > 1]
    if any(width(leader.speedup_of(plan)) > CHOSEN for plan in near):
        search.progress.line(f"{CHOICE_ROUNDS} rounds leave open which plan is the fastest: more")
        _go_on(search, near, min(NEAR_ROUNDS, clock.rounds_left(len(near)) // CHOICE_SHARE), clock)
        leader = fastest(near)
    return dataclasses.replace(leader, times=[])


def _is_in_parts(search: Search, clock: FinalTime) -> bool:
    """Whether the stock recipe was measured in parts, for want of time to compile its model whole."""
    return bool(search.parts) and not clock.is_whole


def _in_parts(search: Search, record: TrialRecord) -> Finalist:
    """The plan of a trial, in parts where there are any."""
    return Finalist(record, plan_candidate(search.parts.of(search.plan_of(record))), [])


def _recipe_in_parts(search: Search, record: TrialRecord, plans: Sequence[Finalist]) -> list[Finalist]:
    """The best stock recipe with parts of the model compiled, where its trial was faster than any plan's: trials have
    compiled these parts. It takes no less memory than in its trial."""
    recipe = search.recipes[str(record.outcome.recipe)]
    is_wanted = search.parts and search.options.objective == "time"
    is_possible = is_wanted and recipe.float8 is None and recipe.params is None and not record.outcome.reason
    if not is_possible or any(plan.record.outcome.median_ms <= record.outcome.median_ms for plan in plans):
        return []
    return [Finalist(record, search.parts.of_recipe(recipe), [])]


def _faster_way(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime) -> Finalist:
    """The leader with the whole model compiled in place of its parts, where that is faster.

    Where memory is to be small, it stays as it was measured in its trial: whole it can take far more. So it does where
    it then takes more than it may.
    """
    is_wanted = search.parts and clock.is_whole and search.options.objective == "time"
    if not is_wanted or leader.record.outcome.recipe:
        return leader
    whole = Finalist(leader.record, plan_candidate(search.plan_of(leader.record)), [])
    takes = clock.expected([stock, leader], 2 * CHOICE_ROUNDS + MAX_ROUNDS)
    if clock.is_limited and takes + compiling_whole(search, leader.record.outcome) > clock.left():
        clock.leave_out("no time to compile the plan's model whole: its parts are compiled, each by itself")
        return leader
    search.progress.stage("compiling the plan's model whole")
    ways = [dataclasses.replace(leader, times=[]), whole]
    if repeat(search, ways, CHOICE_ROUNDS, clock) or not _fits(search, whole):
        return leader
    faster = max(ways, key=lambda way: ways[0].speedup_of(way).ratio)
    return dataclasses.replace(faster, times=[])


def _fits(search: Search, finalist: Finalist) -> bool:
    """Whether its repeats kept the memory limit, if there is one."""
    most = search.options.max_memory
    return most is None or all((step.memory or 0) <= most for step in finalist.times)


def _judged(search: Search, stock: Finalist, leader: Finalist, clock: FinalTime, error: float) -> Speedup:
    """The leader's gain in rounds that did not choose it, with more of them where the first leave it open."""
    if len(stock.times) < MAX_ROUNDS:  # there is no time for a second look
        return stock.speedup_of(leader)
    found = stock.speedup_of(leader, error)
    if not _is_open(found):
        return found
    search.progress.line(f"{len(stock.times)} rounds beside {stock.candidate.name} leave it open what is gained: more")
    _go_on(search, [stock, leader], min(MAX_PAIRED_ROUNDS - len(stock.times), clock.rounds_left(2)), clock)
    return stock.speedup_of(leader, error)


def _is_open(so_far: Speedup) -> bool:
    """Whether more rounds should tell more: who is faster, where there is a difference, or by how much."""
    wide = width(so_far)
    return wide > VAGUE or (so_far.low <= WORTH <= so_far.high and wide > TOLD_APART)


def _go_on(search: Search, finalists: Sequence[Finalist], rounds: int, clock: FinalTime) -> None:
    """Add rounds; where they fail, those so far stand."""
    if rounds > 0 and (failure := repeat(search, finalists, rounds, clock)):
        search.progress.line(f"they failed ({failure.reason}): the rounds so far stand")


def _finalists(search: Search) -> list[TrialRecord]:
    """The best plans, without those that their trials show to be slower: each has to be compiled in compile mode."""
    plans = search.best_plans(1 if search.options.objective == "memory" else NUM_FINALISTS)
    close = CLOSE_COMPILED if search.options.compile_with else CLOSE
    return [record for record in plans if record.outcome.median_ms <= close * plans[0].outcome.median_ms]


def _saves_memory(plan: TrialRecord, stock: TrialRecord) -> bool:
    """Whether a plan takes noticeably less memory than a recipe: an allocator rounds by less than a percent."""
    mine, theirs = plan.outcome.memory_bytes, stock.outcome.memory_bytes
    return mine is not None and theirs is not None and mine < MEMORY_NOISE * theirs


def _stock_verdict(stock: TrialRecord, step: StepTime, repeated: bool = True) -> Verdict:
    return Verdict("stock", stock, step, stock, step, repeated=repeated)


def _recorded(record: TrialRecord) -> StepTime:
    step = record.outcome.step_ms or {}
    return StepTime(step["median"], step["low"], step["high"], (step["median"],) * int(step["repeats"]))

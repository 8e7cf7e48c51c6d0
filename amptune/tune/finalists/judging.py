"""Rounds of what may win and the best stock recipe in turns, what they say of its gain, and rounds that choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amptune.tune.finalists.attribution import VAGUE
from amptune.tune.finalists.finalist import Finalist, fits, outcomes_of, plan_as, recipe_as, repeat, width
from amptune.tune.finalists.finaltime import CHOICE_ROUNDS, MAX_ROUNDS, FinalTime, seconds_of_rounds
from amptune.tune.finalists.speedup import ERROR, Speedup
from amptune.tune.finalists.way import Way
from amptune.tune.search import Search
from amptune.tune.study.trial import TrialRecord
from amptune.tune.workers.process import TrialError

LOOKS = 2
"""Rounds are looked at when the first are there, and when all are. Each look may err with a part of ``ERROR``."""
LEAST_ROUNDS = 2
"""Rounds that judge a plan where time is short."""
MAX_PAIRED_ROUNDS = 40
"""Rounds of the leading plan and the best stock recipe, where the first rounds did not tell them apart."""
NEAR_ROUNDS = 12
"""Further rounds of those that may be the fastest, where the first leave it open."""
CHOICE_SHARE = 3
"""One part in so many of the time left may go to these further rounds: judging the chosen one takes the rest."""
CHOSEN = 0.03
"""Width of the interval of one's speedup over another up to which it does not matter which is chosen."""
TOLD_APART = 0.01
"""Width of the interval of a speedup up to which more rounds would not tell who is faster."""
WORTH = 1.003
"""A plan has to be faster than the best stock recipe by this factor: clocks and temperature alone change as much."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was measured beside stock recipes, with what it gains over the best of them."""

    stock: Finalist
    winner: Finalist
    gain: Speedup


def judge(
    search: Search, stocks: Sequence[Finalist], leader: Finalist, clock: FinalTime, error: float
) -> Judged | TrialError:
    """The leader's gain in rounds that did not choose it, with more of them where the first leave it open.

    ``stocks``: what may be the best stock recipe. ``error``: of each look at the rounds; where there is no time for a
    second one, the first has the part of both.
    """
    stocks, leader = [stock.afresh for stock in stocks], leader.afresh
    failure = _repeat_first(search, [*stocks, leader], clock)
    if failure is not None and _may_do_in_blocks(search, failure, stocks[0], clock):
        if leader.record.outcome.recipe:  # blocks alone are what its trial has measured
            return failure
        stocks = [recipe_as(search, stock.record, Way.PARTS) for stock in stocks]
        leader = plan_as(search, leader.record, Way.PARTS)
        whole, failure = failure, _repeat_first(search, [*stocks, leader], clock)
        if failure is None:
            clock.leave_out(f"the finalists are compiled by their blocks, as in the trials: whole, {whole.reason}")
        elif failure.reason != whole.reason:
            failure = TrialError(f"whole, {whole.reason}; by their blocks, {failure.reason}")
    if failure is not None:
        return failure
    rounds = len(leader.times)
    if rounds != MAX_ROUNDS or not clock.rounds_left(1 + len(stocks)):  # there is no time for a second look
        return _judged(stocks, leader, min(ERROR, LOOKS * error))
    if search.options.objective == "time" and _is_open(_judged(stocks, leader, error).gain):
        names = " and ".join(dict.fromkeys(stock.candidate.name for stock in stocks))
        search.progress.line(f"{rounds} rounds beside {names} leave it open what is gained: more")
        stocks = maybe_fastest(stocks)
        most = min(MAX_PAIRED_ROUNDS - rounds, clock.rounds_left(1 + len(stocks)))
        go_on(search, [*stocks, leader], most, clock)
    return _judged(stocks, leader, error)


def _judged(stocks: Sequence[Finalist], leader: Finalist, error: float) -> Judged:
    """The gain over the best of these recipes, each end as for the one that leaves the least.

    Which one that is, rounds may get wrong, and the gain over a slower one would be told.
    """
    gains = [stock.speedup_of(leader, error) for stock in stocks]
    ratio = min(gain.ratio for gain in gains)
    best = next(stock for stock, gain in zip(stocks, gains, strict=True) if gain.ratio == ratio)
    low, high = min(gain.low for gain in gains), min(gain.high for gain in gains)
    return Judged(best, leader, Speedup(ratio, low, high))


def _is_open(so_far: Speedup) -> bool:
    """Whether more rounds should tell more: who is faster, where there is a difference, or by how much."""
    wide = width(so_far)
    return wide > VAGUE or (so_far.low <= WORTH <= so_far.high and wide > TOLD_APART)


def faster_of(finalists: Sequence[Finalist]) -> Finalist:
    """The fastest by the rounds so far."""
    return max(finalists, key=lambda finalist: finalists[0].speedup_of(finalist).ratio)


def first_rounds(search: Search, finalists: Sequence[Finalist], clock: FinalTime) -> TrialError | None:
    """The rounds that a choice begins with, in which models may be compiled: that says nothing of what rounds take."""
    before = clock.spent()
    failure = repeat(search, finalists, CHOICE_ROUNDS, clock)
    if any(each.way is not Way.EAGER for each in finalists):
        rounds = 0.0 if failure else seconds_of_rounds(outcomes_of(finalists), CHOICE_ROUNDS)
        clock.set_aside(max(0.0, clock.spent() - before - rounds))
    return failure


def faster_way(
    search: Search, ways: Sequence[Finalist], clock: FinalTime, which: str, kept: float = 0.0
) -> list[Finalist]:
    """The way to take, by its first rounds and more of them: the best in what is to be small, and others that may be.

    Of those that keep the memory limit, if any does: compiled, a model can take far more than in its trial.
    """
    ways = [way for way in ways if fits(search, way)] or ways[:1]
    if search.options.objective == "memory":
        return [min(ways, key=lambda way: way.memory or 0)]
    return fastest(search, ways, clock, which, kept)


def fastest(
    search: Search, finalists: Sequence[Finalist], clock: FinalTime, which: str, kept: float = 0.0
) -> list[Finalist]:
    """The fastest, and others that may be it, by the first rounds, or by more of those that may be it.

    A few rounds in slow moments make a leader of any of them. ``kept``: seconds for what comes after.
    """
    leader, *_ = near = maybe_fastest(finalists)
    if any(width(leader.speedup_of(each)) > CHOSEN for each in near):
        search.progress.line(f"{len(leader.times)} rounds leave open {which} is the fastest: more")
        go_on(search, near, min(NEAR_ROUNDS, clock.rounds_left(len(near), kept) // CHOICE_SHARE), clock)
    return maybe_fastest(near)


def maybe_fastest(finalists: Sequence[Finalist]) -> list[Finalist]:
    """The fastest by the rounds so far, and those that may be faster by these rounds."""
    leader = faster_of(finalists)
    others = [each for each in finalists if each is not leader]
    return [leader, *(each for each in others if leader.speedup_of(each).high > 1)]


def go_on(search: Search, finalists: Sequence[Finalist], rounds: int, clock: FinalTime) -> None:
    """Add rounds; where they fail, those so far stand."""
    if rounds > 0 and (failure := repeat(search, finalists, rounds, clock)):
        search.progress.line(f"they failed ({failure.reason}): the rounds so far stand")


def _repeat_first(search: Search, finalists: Sequence[Finalist], clock: FinalTime) -> TrialError | None:
    """The first rounds of the chosen plan and what may be the best stock recipe."""
    fitting = rounds_fitting(finalists, clock)
    # Beside compiling two models rounds take no time.
    is_compiled = clock.has_compiled or any(each.way is not Way.EAGER for each in finalists)
    rounds = MAX_ROUNDS if is_compiled else max(LEAST_ROUNDS, min(MAX_ROUNDS, fitting))
    failure = repeat(search, finalists, rounds, clock)
    if not failure and rounds < MAX_ROUNDS:  # they may have taken less than was expected
        go_on(search, finalists, min(MAX_PAIRED_ROUNDS - rounds, clock.rounds_left(len(finalists))), clock)
    return failure


def rounds_fitting(finalists: Sequence[Finalist], clock: FinalTime) -> int:
    """Rounds of these that there is time for, where nothing is compiled."""
    return int(clock.left() / seconds_of_rounds(outcomes_of(finalists), 1))


def _may_do_in_blocks(search: Search, failure: TrialError, stock: Finalist, clock: FinalTime) -> bool:
    """Whether to compile blocks alone: whole models cannot be compiled or take far longer than was expected.

    Where they cannot be, the blocks have to ship so.
    """
    return (
        stock.way is Way.WHOLE
        and not search.parts.in_eager
        and bool(search.parts or (failure.worker_lost and clock.is_limited))
    )


def may_be_in_parts(search: Search, record: TrialRecord) -> bool:
    """Whether a stock recipe in parts may be what wins: trials have compiled these parts, so it is what they measured.

    Not where memory is to be small: it takes no less than in its trial.
    """
    recipe = search.recipes[str(record.outcome.recipe)]
    is_wanted = search.parts and search.options.objective == "time" and record.outcome.valid
    return bool(is_wanted) and recipe.float8 is None and recipe.params is None


def recipe_in_parts(search: Search, stock: Finalist) -> Finalist | None:
    """The stock recipe with the parts compiled that a plan has; None where it cannot win, or is compiled so itself."""
    if stock.way is not Way.WHOLE or not may_be_in_parts(search, stock.record):
        return None
    return Finalist(stock.record, search.parts.of_recipe(stock.candidate), Way.PARTS)


def may_have_rival(search: Search, stock: Finalist, plan: Finalist) -> bool:
    """Whether the recipe in parts is measured too: beside a plan in parts, and itself compiled whole."""
    return plan.way is Way.PARTS and recipe_in_parts(search, stock) is not None


def rival_of(search: Search, judged: Judged, clock: FinalTime, error: float) -> Judged | None:
    """The stock recipe with the parts compiled that the plan has, beside it compiled whole: what a user can have
    without the plan. None where there is no such recipe, where the plan is compiled as the recipe is, or no time."""
    in_parts = recipe_in_parts(search, judged.stock)
    if in_parts is None or not may_have_rival(search, judged.stock, judged.winner):
        return None
    if clock.is_limited and clock.expected([in_parts], 2 * MAX_ROUNDS) > clock.left() + clock.overtime:
        clock.leave_out("no time to measure what compiling in parts gives by itself")
        return None
    search.progress.stage("repeating the stock recipe in parts")
    pair = [judged.stock.afresh, in_parts]
    if repeat(search, pair, MAX_ROUNDS, clock):
        return None
    return Judged(pair[0], pair[1], pair[0].speedup_of(pair[1], error))

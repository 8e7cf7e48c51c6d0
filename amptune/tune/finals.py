"""The finalists: measured again in turns, so that the winner is decided by paired rounds and not by one lucky trial."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.tune.process import TrialError
from amptune.tune.recipes import Candidate, plan_candidate
from amptune.tune.search import Search
from amptune.tune.speedup import Speedup
from amptune.tune.study import TrialRecord
from amptune.tune.timing import StepTime, pooled

NUM_FINALISTS = 3
MAX_ROUNDS = 6
MAX_PAIRED_ROUNDS = 40
"""Rounds of the leading plan and the best stock recipe, where the first rounds did not tell them apart."""
TOLD_APART = 0.01
"""Width of the interval of a speedup from which on more rounds would tell more."""
TIME_SHARE = 0.2
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
        formats_only: speedup of the same plan without padding, layout and loss choices; None when not measured.
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


def decide(search: Search) -> Verdict:
    """Repeat the best plans and the best stock recipe in turns, and name the winner."""
    stock = search.best_stock()
    finalists = search.best_plans(NUM_FINALISTS)
    if not finalists:
        return _stock_verdict(stock, _recorded(stock), repeated=False)
    candidates = [search.recipes[str(stock.outcome.recipe)]]
    candidates += [plan_candidate(search.plan_of(record)) for record in finalists]
    candidates.append(plan_candidate(_formats_only(search.plan_of(finalists[0]))))
    began = time.monotonic()
    allowed = TIME_SHARE * search.progress.seconds()
    rounds = _repeat(search, candidates, _num_rounds(allowed, [stock, *finalists, finalists[0]]))
    if rounds is None:
        return _stock_verdict(stock, _recorded(stock), repeated=False)
    stock_rounds, plan_rounds, bare_rounds = rounds[0], rounds[1:-1], rounds[-1]
    bare = Speedup.of(stock_rounds, bare_rounds).ratio
    if search.options.objective == "memory":
        index, speedup = 0, Speedup.of(stock_rounds, plan_rounds[0])
        won = _saves_memory(finalists[0], stock)
    else:
        index = max(range(len(finalists)), key=lambda i: Speedup.of(stock_rounds, plan_rounds[i]).ratio)
        if more := _num_more(stock_rounds, plan_rounds[index], allowed, time.monotonic() - began, len(candidates)):
            _go_on(search, (candidates[0], stock_rounds), (candidates[1 + index], plan_rounds[index]), more)
        speedup = Speedup.of(stock_rounds, plan_rounds[index])
        won = speedup.low > WORTH
    if not won:
        return _stock_verdict(stock, pooled(stock_rounds))
    winner, step = finalists[index], pooled(plan_rounds[index])
    formats_only = bare if index == 0 else None
    return Verdict("plan", stock, pooled(stock_rounds), winner, step, speedup.ratio, speedup.low, formats_only)


def _saves_memory(plan: TrialRecord, stock: TrialRecord) -> bool:
    """Whether a plan takes noticeably less memory than a recipe: an allocator rounds by less than a percent."""
    mine, theirs = plan.outcome.memory_bytes, stock.outcome.memory_bytes
    return mine is not None and theirs is not None and mine < MEMORY_NOISE * theirs


def _num_rounds(allowed: float, records: Sequence[TrialRecord]) -> int:
    """Rounds that fit in the seconds that repeats may take, at least two."""
    per_round = sum(8 * record.outcome.measured_ms + 500 for record in records) / 1e3
    return max(2, min(MAX_ROUNDS, int(allowed / per_round)))


def _num_more(
    stock: Sequence[StepTime], plan: Sequence[StepTime], allowed: float, spent: float, num_candidates: int
) -> int:
    """Rounds of these two alone that fit in the seconds left; none where the rounds so far have told them apart, or
    agree that there is next to no difference.

    ``spent``: seconds of the rounds so far, of ``num_candidates`` each.
    """
    so_far = Speedup.of(stock, plan)
    if so_far.low > WORTH or so_far.high < WORTH or so_far.high - so_far.low < TOLD_APART:
        return 0
    per_round = 2 * spent / (len(stock) * num_candidates)
    fitting = int(max(0.0, allowed - spent) / per_round) if per_round > 0 else MAX_PAIRED_ROUNDS
    return min(MAX_PAIRED_ROUNDS - len(stock), fitting)


Finalist = tuple[Candidate, list[StepTime]]


def _go_on(search: Search, stock: Finalist, plan: Finalist, rounds: int) -> None:
    """Add more rounds of these two; where they fail, the rounds so far stand."""
    search.progress.line(f"the first rounds do not tell the best plan from {stock[0].name}: {rounds} more of these two")
    try:
        found: list[list[StepTime]] = search.worker.request(
            "repeat", [stock[0], plan[0]], rounds, True, timeout=search.options.trial_timeout
        )
    except TrialError as failure:
        search.progress.line(f"they failed ({failure.reason}): the first rounds stand")
        return
    stock[1].extend(found[0])
    plan[1].extend(found[1])


def _repeat(search: Search, candidates: list[Candidate], rounds: int) -> list[list[StepTime]] | None:
    search.progress.stage("repeating the finalists")
    try:
        found: list[list[StepTime]] = search.worker.request(
            "repeat", candidates, rounds, timeout=search.options.trial_timeout
        )
    except TrialError as failure:
        search.progress.line(f"the repeats failed ({failure.reason}): the best stock recipe stands")
        return None
    return found


def _formats_only(plan: Plan) -> Plan:
    """The plan's formats with the loss in FP32, no padding and the user's memory format."""
    sites = {name: dataclasses.replace(site, pad=0, pad_in=0, strided=False) for name, site in plan.sites.items()}
    return dataclasses.replace(plan, sites=sites, channels_last=False, loss_format=Format.FP32, loss_compile=False)


def _stock_verdict(stock: TrialRecord, step: StepTime, repeated: bool = True) -> Verdict:
    return Verdict("stock", stock, step, stock, step, repeated=repeated)


def _recorded(record: TrialRecord) -> StepTime:
    step = record.outcome.step_ms or {}
    return StepTime(step["median"], step["low"], step["high"], (step["median"],) * int(step["repeats"]))

"""What a plan's gain owes to what is no format: its formats without padding, layout and loss choices."""

from __future__ import annotations

import dataclasses

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.tune.finalists.finalist import Finalist, repeat, width
from amptune.tune.finalists.finaltime import MAX_ROUNDS, FinalTime
from amptune.tune.finalists.way import Way
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.search import Search

FORMATS_ROUNDS = 5
FORMATS_MORE_ROUNDS = 20
"""Rounds of the formats alone on a calm host, and on one where the first rounds were not enough."""
VAGUE = 0.1
"""Width of the interval up to which a speedup is worth telling."""


def speedup_of_formats(search: Search, stock: Finalist, winner: Finalist, clock: FinalTime) -> float | None:
    """Speedup of the winner without padding, layout and loss choices; None where it could not be measured well, or
    where compiling one more whole model takes longer than repeats may."""
    if winner.record.outcome.recipe:
        return 1.0
    whole = winner.candidate.plan
    assert whole is not None
    bare = _bare(stock, winner, _formats_only(whole))
    if bare.candidate.key == winner.candidate.key:
        return stock.speedup_of(winner).ratio
    if bare.way is not Way.EAGER and clock.longest > clock.left():
        if clock.is_limited:
            clock.leave_out("no time to measure what the plan's formats alone give")
        return None
    search.progress.stage("repeating the formats alone")
    pair = [stock.afresh, bare]
    more = min(FORMATS_MORE_ROUNDS, clock.rounds_left(len(pair))) if len(stock.times) > MAX_ROUNDS else 0
    rounds = max(FORMATS_ROUNDS, more)
    if repeat(search, pair, rounds, clock):
        return None
    found = pair[0].speedup_of(pair[1])
    return found.ratio if width(found) <= VAGUE else None


def _bare(stock: Finalist, winner: Finalist, formats: Plan) -> Finalist:
    """The formats in eager mode, if the winner is, else compiled as the recipe is."""
    candidate = plan_candidate(formats)
    if winner.way is Way.EAGER:
        return Finalist(winner.record, candidate.in_eager(), Way.EAGER)
    return Finalist(winner.record, candidate, Way.PARTS if stock.way is Way.PARTS else Way.WHOLE)


def _formats_only(plan: Plan) -> Plan:
    """The plan's formats with an eager loss in FP32, no padding and the user's memory format."""
    sites = {name: dataclasses.replace(site, pad=0, pad_in=0, strided=False) for name, site in plan.sites.items()}
    return dataclasses.replace(
        plan, sites=sites, channels_last=False, loss_format=Format.FP32, loss_compile=False, compile_parts=()
    )

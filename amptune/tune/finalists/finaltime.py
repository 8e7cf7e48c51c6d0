"""Seconds for the final repeats: what ``--timeout`` keeps for them, and what they have taken so far.

In compile mode the finalists are compiled whole, which no trial does, so what that takes is expected by the trials'
blocks. Where it does not fit into what was kept, the finalists run as their trials did, blocks compiled alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from amptune.tune.choices.foundspace import role_of
from amptune.tune.finalists.way import Way
from amptune.tune.study.timelimit import OVERTIME
from amptune.tune.study.trial import Outcome

if TYPE_CHECKING:
    from amptune.tune.finalists.finalist import Finalist
    from amptune.tune.search import Search

NUM_FINALISTS = 3
NUM_STOCK = 2
"""Plans, and stock recipes, that may be repeated."""
CHOICE_ROUNDS = 3
"""Rounds of the plans alone, which choose the one that is judged."""
MAX_ROUNDS = 6
"""First rounds of the chosen plan and the best stock recipe: as many as half of the error needs, see ``finals``."""
TIME_SHARE = 0.2
"""Share of the time so far that repeats may take; in eager mode also of ``--timeout``."""
TIME_SHARE_COMPILED = 0.4
"""Share of ``--timeout`` that is kept at most in compile mode."""
WHOLE = 0.5
"""Compiling a model whole takes this many times what its blocks alone take, for each site that shares one code. On an
H200 GPT-2 (9 such sites), BERT (7) and Llama 0.6 B (6) took 17, 37 and 28 s, and their blocks 4, 7 and 12."""
LAYER = 1.0
"""Seconds to compile a layer that multiplies, with what is around it, forward and backward: 0.3 to 0.9 of GPT-2, BERT,
Llama and ResNet-50 on an H200 (49, 74, 57 and 54 layers; 17 to 27, 37, 28 and 50 s)."""
PATIENCE = 2.0
"""What takes this many times as long as expected is ended, where time is limited."""
STARTING = 10.0
"""Seconds that any request may take beyond that."""


class FinalTime:
    """Seconds that the repeats of one search may take, and what a block of one candidate has taken.

    Attributes:
        is_compiled: whether finalists are compiled, as their trials were.
        is_limited: whether there is a ``--timeout``.
        allowed: seconds for all repeats; one request may take longer.
        overtime: seconds beyond them for which models are still compiled whole.
        left_out: what there was no time for, a sentence each.
        has_compiled: whether a request so far has compiled a model.
    """

    def __init__(self, search: Search) -> None:
        self.is_compiled = search.compiles_trials
        self.is_limited = search.options.timeout is not None
        self.allowed = TIME_SHARE * search.progress.seconds()
        if self.is_limited:
            left = search.limit.longest - search.limit.spent()
            self.allowed = max(seconds_kept(search), min(left, max(self.allowed, seconds_needed(search))))
        self.overtime = OVERTIME * (search.options.timeout or 0.0)
        self.left_out: list[str] = []
        self.blocks = 0
        self.has_compiled = False
        self.longest = 0.0
        """Seconds of one candidate in the request that took longest for each: what compiling one and its rounds take"""
        self._aside = 0.0
        self._search = search
        self._began = time.monotonic()

    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    def left(self) -> float:
        """Seconds that repeats may still take."""
        return max(0.0, self.allowed - self.spent() + (0.0 if self.is_limited else self._aside))

    def rounds_left(self, num_candidates: int, kept: float = 0.0) -> int:
        """Rounds of so many candidates that still fit, with so many seconds kept for what comes after them."""
        per_block = max((self.spent() - self._aside) / max(1, self.blocks), 1e-6)
        return max(0, int((self.left() - kept) / (per_block * num_candidates)))

    def expected(self, finalists: Sequence[Finalist], rounds: int) -> float:
        """What compiling these candidates and their rounds will take."""
        outcomes = [finalist.record.outcome for finalist in finalists]
        if self._search.parts.in_eager:
            num_compiled = self._num_compiled(finalists)
            return num_compiled * seconds_to_compile(self._search) + seconds_of_rounds(outcomes, rounds)
        whole = [finalist.way is Way.WHOLE for finalist in finalists]
        return compiling(self._search, outcomes, whole) + seconds_of_rounds(outcomes, rounds)

    def _num_compiled(self, finalists: Sequence[Finalist]) -> int:
        """How many of them are compiled for the first time where trials ran in eager mode."""
        return sum(finalist.way is not Way.EAGER for finalist in finalists) if self._search.parts.in_eager else 0

    def set_aside(self, seconds: float) -> None:
        """Have rounds last as long as without these seconds of compiling. They take nothing from the repeats either,
        unless time is limited."""
        self._aside += seconds

    def note(self, seconds: float, finalists: Sequence[Finalist], rounds: int) -> None:
        """Count a request."""
        self.blocks += rounds * len(finalists)
        self.longest = max(self.longest, seconds / len(finalists))
        self.has_compiled |= any(finalist.way is not Way.EAGER for finalist in finalists)

    def patience(self, finalists: Sequence[Finalist], rounds: int) -> float:
        """Seconds after which a request for them is given up."""
        most = self._search.options.trial_timeout * max(1, self._num_compiled(finalists))
        return min(most, PATIENCE * self.expected(finalists, rounds) + STARTING) if self.is_limited else most

    def leave_out(self, text: str) -> None:
        """Say what there is no time for."""
        self.left_out.append(text)
        self._search.progress.line(text)


def seconds_kept(search: Search) -> float:
    """Seconds of ``--timeout`` that no trial takes: what the repeats need, a share of it at most."""
    share = TIME_SHARE if search.options.compile_with is None else TIME_SHARE_COMPILED
    return min(share * (search.options.timeout or 0.0), seconds_needed(search))


def seconds_needed(search: Search) -> float:
    """Seconds of the repeats of the best plan and the best recipe, by what trials took so far; 0 before the first."""
    measured = [record.outcome for record in search.records() if record.outcome.step_ms]
    recipes = [outcome for outcome in measured if outcome.recipe]
    if not recipes:
        return 0.0
    best = min(recipes, key=lambda outcome: outcome.ranked_ms)
    plan = min((outcome for outcome in measured if not outcome.recipe), key=lambda o: o.ranked_ms, default=best)
    rounds = seconds_of_rounds([plan, best], MAX_ROUNDS)
    if not search.compiles_trials:
        compiled = 2 * seconds_to_compile(search) if search.parts.in_eager else 0.0
        return seconds_of_rounds(NUM_FINALISTS * [plan], CHOICE_ROUNDS) + rounds + compiled
    return compiling(search, [plan, best], [not search.parts, True]) + rounds


def compiling(search: Search, outcomes: Sequence[Outcome], whole: Sequence[bool]) -> float:
    """Seconds that compiling these candidates is expected to take, by what compiling blocks took in trials.

    ``whole``: for each, whether its model is compiled whole.
    """
    measured = [record.outcome for record in search.records()]
    return sum(
        compiling_whole(search, outcome) if is_whole else _compiling_blocks(outcome, measured)
        for outcome, is_whole in zip(outcomes, whole, strict=True)
    )


def compiling_whole(search: Search, outcome: Outcome) -> float:
    """Seconds that compiling the whole model for a candidate is expected to take."""
    measured = [record.outcome for record in search.records()]
    return _compiling_blocks(outcome, measured) * max(1.0, WHOLE * _sharing(search))


def seconds_to_compile(search: Search) -> float:
    """Seconds that compiling one finalist takes, where no trial has compiled anything."""
    return LAYER * search.parts.num_layers


def seconds_of_rounds(outcomes: Sequence[Outcome], rounds: int) -> float:
    """Seconds of rounds without compiling, by what the trials took."""
    return rounds * sum(8 * outcome.measured_ms + 500 for outcome in outcomes) / 1e3


def _compiling_blocks(outcome: Outcome, measured: Sequence[Outcome]) -> float:
    """What its trial took, or those of its kind where that found most in the compiler's cache."""
    alike = [o.compile_seconds for o in measured if o.compile_seconds and bool(o.recipe) == bool(outcome.recipe)]
    return max(outcome.compile_seconds or 0.0, statistics.median(alike) if alike else 0.0)


def _sharing(search: Search) -> float:
    """How many sites share one code: those of repeated blocks."""
    sites = [site for group in search.space.groups for site in group.sites]
    return len(sites) / max(1, len({role_of(site) for site in sites}))

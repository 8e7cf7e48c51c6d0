"""Which stock recipes wait until the first plans are measured, and what is said of those that never were.

Under torch.compile an FP8 recipe takes as long to measure as three plans, and on small models FP8 is slow. Where the
measured costs say so clearly, it waits. Where they do not, it comes before any plan: what it shows of FP8 counts for
the plans, and a plan is to be compared with the best recipe.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.tune.adapt import Knowledge

if TYPE_CHECKING:
    from amptune.tune.search import Search

SLOWER = 1.15
"""A recipe that is predicted to take this many times the best step so far is not the best one. The costs are those of
FP8 in plans; BERT's recipes, compiled on an H200, were predicted at 1.31 and 1.58 times the best and took 1.28 and
1.31."""
FIRST_PLANS = 3
"""So many plans come before the recipes that wait."""


def recipes_in_front(search: Search) -> list[str]:
    """Recipes that are measured before anything is known: all but those in FP8."""
    return [name for name, candidate in search.recipes.items() if not candidate.float8]


def recipes_due(search: Search, known: Knowledge | None) -> list[str]:
    """Recipes to measure before the next plan."""
    left = search.unmeasured()
    trials_left = search.options.budget - len(search.records())
    may_wait = search.space.offered() and len(search.plans()) < FIRST_PLANS and trials_left > len(left)
    if known is None or not may_wait or search.options.objective != "time":
        return left
    best_ms = min((r.outcome.median_ms for r in search.records() if r.outcome.valid), default=math.inf)
    return [name for name in left if not known.predicted(search.stock_point(name)) > SLOWER * best_ms]


def unmeasured_note(search: Search) -> str | None:
    """A line about stock recipes that were not measured: what was gained may not be one over them."""
    left = search.unmeasured()
    if not left:
        return None
    known, spent = search.knowledge(), "time" if search.stopped == "timeout" else "budget"
    named = [f"{name}{_predicted(search, known, name)}" for name in left]
    recipes = "the stock recipe" if len(left) == 1 else "the stock recipes"
    return f"not measured before the {spent} was used up: {recipes} {' and '.join(named)}"


def _predicted(search: Search, known: Knowledge | None, name: str) -> str:
    ms = known.predicted(search.stock_point(name)) if known else math.inf
    return f" ({ms:.2f} ms a step by the measured costs)" if math.isfinite(ms) else ""

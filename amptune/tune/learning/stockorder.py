"""Which stock recipes wait until the first plans are measured, and what is said of those that never were.

Under torch.compile each recipe is compiled anew, one in FP8 for as long as three plans, and on small models FP8 is
slow. A recipe waits that the measured costs, or the gradients of FP8 so far, clearly say is not the best. Others come
before any plan: what they show of their formats counts for the plans, and a plan is to be compared with the best
recipe. In compile mode, and where time is limited, the one that the costs say is the fastest in 16 bits or more is the
first; where time is limited, recipes take a part of it: those in FP32 alone can take all of it with a large model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.tune.learning.adapt import Knowledge
from amptune.tune.learning.base import point_recipes
from amptune.tune.study.timelimit import expected_seconds, seconds_of

if TYPE_CHECKING:
    from amptune.tune.search import Search

SLOWER = 1.15
"""A recipe that is predicted to take this many times the best step so far is not the best one. The costs are those of
FP8 in plans; BERT's recipes, compiled on an H200, were predicted at 1.31 and 1.58 times the best and took 1.28 and
1.31."""
FIRST_PLANS = 3
"""So many plans come before the recipes that wait."""
LIKELY = 0.3
"""A recipe in FP8 that trains with less of a chance, by the gradients of others in FP8, waits."""
TIME_SHARE = 0.5
"""Share of the trials' time that recipes may take. On an H200 under torch.compile five of them took 85 s with
Llama 0.6 B, and those of ResNet-50 compile for 37 s or more each."""


def recipes_in_front(search: Search) -> list[str]:
    """Recipes that are measured before anything is known: those not in FP8; where recipes are spared the fastest of
    them, by costs alone."""
    plain = _plain(search, list(search.recipes))
    return plain[:1] if _is_sparing(search) else plain


def recipes_due(search: Search, known: Knowledge | None) -> list[str]:
    """Recipes to measure before the next plan."""
    left = search.unmeasured()
    trials_left = search.options.budget - len(search.records())
    if not search.space.offered() or trials_left <= len(left) or search.options.objective != "time":
        return left
    plain = _plain(search, left)
    is_compared = any(r.outcome.valid for r in search.records() if r.outcome.recipe)
    telling = [name for name in point_recipes(search.costs) if name in left]
    if known is None and is_compared and telling:
        return telling[:1]  # predictions need one
    if known is None or not is_compared:
        return plain[:1] or left  # one that trains is needed, to be compared with
    if len(search.plans()) < FIRST_PLANS:
        left = [name for name in left if not _waits(search, known, name)]
    left = [name for name in left if _has_time(search, name)]
    return sorted(left, key=lambda name: known.predicted(search.stock_point(name)))[:1]


def _is_sparing(search: Search) -> bool:
    """Whether recipes may wait that are not in FP8 too: where each takes long, or time is limited."""
    is_dear = search.compiles_trials or search.options.timeout is not None
    return is_dear and search.options.objective == "time" and bool(search.space.offered())


def _plain(search: Search, names: list[str]) -> list[str]:
    """Those not in FP8; where recipes are spared the fastest first, by the sum of the measured costs."""
    plain = [name for name in names if not search.recipes[name].float8]
    if not _is_sparing(search):
        return plain
    return sorted(plain, key=lambda name: search.costs.predicted(search.stock_point(name)))


def _waits(search: Search, known: Knowledge, name: str) -> bool:
    """Whether a recipe is clearly slower than the best so far, or in FP8 and unlikely to train by what FP8 showed."""
    point = search.stock_point(name)
    best_ms = min((r.outcome.ranked_ms for r in search.records() if r.outcome.valid), default=math.inf)
    if known.predicted(point) > SLOWER * best_ms:
        return True
    return bool(search.recipes[name].float8) and knows_fp8(search) and known.chance(point) < LIKELY


def knows_fp8(search: Search) -> bool:
    """Whether the gradients of a recipe in FP8 were looked at."""
    return any(
        r.outcome.noise for r in search.records() if r.outcome.recipe and search.recipes[r.outcome.recipe].float8
    )


def _has_time(search: Search, name: str) -> bool:
    """Whether recipes keep to their share of the time with this one, where it is limited."""
    if search.options.timeout is None:
        return True
    measured = [record.outcome for record in search.records()]
    spent = sum(seconds_of(outcome) for outcome in measured if outcome.recipe)
    return spent + expected_seconds(search.recipes[name], measured) <= TIME_SHARE * search.limit.for_trials


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

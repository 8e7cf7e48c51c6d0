"""Which plan a search tries next, and whether another one is worth its trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from amptune.tune.allocation.front import front_points, with_cheapest_loss
from amptune.tune.learning.adapt import Knowledge, adds_up, ended_in_an_error, repaired, side_choices, unproven_sides
from amptune.tune.learning.promises import least_gain, share_kept
from amptune.tune.learning.stockorder import knows_fp8, recipes_due

if TYPE_CHECKING:
    from amptune.tune.search import Search
    from amptune.tune.study.trial import TrialRecord

FRONT_SHARE = 0.4
"""Share of the trials left after the stock recipes that the front may take."""
NOTHING = 5e-5
"""Share of a step that is told as nothing: it would read 0.00 %."""
FRONT_SLOW = 1.01
"""The front goes on while a plan of it is predicted to take at most this many times the best valid one."""
FRONT_IN_VAIN = 4
"""So many plans of the front that all do not train say that something else is to be tried in between."""
FRONT_FIRST, FRONT_WORTH = 2, 1 / 3
"""After so many plans of the front, one has to promise this share of what the search promises. That is the largest of
thousands of candidates, and so promises too much."""
FRONT_LIKELY = 0.3
"""Plans of the front that train with less of a chance wait for the others."""
TOO_SLOW = 1.05
"""A plan that is predicted to take this many times the best valid one is passed over, or taken back towards it."""
AS_STOCK = 1.02
"""Plans whose best takes more than this many times a stock recipe in 16 bits: its formats are tried as a plan."""
MIN_SEARCHED = 8
"""Trials after the front before the search may stop for want of a gain."""
IN_VAIN = 4
"""So many search trials in a row must have brought no better plan, and so many more are taken together when it is asked
whether they could: the costs that the model is surest of may be wrong."""


class Steering:
    """Lines up the trials of one search after its stock recipes."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._fronts: dict[object, list[dict[str, str]]] = {}
        self._found: tuple[int, tuple[dict[str, str] | None, float]] | None = None

    def enqueue_next(self) -> None:
        """The front, with the stock recipes that are left, then the plans that are expected to save most; repairs where
        they pay.

        Where nothing new is expected to save anything, the sampler is asked for a point.
        """
        known = self.search.knowledge()
        is_done = self._enqueue_recipes(recipes_due(self.search, known))
        if is_done or known is None or self._without_sides() or self._imitation():
            return
        if self._front(known) or self._repair(known):
            return
        seed, best = self.search.options.seed + len(self.search.study.records()), self.search.best_plans(1)
        if not best:
            point, _ = known.promising(seed, self.search.space.point({}), self.search.is_tried)
        else:
            point, _ = self._promising(known, best[0])
        if point is not None:
            self.search.study.enqueue(point, "search")
        else:  # what the sampler finds may be no new plan, which ends the search
            self.enqueue_unmeasured()

    def enqueue_unmeasured(self) -> bool:
        """The stock recipes that are left, before a search ends; whether there are any."""
        return self._enqueue_recipes(self.search.unmeasured())

    def without_hopeless(self, point: dict[str, str]) -> dict[str, str]:
        """A point of the sampler, with the incumbent's choices where it asks for what does not train or run, or for
        what is known to be far slower."""
        best, known = self.search.best_plans(1), self.search.knowledge()
        if known is None or not best:
            return point
        hopeless, safe = known.hopeless(), best[0].point
        point = point | {name: safe[name] for name, labels in hopeless.items() if point[name] in labels}
        return self._less_slow(known, point, best[0]) if self.search.options.objective == "time" else point

    def _less_slow(self, known: Knowledge, point: dict[str, str], best: TrialRecord) -> dict[str, str]:
        """The point with as many of the incumbent's choices as it takes not to be far slower; as it is, where that
        leaves nothing new."""
        nearer = point
        while known.predicted(nearer) > TOO_SLOW * best.outcome.ranked_ms:
            back = [nearer | {name: best.point[name]} for name in nearer if nearer[name] != best.point[name]]
            if not back:
                return point
            nearer = min(back, key=known.predicted)
        return point if self.search.is_tried(self.search.costs.made_legal(nearer)) else nearer

    def nothing_to_gain(self) -> str:
        """Why no further plan is worth its trial; empty when some may be."""
        best, known = self.search.best_plans(1), self.search.knowledge()
        if known is None or not best or len(self._searched()) < MIN_SEARCHED or self._front_point(known):
            return ""
        if best[0].number >= self._searched()[-IN_VAIN].number:
            return ""
        objective, outcome = self.search.options.objective, best[0].outcome
        size, unit = outcome.score(objective)[0], "ms a step" if objective == "time" else "bytes"
        noise = least_gain(known, outcome)
        kept = share_kept(self.search.plans(), noise, lambda outcome: outcome.score(objective)[0])
        gain = min(size, IN_VAIN * kept * self._promising(known, best[0])[1])  # nobody saves more than all of it
        if not math.isfinite(size) or gain >= noise:
            return ""
        saved = f"{gain:.3g} {unit} ({gain / size:.2%})" if gain >= NOTHING * size else "next to nothing"
        return f"the next {IN_VAIN} plans are expected to save {saved}, less than the noise of {noise:.3g} {unit}"

    def _searched(self) -> list[TrialRecord]:
        return [record for record in self.search.records() if record.outcome.kind == "search"]

    def _promising(self, known: Knowledge, best: TrialRecord) -> tuple[dict[str, str] | None, float]:
        """What the next trial may gain, worked out once for each state of the study."""
        count = len(self.search.study.records())
        if self._found is None or self._found[0] != count:
            seed = self.search.options.seed + count
            self._found = count, known.promising(seed, best.point, self.search.is_tried)
        return self._found[1]

    def _enqueue_recipes(self, names: Sequence[str]) -> bool:
        for name in names:
            self.search.enqueue_recipe(name)
        return bool(names)

    def _without_sides(self) -> bool:
        """A plan that ended in an error, with the best stock recipe's choices beside the formats, to tell whether the
        formats are to blame, or the loss, the memory format or TF32."""
        for record in filter(ended_in_an_error, self.search.plans()):
            if not unproven_sides(record, self.search.records()):
                continue
            sides = side_choices(self.search.best_stock().point)
            point = self.search.costs.made_legal(record.point | dict(sides))
            if not self.search.is_tried(point):
                self.search.study.enqueue(point, "search")
                return True
        return False

    def _imitation(self) -> bool:
        """The formats of the best stock recipe in 16 bits as a plan, where the plans so far are slower than it, whether
        they train or not.

        Then the measured costs are wrong somewhere, and what the recipe has is known to be fast: a plan starts from
        there, with the choices that autocast does not have.
        """
        plans = [record.outcome for record in self.search.plans()]
        times = [plan.ranked_ms for plan in plans if plan.step_ms] + [
            math.inf for plan in plans if plan.state == "slow"
        ]
        if self.search.options.objective != "time" or not times:
            return False
        stock = self.search.best_stock().outcome
        recipe = self.search.recipes.get(stock.recipe or "")
        if recipe is None or recipe.autocast is None or recipe.float8 or min(times) <= AS_STOCK * stock.ranked_ms:
            return False
        costs = self.search.costs
        point = costs.made_legal(with_cheapest_loss(costs, self.search.stock_point(recipe.name)))
        if self.search.is_tried(point):
            return False
        self.search.study.enqueue(point, "front")
        return True

    def _front(self, known: Knowledge) -> bool:
        point = self._front_point(known)
        if point is not None:
            self.search.study.enqueue(point, "front")
        return point is not None

    def _front_point(self, known: Knowledge) -> dict[str, str] | None:
        """The next plan of the front, within its share of the trials; what did not train is left out from then on."""
        done = sum(record.outcome.kind == "front" for record in self.search.records())
        share = math.ceil(FRONT_SHARE * (self.search.options.budget - len(self.search.recipes)))
        if not self.search.space.offered() or done >= share:
            return None
        banned = tuple(sorted((name, tuple(sorted(choices))) for name, choices in known.banned.items() if choices))
        best = self.search.best_plans(1)
        space = self.search.space
        on_gpu, on_host = known.predicted_by_part(best[0].point if best else space.uniform(space.offered()[0]))
        limits = knows_fp8(self.search)
        key = banned, on_host > on_gpu, limits, self.search.corrections
        if key not in self._fronts:
            costs = self.search.costs.with_launches() if on_host > on_gpu else self.search.costs
            self._fronts[key] = front_points(costs, self.search.options.objective, known.banned, knows_fp8=limits)
        # Plans of the front are much alike: when some of them do not train, the others tell little.
        if not best and done >= FRONT_IN_VAIN and len(self._searched()) < done:
            return None
        limit = FRONT_SLOW * best[0].outcome.ranked_ms if best and self.search.options.objective == "time" else math.inf
        new = [point for point in self._fronts[key] if not self.search.is_tried(point)]
        likely = [point for point in new if known.chance(point) >= FRONT_LIKELY]
        point = min(likely or new, key=self._rank(known), default=None)
        if point is None or known.predicted(point) > limit or self._promises_little(known, point, done):
            return None
        return point

    def _promises_little(self, known: Knowledge, point: dict[str, str], done: int) -> bool:
        """Whether a plan of the front, after its first ones, is expected to save far less than what may save most.

        The front is the best by the costs, and its plans may differ in next to nothing, while what the costs are
        unsure of has not been tried: a compiled trial takes up to ten seconds.
        """
        best = self.search.best_plans(1)
        if self.search.options.objective != "time" or not best or done < FRONT_FIRST:
            return False
        return known.gain(point, best[0].point) < FRONT_WORTH * self._promising(known, best[0])[1]

    def _rank(self, known: Knowledge) -> Callable[[dict[str, str]], tuple[float, ...]]:
        """First what is expected to save most over the best so far, by its chance to train; then the fastest.

        Among plans that the host takes as long for, the one of less work for the GPU: another host may be faster.
        """
        if self.search.options.objective != "time":
            return lambda point: (known.model.bytes(point),)
        best_ms = min(r.outcome.ranked_ms for r in (self.search.best_stock(), *self.search.best_plans(1)))

        def rank(point: dict[str, str]) -> tuple[float, ...]:
            on_gpu, on_host = known.predicted_by_part(point)
            step = max(on_gpu, on_host)
            return -known.chance(point) * max(0.0, best_ms - step), step, on_gpu

        return rank

    def _repair(self, known: Knowledge) -> bool:
        """A plan with wrong gradients, with the groups that they belong to in more bits, where that may be the best."""
        best = self.search.best_plans(1)
        limit = best[0].outcome.ranked_ms if best else math.inf
        wrong = [record for record in self.search.plans() if record.outcome.failing and not adds_up(record)]
        points = [repaired(self.search.space, record) for record in wrong]
        points = [point for point in points if not self.search.is_tried(point) and known.predicted(point) < limit]
        if points:
            self.search.study.enqueue(min(points, key=known.predicted), "search")
        return bool(points)

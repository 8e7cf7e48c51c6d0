"""Which plan a search tries next, and whether another one is worth its trial."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from amptune.tune.adapt import Knowledge, repaired
from amptune.tune.front import front_points

if TYPE_CHECKING:
    from amptune.tune.search import Search

FRONT_SHARE = 0.4
"""Share of the trials left after the stock recipes that the front may take."""
TOO_SLOW = 1.1
"""A plan of the front that is predicted to take this many times the best valid one is passed over."""
MIN_SEARCHED = 8
"""Trials after the front before the search may stop for want of a gain."""
CHECK_EVERY = 4
"""Search trials between two looks at what is left to gain."""


class Steering:
    """Lines up the trials of one search after its stock recipes."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self._fronts: dict[object, list[dict[str, str]]] = {}

    def enqueue_next(self) -> None:
        """The front, then in turns a plan for drawn costs and the sampler near the incumbent; repairs where they pay.

        Without an incumbent, or where neither has anything new, the sampler is asked for a whole point.
        """
        known = self.search.knowledge()
        if known is None or self._front(known) or self._repair(known):
            return
        seed, best = self.search.options.seed + len(self.search.study.records()), self.search.best_plans(1)
        if best and len(known.records) % 2:
            self.search.study.enqueue(known.region(seed, best[0].point), "search")
            return
        point = known.thompson(seed, self.search.is_tried)
        if point is None and best:
            point = known.neighbour(seed, best[0].point, self.search.is_tried)
        if point is not None:
            self.search.study.enqueue(point, "search")

    def without_hopeless(self, point: dict[str, str]) -> dict[str, str]:
        """A point of the sampler, with the incumbent's choices where it asks for what does not train or run."""
        best, known = self.search.best_plans(1), self.search.knowledge()
        if known is None or not best:
            return point
        hopeless, safe = known.hopeless(), best[0].point
        return point | {name: safe[name] for name, labels in hopeless.items() if point[name] in labels}

    def nothing_to_gain(self) -> str:
        """Why no further plan is worth its trial; empty when some may be."""
        searched = [record for record in self.search.records() if record.outcome.kind == "search"]
        if len(searched) < MIN_SEARCHED or len(searched) % CHECK_EVERY:
            return ""
        best, known = self.search.best_plans(1), self.search.knowledge()
        if known is None or not best:
            return ""
        if self.search.options.objective != "time" or best[0].number >= searched[-CHECK_EVERY].number:
            return ""
        gain = known.remaining_gain(self.search.options.seed + len(searched), best[0].point, self.search.is_tried)
        if gain >= known.noise_ms:
            return ""
        step = best[0].outcome.median_ms
        return (
            f"plans that were not tried are expected to save {gain:.3g} ms a step at most ({gain / step:.2%}), less "
            f"than the noise of {known.noise_ms:.3g} ms"
        )

    def _front(self, known: Knowledge) -> bool:
        """The next plan of the front, within its share of the trials; what did not train is left out from then on."""
        done = sum(record.outcome.kind == "front" for record in self.search.records())
        if not self.search.space.offered() or done >= math.ceil(
            FRONT_SHARE * (self.search.options.budget - len(self.search.recipes))
        ):
            return False
        banned = tuple(sorted((name, tuple(sorted(choices))) for name, choices in known.banned.items() if choices))
        if banned not in self._fronts:
            self._fronts[banned] = front_points(self.search.costs, self.search.options.objective, known.banned)
        best = self.search.best_plans(1)
        limit = TOO_SLOW * best[0].outcome.median_ms if best and self.search.options.objective == "time" else math.inf
        near = (point for point in self._fronts[banned] if known.predicted(point) <= limit)
        point = next((point for point in near if not self.search.is_tried(point)), None)
        if point is not None:
            self.search.study.enqueue(point, "front")
        return point is not None

    def _repair(self, known: Knowledge) -> bool:
        """A plan with wrong gradients, with the groups that they belong to in more bits, where that may be the best."""
        best = self.search.best_plans(1)
        limit = best[0].outcome.median_ms if best else math.inf
        points = [repaired(self.search.space, record) for record in self.search.plans() if record.outcome.failing]
        points = [point for point in points if not self.search.is_tried(point) and known.predicted(point) < limit]
        if points:
            self.search.study.enqueue(min(points, key=known.predicted), "search")
        return bool(points)

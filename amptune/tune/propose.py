"""Where to look next: plans that the cost model, corrected by what was measured, may find fastest.

The allocation is solved with costs drawn from the posterior (Thompson sampling): choices that are known to be good come
up often, and so do those of which little is known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np

from amptune.core.choice import Choice
from amptune.tune.allocate import Problem, allocate
from amptune.tune.caps import Caps
from amptune.tune.costmodel import LAYOUT, CostModel
from amptune.tune.space import FOLLOW
from amptune.tune.stepmodel import StepModel


def best_point(
    model: CostModel,
    step: StepModel,
    weights: np.ndarray,
    caps: Caps,
    banned: Mapping[str, set[Choice]],
    objective: str = "time",
) -> tuple[dict[str, str], float]:
    """The point that is best where the weights are true, and its predicted time (of the sites, with the weights)."""
    space = model.space
    free = {name: values for name, values in space.choices().items() if name.startswith(":")}
    pins = {group.name: group.values() for group in space.groups if group.kind == "pin"}
    settled = {
        name: min(values, key=lambda v, name=name: step.weight((name, v), weights))  # type: ignore[misc]
        for name, values in {**free, **pins}.items()
        if name not in (LAYOUT, ":loss")
    }
    found: list[tuple[float, dict[str, str]]] = []
    for layout, loss in itertools.product(free.get(LAYOUT, ("off",)), free.get(":loss", ("fp32",))):
        problem = model.problem(channels_last=layout == "on", loss_follows=loss == FOLLOW, banned=banned)
        times = {
            name: {choice: ms + step.weight((name, choice.label), weights) for choice, ms in values.items()}
            for name, values in problem.times.items()
        }
        shifted = dataclasses.replace(problem, times=_not_negative(times))
        chosen = allocate(shifted, 0.0, caps) if objective == "time" else allocate(of_memory(shifted), 0.0, caps)
        labels = {name: choice.label for name, choice in chosen.items()}
        point = model.made_legal(space.point(settled | labels | {":loss": loss, LAYOUT: layout}))
        found.append((model.predicted(point) + step.correction(point, weights), point))
    best, point = min(found, key=lambda item: item[0])
    return point, best


def _not_negative(times: Mapping[str, Mapping[Choice, float]]) -> dict[str, dict[Choice, float]]:
    """Each group's costs moved up together, which changes no comparison, so that all of them are at least zero."""
    moved = {}
    for name, values in times.items():
        lowest = min(0.0, *values.values())
        moved[name] = {choice: ms - lowest for choice, ms in values.items()}
    return moved


def of_memory(problem: Problem) -> Problem:
    """The same with bytes for times; time decides between equals."""
    most = sum(max(filter(math.isfinite, v.values()), default=0.0) for v in problem.times.values()) or 1.0
    least = min((b for v in problem.memory.values() for b in v.values() if b), default=1.0)
    times = {
        name: {
            c: problem.memory[name][c] + 1e-3 * least * ms / most if math.isfinite(ms) else math.inf
            for c, ms in values.items()
        }
        for name, values in problem.times.items()
    }
    return dataclasses.replace(problem, times=times, links=())

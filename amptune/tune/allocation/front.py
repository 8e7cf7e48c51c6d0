"""The plans that are tried before the search adapts: what the measured costs say is best, and what users would try."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

from amptune.core.choice import FP32, Choice
from amptune.core.formats import Format
from amptune.tune.allocation.allocate import Assignment, Problem, allocate, front
from amptune.tune.allocation.caps import Caps
from amptune.tune.allocation.costmodel import LAYOUT, CostModel
from amptune.tune.choices.space import FOLLOW, Space

LIMIT_STEP = 1.5
"""Each limit of the error is this many times the one before."""

Banned = Mapping[str, set[Choice]]
"""Group -> choices that were seen not to train."""


def front_points(
    model: CostModel, objective: str = "time", banned: Banned | None = None, *, knows_fp8: bool = False
) -> list[dict[str, str]]:
    """Distinct legal points, most promising first; without the choices that are ``banned``.

    The best assignment of the cost model comes first, with each choice for the loss; then the same for each choice
    alone beside FP32, everything in one choice, and the rest of the front: less error for more time. Once
    ``knows_fp8`` says that it is known how much FP8 trains, also what is best under limits of the error.
    """
    space = model.space
    problem = model.problem(banned=banned)
    problem = problem if objective == "time" else of_memory(problem)
    fastest, *others = front(_where_scaled_pays(model, problem) if objective == "time" else problem)
    alone = [_point(space, allocate(_restricted(problem, choice))) for choice in space.offered()]
    leaders = [_point(space, fastest), *sorted(alone, key=model.predicted if objective == "time" else model.bytes)]
    points = _with_losses(space, leaders[0]) + _with_layout(model, leaders[1:], banned)
    points += [_without_pins(space, leaders[0])]
    uniform = [space.uniform(choice) for choice in space.offered()]
    points += [point for base in (*leaders[1:], *uniform) for point in _with_losses(space, base)]
    points += [with_cheapest_loss(model, _point(space, other)) for other in others]
    if knows_fp8:
        points += [with_cheapest_loss(model, _point(space, other)) for other in _of_less_error(problem)]
    legal = (model.made_legal(point) for point in points if space.is_legal(point))
    return distinct(point for point in legal if not _has(point, banned or {}))


def _of_less_error(problem: Problem) -> list[Assignment]:
    """The fastest assignments under limits of the error, from that of 16 bits to that of the fastest of all.

    Where FP8 saves about as much for its error in several groups, the hull has none of the plans with some of them.
    """
    plain = _allowing(problem, lambda choice: not choice.format.is_fp8)
    least, most = (each.error(allocate(each)) for each in (plain, problem))
    if not 0 < least < most / LIMIT_STEP:
        return []
    limits = [least * LIMIT_STEP**step for step in range(1, math.ceil(math.log(most / least, LIMIT_STEP)))]
    return [allocate(problem, caps=Caps(error=limit)) for limit in reversed(limits)]


def _where_scaled_pays(model: CostModel, problem: Problem) -> Problem:
    """The problem, without FP16 where that saves less than its loss scaler takes."""
    without = _allowing(problem, lambda choice: choice.format is not Format.FP16)
    with_scaler = problem.time(allocate(problem)) + model.table.scaling
    return without if model.table.scaling and problem.time(allocate(without)) <= with_scaler else problem


def _has(point: Mapping[str, str], banned: Banned) -> bool:
    return any(point[name] == choice.label for name, choices in banned.items() for choice in choices)


def _with_layout(model: CostModel, leaders: list[dict[str, str]], banned: Banned | None) -> list[dict[str, str]]:
    """What is best in channels_last format, and the leaders in it; nothing where that is no choice."""
    if not model.space.channels_last:
        return []
    problem = _where_scaled_pays(model, model.problem(channels_last=True, banned=banned))
    best = _point(model.space, allocate(problem))
    return [point | {LAYOUT: "on"} for point in (best, *leaders)]


def distinct(points: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Each point once, in order."""
    return list({tuple(sorted(point.items())): point for point in points}.values())


def _restricted(problem: Problem, choice: Choice) -> Problem:
    """The problem with FP32, ``choice``, and for FP8 the format that its outputs have."""
    allowed = {FP32, choice, Choice(choice.output_format)}
    return _allowing(problem, lambda each: each in allowed)


def _allowing(problem: Problem, is_allowed: Callable[[Choice], bool]) -> Problem:
    times = {name: {c: ms for c, ms in values.items() if is_allowed(c)} for name, values in problem.times.items()}
    return dataclasses.replace(problem, times=times)


def _point(space: Space, chosen: Assignment) -> dict[str, str]:
    return space.point({name: choice.label for name, choice in chosen.items()})


def _with_losses(space: Space, point: dict[str, str]) -> list[dict[str, str]]:
    return [point | {":loss": loss} for loss in space.losses] or [point]


def with_cheapest_loss(model: CostModel, point: dict[str, str]) -> dict[str, str]:
    """The point with the choice for the loss that costs the least."""
    return min(_with_losses(model.space, point), key=model.predicted)


def _without_pins(space: Space, point: dict[str, str]) -> dict[str, str]:
    return point | {group.name: FOLLOW for group in space.groups if group.kind == "pin"}


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

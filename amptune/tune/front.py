"""The plans that are tried before the search adapts: what the measured costs say is best, and what users would try."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from amptune.core.choice import FP32, Choice
from amptune.core.tables import CostTable, Edge
from amptune.tune.allocate import Assignment, Problem, allocate, front
from amptune.tune.space import FOLLOW, LOSS, Space


def front_points(space: Space, problem: Problem, max_bytes: float = float("inf")) -> list[dict[str, str]]:
    """Distinct legal points, most promising first.

    The fastest assignment of the cost model comes first, with each choice for the loss; then the same for each choice
    alone beside FP32, everything in one choice, and the rest of the front: less error for more time.
    """
    fastest, *others = front(problem, max_bytes)
    alone = {choice: allocate(_restricted(problem, choice), 0.0, max_bytes) for choice in space.offered()}
    leaders = [_point(space, fastest)]
    leaders += sorted((_point(space, a) for a in alone.values()), key=lambda p: problem.time(assignment(space, p)))
    uniform = [space.uniform(choice) for choice in space.offered()]
    points = _with_losses(space, leaders[0])
    if space.channels_last:
        points += [point | {":channels_last": "on"} for point in (*points[:1], *leaders[1:])]
    points += [_without_pins(space, leaders[0])]
    points += [point for base in (*leaders[1:], *uniform) for point in _with_losses(space, base)]
    points += [_point(space, other) for other in others]
    return distinct(point for point in points if space.is_legal(point))


def assignment(space: Space, point: Mapping[str, str]) -> Assignment:
    """The choices of the module groups at a point."""
    return {group.name: Choice.parse(point[group.name]) for group in space.module_groups()}


def predicted_ms(space: Space, table: CostTable, edges: Sequence[Edge], point: Mapping[str, str]) -> float:
    """Milliseconds of the measured sites and casts of a point: a sum, to compare points, not the whole step."""
    paid = [edge for edge in edges if edge.into != (LOSS,) or point.get(":loss") != FOLLOW]
    return table.total(space.site_choices(point), paid)


def distinct(points: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Each point once, in order."""
    return list({tuple(sorted(point.items())): point for point in points}.values())


def _restricted(problem: Problem, choice: Choice) -> Problem:
    """The problem with FP32, ``choice``, and for FP8 the format that its outputs have."""
    allowed = {FP32, choice, Choice(choice.output_format)}
    times = {name: {c: ms for c, ms in values.items() if c in allowed} for name, values in problem.times.items()}
    return dataclasses.replace(problem, times=times)


def _point(space: Space, chosen: Assignment) -> dict[str, str]:
    return space.point({name: choice.label for name, choice in chosen.items()})


def _with_losses(space: Space, point: dict[str, str]) -> list[dict[str, str]]:
    return [point | {":loss": loss} for loss in space.losses] or [point]


def _without_pins(space: Space, point: dict[str, str]) -> dict[str, str]:
    return point | {group.name: FOLLOW for group in space.groups if group.kind == "pin"}

"""The plans that are tried before the sampler: what the measured costs say is fastest, and what users would try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amptune.core.choice import Choice
from amptune.core.tables import CostTable, Edge
from amptune.tune.allocate import allocate_two
from amptune.tune.space import FOLLOW, Space


def front_points(space: Space, table: CostTable, edges: Sequence[Edge]) -> list[dict[str, str]]:
    """Distinct points, most promising first: for each 16-bit format the minimum cut, then everything in 16 bits."""
    points: list[dict[str, str]] = []
    halves = [choice for choice in space.offered() if not choice.format.is_fp8]
    for choice in sorted(halves, key=lambda c: predicted_ms(space, table, edges, _fastest(space, table, edges, c))):
        fastest = _fastest(space, table, edges, choice)
        uniform = space.uniform(choice)
        for base in (fastest, uniform):
            points += [base | {":loss": loss} for loss in space.losses] or [base]
        if space.channels_last:
            points += [base | {":channels_last": "on"} for base in (fastest, uniform)]
        points.append(_without_pins(space, fastest))
    return list({tuple(sorted(point.items())): point for point in points}.values())


def predicted_ms(space: Space, table: CostTable, edges: Sequence[Edge], point: Mapping[str, str]) -> float:
    """Milliseconds of the measured sites and casts of a point: a sum, to compare points, not the whole step."""
    return table.total(space.site_choices(point), edges)


def _fastest(space: Space, table: CostTable, edges: Sequence[Edge], low: Choice) -> dict[str, str]:
    groups = {group.name: group.sites for group in space.module_groups()}
    return space.point({name: choice.label for name, choice in allocate_two(groups, edges, table, low).items()})


def _without_pins(space: Space, point: dict[str, str]) -> dict[str, str]:
    return point | {group.name: FOLLOW for group in space.groups if group.kind == "pin"}

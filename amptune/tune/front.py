"""The plans that are tried before the sampler: what the measured costs say is fastest, and what users would try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amptune.core.formats import Format
from amptune.core.tables import CostTable
from amptune.tune.allocate import allocate_two
from amptune.tune.space import HIGH, LOW, Group, Space


def front_points(space: Space, table: CostTable, edges: Sequence[tuple[str, str, int]]) -> list[dict[str, str]]:
    """Distinct points, most promising first: for each 16-bit format the minimum cut, then everything in 16 bits."""
    points: list[dict[str, str]] = []
    for number_format in sorted(space.formats, key=lambda f: _predicted(space, table, edges, f)):
        fastest = _fastest(space, table, edges, number_format)
        uniform = _uniform(space, number_format)
        for base in (fastest, uniform):
            points += [base | {":loss": loss} for loss in space.losses] or [base]
        if space.channels_last:
            points += [base | {":channels_last": "on"} for base in (fastest, uniform)]
        points.append(_without_pins(space, fastest))
    return list({tuple(sorted(point.items())): point for point in points}.values())


def predicted_ms(
    space: Space, table: CostTable, edges: Sequence[tuple[str, str, int]], point: Mapping[str, str]
) -> float:
    """Milliseconds of the measured sites and casts of a point: a sum, to compare points, not the whole step."""
    low = Format.parse(point[":format"])
    formats = {
        site: low if point[group.name] == LOW else Format.FP32
        for group in _module_groups(space)
        for site in group.sites
    }
    return table.total(formats, edges)


def _predicted(space: Space, table: CostTable, edges: Sequence[tuple[str, str, int]], low: Format) -> float:
    return predicted_ms(space, table, edges, _fastest(space, table, edges, low))


def _fastest(space: Space, table: CostTable, edges: Sequence[tuple[str, str, int]], low: Format) -> dict[str, str]:
    groups = {group.name: group.sites for group in _module_groups(space)}
    chosen = allocate_two(groups, edges, table, low)
    point = {name: LOW if f is low else HIGH for name, f in chosen.items()}
    return space.point(point | {":format": low.label})


def _uniform(space: Space, low: Format) -> dict[str, str]:
    return space.point({group.name: LOW for group in _module_groups(space)} | {":format": low.label})


def _without_pins(space: Space, point: dict[str, str]) -> dict[str, str]:
    return point | {group.name: LOW for group in space.groups if group.kind == "pin"}


def _module_groups(space: Space) -> list[Group]:
    return [group for group in space.groups if group.kind == "module"]

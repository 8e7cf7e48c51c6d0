"""Measured tables that a search stands on: what a site costs in each format, and what a cast costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from amptune.core.formats import Format


@dataclasses.dataclass(frozen=True)
class SiteCost:
    """Milliseconds of forward and backward of one site in one format, weight cast included.

    ``pad`` is the padding of output features that was fastest, 0 for none. ``ms`` is infinite where the format has no
    kernel on the device.
    """

    ms: float
    pad: int = 0


@dataclasses.dataclass(frozen=True)
class CastPrice:
    """Milliseconds of casting a tensor there and its gradient back: ``fixed + per_byte * bytes`` (bytes of FP32)."""

    fixed: float
    per_byte: float

    def of(self, numel: int) -> float:
        """Price for a tensor of ``numel`` elements."""
        return self.fixed + self.per_byte * 4 * numel


@dataclasses.dataclass(frozen=True)
class CostTable:
    """Costs by site and format, and cast prices by format pair.

    Sites that are absent cost the same in every format (or are not measured), so they do not sway the allocation.
    """

    sites: Mapping[str, Mapping[Format, SiteCost]]
    casts: Mapping[frozenset[Format], CastPrice]

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds; infinite times become null."""
        return {
            "sites": {
                name: {f.label: [cost.ms if math.isfinite(cost.ms) else None, cost.pad] for f, cost in costs.items()}
                for name, costs in self.sites.items()
            },
            "casts": [
                [*sorted(f.label for f in pair), price.fixed, price.per_byte] for pair, price in self.casts.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """The table that ``to_json`` gave."""
        sites = {
            name: {Format.parse(f): SiteCost(math.inf if ms is None else ms, pad) for f, (ms, pad) in costs.items()}
            for name, costs in data["sites"].items()
        }
        casts = {
            frozenset((Format.parse(a), Format.parse(b))): CastPrice(fixed, per_byte)
            for a, b, fixed, per_byte in data["casts"]
        }
        return cls(sites, casts)

    def site(self, site_id: str, number_format: Format) -> SiteCost:
        """The measured cost; zero for what was not measured."""
        return self.sites.get(site_id, {}).get(number_format, SiteCost(0.0))

    def cast(self, source: Format, target: Format, numel: int) -> float:
        """Milliseconds of one cast of ``numel`` elements, with the gradient's way back; zero between equal formats."""
        if source is target:
            return 0.0
        price = self.casts.get(frozenset((source, target)))
        return price.of(numel) if price else 0.0

    def total(self, formats: Mapping[str, Format], edges: Iterable[tuple[str, str, int]]) -> float:
        """Predicted milliseconds of all sites and casts of an assignment. ``edges``: (source, target, numel)."""
        sites = sum(self.site(name, chosen).ms for name, chosen in formats.items())
        casts = sum(
            self.cast(formats[source], formats[target], numel)
            for source, target, numel in edges
            if source in formats and target in formats
        )
        return sites + casts

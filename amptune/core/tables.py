"""Measured tables that a search stands on: what a site costs in each choice, and what a cast costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amptune.core.choice import FP32, TF32, Choice
from amptune.core.formats import Format

EDGE_FORMATS = (Format.FP32, Format.BF16, Format.FP16)
"""Formats that travel between sites."""


@dataclasses.dataclass(frozen=True)
class Edge:
    """One tensor on its way, which is cast where the two sides differ in format.

    A tensor that ops outside the plan made (adds, views) has the format that the outputs of several sites promote to.

    Attributes:
        sources: sites whose promoted output formats the tensor has; INPUT stands for FP32 that no plan changes.
        into: the site that reads it; or, for the operand of an op that promotes, the sources of all its operands.
        numel: elements.
        share: of the price: 1.0 for a cast with the gradient's cast back, 0.5 for one of the two.
    """

    sources: tuple[str, ...]
    into: tuple[str, ...]
    numel: int
    share: float = 1.0

    def to_json(self) -> list[Any]:
        """The fields in their order."""
        return [list(self.sources), list(self.into), self.numel, self.share]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Edge:
        """What ``to_json`` gave."""
        sources, into, numel, share = data
        return cls(tuple(sources), tuple(into), numel, share)


def promoted(formats: Iterable[Format]) -> Format:
    """The format of an op's output whose inputs have these: FP32 where they differ, as torch promotes."""
    distinct = set(formats)
    return distinct.pop() if len(distinct) == 1 else Format.FP32


@dataclasses.dataclass(frozen=True)
class SiteCost:
    """Milliseconds of one site in one choice, all its calls in a step, weight cast included.

    Attributes:
        forward: the forward pass; where the parts were not measured apart, the whole.
        input_grad: gradient of the input.
        weight_grad: gradient of the weight.
        pad: multiple that output features were padded to, because it was fastest; 0 for none.
        pad_in: the same for input features.
        followers: what the ops take that follow this site in its format, as far as they are this site's.
        spread: interquartile range of forward and backward together, over the repeats.

    Times are infinite where the choice has no kernel on the device.
    """

    forward: float
    input_grad: float = 0.0
    weight_grad: float = 0.0
    pad: int = 0
    pad_in: int = 0
    spread: float = 0.0
    followers: float = 0.0

    @property
    def ms(self) -> float:
        """Forward and backward together, and what follows."""
        return self.forward + self.input_grad + self.weight_grad + self.followers

    def times(self, calls: float) -> SiteCost:
        """The cost of ``calls`` calls."""
        return dataclasses.replace(
            self,
            forward=self.forward * calls,
            input_grad=self.input_grad * calls,
            weight_grad=self.weight_grad * calls,
            spread=self.spread * calls,
            followers=self.followers * calls,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields, with null for an infinite time."""
        return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteCost:
        """What ``to_json`` gave."""
        fields: dict[str, Any] = {key: math.inf if value is None else value for key, value in data.items()}
        return cls(**fields)


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
    """Costs by site and choice, and cast prices by format pair.

    Sites that are absent cost the same in every choice (or are not measured), so they do not sway the allocation.
    ``channels_last`` has the costs of the sites that images pass through, in that memory format; in both, a site's cost
    as TF32 is that of its FP32 where TF32 is allowed. ``losses`` is what the loss takes in each of its choices, on a
    16-bit output. ``update`` is what the optimizer's step takes, None where more than sites, loss and optimizer of a
    step is without a price; ``scaling`` is what a loss scaler adds to it. ``launching`` is what Python takes to queue a
    cast with its gradient's way back, 0 where that is not known or costs nothing.
    """

    sites: Mapping[str, Mapping[Choice, SiteCost]]
    casts: Mapping[frozenset[Format], CastPrice]
    channels_last: Mapping[str, Mapping[Choice, SiteCost]] = dataclasses.field(default_factory=dict)
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    update: float | None = None
    scaling: float = 0.0
    launching: float = 0.0

    def in_channels_last(self) -> CostTable:
        """The table of a model whose images are in channels_last format."""
        return dataclasses.replace(self, sites={**self.sites, **self.channels_last})

    def in_tf32(self) -> CostTable:
        """The table of a process that may use TF32 for what is FP32."""
        sites = {name: {**costs, FP32: costs[TF32]} if TF32 in costs else costs for name, costs in self.sites.items()}
        return dataclasses.replace(self, sites=sites)

    def on_the_host(self) -> CostTable:
        """What Python takes beside what all plans have in common: to queue the casts."""
        return CostTable({}, {pair: CastPrice(self.launching, 0.0) for pair in self.casts})

    def with_launches(self) -> CostTable:
        """The table of a step in which the GPU waits for Python: a cast also costs what it takes to queue it."""
        casts = {pair: CastPrice(price.fixed + self.launching, price.per_byte) for pair, price in self.casts.items()}
        return dataclasses.replace(self, casts=casts)

    def with_kernels(self, choices: Mapping[str, Choice]) -> CostTable:
        """The table where these are known to run: what has no kernel by it costs what FP32 does there."""
        return dataclasses.replace(
            self,
            sites=_with_kernels(self.sites, choices),
            channels_last=_with_kernels(self.channels_last, choices),
        )

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds: choices by their labels."""
        return {
            "sites": _costs_to_json(self.sites),
            "channels_last": _costs_to_json(self.channels_last),
            "losses": dict(self.losses),
            "update": self.update,
            "scaling": self.scaling,
            "launching": self.launching,
            "casts": [
                [*sorted(f.label for f in pair), price.fixed, price.per_byte] for pair, price in self.casts.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostTable:
        """The table that ``to_json`` gave."""
        casts = {
            frozenset((Format.parse(a), Format.parse(b))): CastPrice(fixed, per_byte)
            for a, b, fixed, per_byte in data["casts"]
        }
        images = _costs_from_json(data.get("channels_last", {}))
        beside = data.get("losses", {}), data.get("update"), data.get("scaling", 0.0), data.get("launching", 0.0)
        return cls(_costs_from_json(data["sites"]), casts, images, *beside)

    def site(self, site_id: str, choice: Choice) -> SiteCost:
        """The measured cost; zero for what was not measured."""
        return self.sites.get(site_id, {}).get(choice, SiteCost(0.0))

    def cast(self, source: Format, target: Format, numel: int) -> float:
        """Milliseconds of one cast of ``numel`` elements, with the gradient's way back; zero between equal formats."""
        if source is target:
            return 0.0
        price = self.casts.get(frozenset((source, target)))
        return price.of(numel) if price else 0.0

    def total(self, choices: Mapping[str, Choice], edges: Iterable[Edge]) -> float:
        """Predicted milliseconds of all sites and casts of an assignment; a site that is not in it is in FP32."""
        formats = {name: choice.output_format for name, choice in choices.items()}

        def arriving(names: Iterable[str]) -> Format:
            return promoted(formats.get(name, Format.FP32) for name in names)

        sites = sum(self.site(name, chosen).ms for name, chosen in choices.items())
        casts = sum(self.cast(arriving(e.sources), arriving(e.into), e.numel) * e.share for e in edges)
        return sites + casts


def _with_kernels(
    sites: Mapping[str, Mapping[Choice, SiteCost]], choices: Mapping[str, Choice]
) -> dict[str, Mapping[Choice, SiteCost]]:
    found = dict(sites)
    for name, choice in choices.items():
        costs = sites.get(name, {})
        if choice in costs and FP32 in costs and math.isinf(costs[choice].ms):
            found[name] = {**costs, choice: costs[FP32]}
    return found


def _costs_to_json(sites: Mapping[str, Mapping[Choice, SiteCost]]) -> dict[str, Any]:
    return {name: {choice.label: cost.to_json() for choice, cost in costs.items()} for name, costs in sites.items()}


def _costs_from_json(data: Mapping[str, Any]) -> dict[str, dict[Choice, SiteCost]]:
    return {
        name: {Choice.parse(label): SiteCost.from_json(cost) for label, cost in costs.items()}
        for name, costs in data.items()
    }

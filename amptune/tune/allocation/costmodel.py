"""What is known before the first trial, brought together: costs, casts, errors and vetoes of every point of a space."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from amptune.core.choice import Choice
from amptune.core.formats import Format
from amptune.core.graph import INPUT, LOSS
from amptune.core.sensitivity import Sensitivity
from amptune.core.tables import CostTable, Edge
from amptune.tune.allocation.allocate import Problem, Values, problem_of
from amptune.tune.choices.space import COMPILED_LOSS, FOLLOW, HIGH, Space
from amptune.tune.prices.losses import PLAIN_LOSS

LAYOUT, TF32 = ":channels_last", ":tf32"
Point = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The measured costs of a space, for every choice that changes them.

    Attributes:
        space: what can be chosen.
        table: measured costs, both memory formats.
        edges: tensors between sites.
        sensitivity: errors and vetoes.
    """

    space: Space
    table: CostTable
    edges: Sequence[Edge]
    sensitivity: Sensitivity = dataclasses.field(default_factory=Sensitivity)

    def predicted(self, point: Point) -> float:
        """Milliseconds of sites, casts and loss of a point: a sum, to compare points, not the whole step."""
        key = tuple(sorted(point.items()))
        if key not in self._predictions:
            table, edges = self.costs_at(point)
            choices = self.space.site_choices(point)
            loss = table.losses.get(self._loss_of(point, choices), 0.0)
            is_scaled = any(choice.format is Format.FP16 for choice in choices.values())
            self._predictions[key] = table.total(choices, edges) + loss + is_scaled * table.scaling
        return self._predictions[key]

    def costs_at(self, point: Point) -> tuple[CostTable, list[Edge]]:
        """The costs in the memory format of a point and with its TF32 flag, and the edges that its loss leaves.

        A loss that was measured has the cast of its input in its own cost.
        """
        layout, tf32, is_paid = point.get(LAYOUT), point.get(TF32), point.get(":loss") != FOLLOW
        return self._table(layout == "on", tf32 == "on"), self._edges(is_paid)

    def problem_at(self, point: Point) -> Problem:
        """The allocation in the memory format and with the loss of ``point``; what is vetoed has its cost too."""
        table, edges = self.costs_at(point)
        return problem_of(self.space, table, edges, self._errors, None, self._memory)

    def on_the_host(self) -> CostModel:
        """What Python takes to queue a point's casts."""
        return dataclasses.replace(self, table=self.table.on_the_host())

    def with_launches(self) -> CostModel:
        """The costs where the GPU waits for Python."""
        return dataclasses.replace(self, table=self.table.with_launches())

    def loss_ms(self, loss: str, arriving: Format) -> float:
        """Milliseconds that the table gives a choice of the loss, for model outputs in one format."""
        plain = arriving is Format.FP32 and loss != COMPILED_LOSS
        return self.table.losses.get(PLAIN_LOSS if plain else loss, 0.0)

    def loss_sources(self) -> set[str]:
        """Module groups whose outputs the loss reads; empty where one of the outputs is in FP32 in every plan."""
        owner = {site: group for group in self.space.groups for site in group.sites}
        sources = {site for edge in self.edges if edge.into == (LOSS,) for site in edge.sources}
        groups = [owner[site] for site in sources if site in owner]
        return {g.name for g in groups} if all(g.kind == "module" for g in groups) else set()

    def made_legal(self, point: Point) -> dict[str, str]:
        """The nearest point that can train: FP16 and BF16 meet nowhere, and no loss is computed in FP16.

        The scaler multiplies the loss: one of 10 in FP16 overflows from a scale of 8192 on, which gradients need.
        """
        legal = self.space.made_legal(point)
        if legal.get(":loss") == FOLLOW and Format.FP16 in self._arriving(self.space.site_choices(legal)):
            legal[":loss"] = HIGH
        return legal

    def without_idle(self, point: Point) -> dict[str, str]:
        """The point with the loss in FP32 where it follows outputs that are: the same plan by its other name."""
        if point.get(":loss") == FOLLOW and self._arriving(self.space.site_choices(point)) == {Format.FP32}:
            return {**point, ":loss": HIGH}
        return dict(point)

    def _arriving(self, choices: Mapping[str, Choice]) -> set[Format]:
        """Formats of the model's outputs that the loss reads."""
        sources = {site for edge in self.edges if edge.into == (LOSS,) for site in edge.sources}
        return {choices[site].output_format for site in sources if site in choices}

    def _loss_of(self, point: Point, choices: Mapping[str, Choice]) -> str:
        """The entry of the table's losses: a compiled one is that, an eager one by the format that arrives."""
        if point.get(":loss") == COMPILED_LOSS:
            return COMPILED_LOSS
        arriving = self._arriving(choices)
        is_fp32 = Format.FP32 in arriving or not arriving
        return PLAIN_LOSS if is_fp32 else point.get(":loss", PLAIN_LOSS)

    def error(self, point: Point) -> float:
        """Predicted rounding error of a point."""
        return self.sensitivity.total(self.space.site_choices(point))

    def bytes(self, point: Point) -> float:
        """Bytes of the inputs that the sites keep for backward: what the choices decide of the memory."""
        formats = {site: choice.output_format for site, choice in self.space.site_choices(point).items()}
        return sum(edge.numel * formats[edge.into[0]].bytes for edge in self._kept(formats))

    def problem(
        self,
        *,
        channels_last: bool = False,
        loss_follows: bool = False,
        banned: Mapping[str, set[Choice]] | None = None,
    ) -> Problem:
        """The allocation in one memory format, with TF32 where it is a choice.

        The loss is in FP32 or in the format that arrives; where it was measured, it is the cheapest for what arrives.
        """
        table, edges = self._table(channels_last, self.space.tf32), self._edges(not loss_follows)
        errors, vetoes = self._errors, {name: dict(found) for name, found in self.vetoes.items()}
        for name, choices in (banned or {}).items():
            vetoes.setdefault(name, {}).update(dict.fromkeys(choices, "did not train"))
        problem = problem_of(self.space, table, edges, errors, vetoes, self._memory)
        return dataclasses.replace(problem, times=self._with_losses(problem.times))

    def _with_losses(self, times: Values) -> Values:
        """The times with the measured loss in those of the group that it reads; of several, none decides it alone."""
        sources = self.loss_sources()
        if not self.table.losses or len(sources) != 1:
            return times
        (name,) = sources
        return {**times, name: {choice: ms + self._cheapest_loss(choice) for choice, ms in times[name].items()}}

    def _cheapest_loss(self, choice: Choice) -> float:
        barred = {FOLLOW} if choice.format is Format.FP16 else set()
        offered = [loss for loss in self.space.losses if loss in self.table.losses and loss not in barred]
        return min((self.loss_ms(loss, choice.output_format) for loss in offered), default=0.0)

    def _table(self, channels_last: bool, tf32: bool) -> CostTable:
        key = channels_last, tf32
        if key not in self._tables:
            table = self.table.in_channels_last() if channels_last else self.table
            self._tables[key] = table.in_tf32() if tf32 else table
        return self._tables[key]

    def _edges(self, loss_is_paid: bool) -> list[Edge]:
        """The edges, those into the loss only where it casts its input and that is not measured with it."""
        is_paid = loss_is_paid and not self.table.losses
        return [edge for edge in self.edges if edge.into != (LOSS,) or is_paid]

    @functools.cached_property
    def _tables(self) -> dict[tuple[bool, bool], CostTable]:
        return {}

    @functools.cached_property
    def _predictions(self) -> dict[tuple[tuple[str, str], ...], float]:
        return {}

    @functools.cached_property
    def vetoes(self) -> dict[str, dict[Choice, str]]:
        """Group -> choice -> why it must not be made, by the first site that forbids it."""
        found: dict[str, dict[Choice, str]] = {}
        for group in self.space.module_groups():
            for choice, site in itertools.product(group.choices, group.sites):
                if why := self.sensitivity.veto(site, group.site_choice(site, choice)):
                    found.setdefault(group.name, {}).setdefault(choice, f"{site} {why}")
        return found

    def costs(self) -> dict[tuple[str, str], float]:
        """(group, value) -> what the group costs in that choice: what the table's error is a share of."""
        return {
            (name, choice.label): ms
            for name, values in self.problem().times.items()
            for choice, ms in values.items()
            if math.isfinite(ms)
        }

    @functools.cached_property
    def _errors(self) -> Values:
        return {
            group.name: {
                choice: sum(self.sensitivity.error(site, group.site_choice(site, choice)) for site in group.sites)
                for choice in group.choices
            }
            for group in self.space.module_groups()
        }

    @functools.cached_property
    def _memory(self) -> Values:
        groups = self.space.module_groups()
        kept = {group.name: 0 for group in groups}
        owner = {site: group.name for group in groups for site in group.sites}
        for edge in self._kept(owner):
            kept[owner[edge.into[0]]] += edge.numel
        return {g.name: {c: float(kept[g.name] * c.output_format.bytes) for c in g.choices} for g in groups}

    def _kept(self, sites: Mapping[str, object]) -> Iterator[Edge]:
        return (edge for edge in self.edges if len(edge.into) == 1 and edge.into[0] in sites and edge.into[0] != INPUT)

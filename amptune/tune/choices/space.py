"""The search space: groups of sites that decide together, the choices of a whole plan, and the way to a Plan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from amptune.core.choice import BF16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.paths import is_within
from amptune.core.plan import HELD, Plan, ScalerConfig, SitePlan
from amptune.core.tables import CostTable

HIGH, FOLLOW = "fp32", "follow"
"""Values of a pin: computed in FP32, or in the format of what arrives."""
COMPILED_LOSS = "fp32-compiled"
"""A value of the loss: in FP32, under torch.compile by itself."""
SPLITTING = 2
"""Counts the ways in which ``splits`` has made a search's space of the one that a model has: a study of another is not
continued."""
How = Literal["swap", "follow", "source", "autocast", "own", "read", "late"]
"""How a site's format is put in force, as ``core.plan.SitePlan.how``."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Sites with one decision: same role in repeated blocks, or tied because their outputs meet in one op.

    Attributes:
        name: the role, with block numbers as ``*``; for a pin the op's place in the source.
        sites: ids of the sites.
        kind: ``module`` chooses one of ``choices``, ``pin`` chooses FP32 or to follow, ``fixed`` has no choice: its
            outputs meet a tensor that no plan casts, in an op that takes one dtype only. ``destination`` is such an op
            that can be pinned in FP32, which it is where any of the sites in ``feeds`` is in 16 bits; ``loss`` one that
            makes a loss in the forward, which autocast has in FP32 too. ``region`` holds ops that cast to the 16-bit
            format what they meet in FP32, by an autocast region of their module, where any of ``feeds`` is in 16 bits.
        how: how each site is put in force, in the order of ``sites``.
        choices: what a module group may be, FP32 first.
        fp8: sites that FP8 fits, by their kind and dimensions; the others run in BF16 where the group is FP8.
        multiplies: whether its sites are matrix products or hold some, which autocast lowers too.
        feeds: of a destination, a region or a loss, the sites that decide what arrives; so too of a ``module`` group
            with products that a forward computes itself. Those are in an autocast region of their module where they are
            in 16 bits. In FP32 they have one only if something else arrives, which is cast up there.
        raised: of a region, the functional sites of its module that autocast computes in FP32.
        arriving: of a pin, the sites that decide each tensor that its ops read: one in FP32 makes it that. A pin where
            all are in FP32 changes nothing, and is left out of the plan.
    """

    name: str
    sites: tuple[str, ...]
    kind: Literal["module", "pin", "fixed", "destination", "region", "loss"]
    how: tuple[How, ...]
    choices: tuple[Choice, ...] = ()
    fp8: frozenset[str] = frozenset()
    multiplies: bool = False
    feeds: frozenset[str] = frozenset()
    raised: frozenset[str] = frozenset()
    arriving: frozenset[frozenset[str]] = frozenset()

    @property
    def has_format(self) -> bool:
        """Whether each site has a format by the choice of this group: not what is pinned at its line."""
        return self.kind in ("module", "fixed")

    def values(self) -> tuple[str, ...]:
        """The values of this group's choice in a point, FP32 first; empty where there is nothing to choose."""
        if self.kind == "pin":
            return (HIGH, FOLLOW)
        return tuple(choice.label for choice in self.choices) if self.kind == "module" else ()

    def site_choice(self, site: str, chosen: Choice) -> Choice:
        """What one site runs in where the group is ``chosen``."""
        return BF16 if chosen.format.is_fp8 and site not in self.fp8 else chosen

    def site_choices(self, site: str) -> tuple[Choice, ...]:
        """What one site can come to run in."""
        return tuple(dict.fromkeys(self.site_choice(site, choice) for choice in self.choices))


@dataclasses.dataclass(frozen=True)
class Space:
    """All choices of a plan.

    A point is a dict: name of a module group -> label of a ``Choice``, name of a pin -> ``fp32`` or ``follow``;
    ``:tf32`` and ``:channels_last`` where the device and the model have them, and ``:loss`` where the loss is the
    user's function, or one that the model keeps: ``fp32`` (of a kept one: as it is), ``follow`` (the format that the
    output has) or ``fp32-compiled`` (torch.compile of the loss alone: the cast up then costs no memory).

    Attributes:
        groups: what decides together.
        tf32: whether ``:tf32`` is a choice.
        channels_last: whether ``:channels_last`` is one.
        losses: values of ``:loss``; empty where it is no choice.
        meets: sets of module groups whose outputs meet in an op that promotes: FP16 and BF16 in one of them would give
            FP32 without a word, so that is no legal point.
        no_fp8: Linear site -> why FP8 does not fit it, where the device has FP8.
        why_fixed: site of a fixed group -> why it stays in FP32.
        strided: sites whose padded output need not be copied, as a run has shown.
        makes_loss: whether ``losses`` are of a loss that the model makes itself too, or of that alone.
        uncalled: modules that the batch does not reach -> how they take a format, and the site of the same role whose
            format they share; FP32 where there is none. Beside layers in 16 bits another batch would end in an error.
        rewritten: sites that a plan computes with another kernel than the user's code, in FP32 too.
    """

    groups: tuple[Group, ...]
    tf32: bool
    channels_last: bool
    losses: tuple[str, ...] = ()
    meets: tuple[frozenset[str], ...] = ()
    no_fp8: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    why_fixed: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    strided: frozenset[str] = frozenset()
    makes_loss: bool = False
    uncalled: Mapping[str, tuple[How, str | None]] = dataclasses.field(default_factory=dict, hash=False)
    rewritten: frozenset[str] = frozenset()

    def module_groups(self) -> list[Group]:
        """Groups that choose a format."""
        return [group for group in self.groups if group.kind == "module"]

    def held(self) -> frozenset[str]:
        """Sites that are no modules: parameters and buffers that modules hold beside their layers."""
        pairs = (pair for group in self.groups for pair in zip(group.sites, group.how, strict=True))
        return frozenset(site for site, how in pairs if how in HELD)

    def offered(self) -> tuple[Choice, ...]:
        """Every choice beside FP32 that some group has, in order."""
        return tuple(sorted({choice for group in self.module_groups() for choice in group.choices} - {FP32}))

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Name of each choice and its values, in a fixed order."""
        choices = {group.name: values for group in self.groups if (values := group.values())}
        if self.losses:
            choices[":loss"] = self.losses
        if self.tf32:
            choices[":tf32"] = ("on", "off")
        if self.channels_last:
            choices[":channels_last"] = ("off", "on")
        return choices

    def point(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """A full point from the choices that differ from FP32 everywhere."""
        return {name: chosen.get(name, values[0]) for name, values in self.choices().items()}

    def uniform(self, choice: Choice) -> dict[str, str]:
        """The point with ``choice`` wherever it is legal, BF16 where FP8 does not fit, and FP32 elsewhere."""
        chosen: dict[str, str] = {}
        for group in self.module_groups():
            legal = [c for c in (choice, Choice(choice.output_format)) if c in group.choices]
            chosen[group.name] = (legal or [FP32])[0].label
        return self.point(chosen)

    def site_choices(self, point: Mapping[str, str]) -> dict[str, Choice]:
        """What each site of the module groups runs in at ``point``, and FP32 for what is fixed."""
        chosen: dict[str, Choice] = {}
        for group in self.groups:
            if group.has_format:
                choice = Choice.parse(point.get(group.name, HIGH)) if group.kind == "module" else FP32
                chosen |= {site: group.site_choice(site, choice) for site in group.sites}
        return chosen

    def under_autocast(self, number_format: Format) -> dict[str, str]:
        """The point most like autocast in a 16-bit format: products are lowered, and sensitive ops stay in FP32."""
        low = Choice(number_format)
        groups = [group for group in self.module_groups() if group.multiplies and low in group.choices]
        return self.point({group.name: low.label for group in groups})

    def is_legal(self, point: Mapping[str, str]) -> bool:
        """Whether FP16 and BF16 meet nowhere."""
        return not any(len(self._halves(point, names)) > 1 for names in self.meets)

    def made_legal(self, point: Mapping[str, str]) -> dict[str, str]:
        """The point, with what is FP16 turned into BF16 wherever the two meet (or into FP32 where BF16 is none)."""
        legal = dict(point)
        values = self.choices()
        # Turning one group can make it meet another; each round turns at least one, so this ends.
        while clashing := [names for names in self.meets if len(self._halves(legal, names)) > 1]:
            for name in clashing[0]:
                if Choice.parse(legal[name]).output_format is Format.FP16:
                    legal[name] = BF16.label if BF16.label in values[name] else HIGH
        return legal

    def _halves(self, point: Mapping[str, str], names: Iterable[str]) -> set[Format]:
        return {Choice.parse(point[name]).output_format for name in names} - {Format.FP32}

    def _region_format(self, group: Group, chosen: Mapping[str, Choice]) -> Format:
        """FP16 where all that arrives in 16 bits is FP16."""
        formats = {chosen[feed].output_format for feed in group.feeds} - {Format.FP32}
        return Format.FP16 if formats == {Format.FP16} else Format.BF16

    def _of_product(self, site: str, group: Group, chosen: Mapping[str, Choice]) -> dict[str, SitePlan]:
        """What the plan says of a product that a forward computes itself: nothing where all around it is FP32."""
        path = site.partition("#")[0]
        around = (other for other in self._products() if other != path and is_within(path, (other,)))
        lowered = chosen[site] != FP32 or any(chosen[feed] != FP32 for feed in group.feeds)
        if not lowered and all(chosen[other] == FP32 for above in around for other in self._products()[above]):
            return {}
        return {site: SitePlan(chosen[site].format, how="autocast")}

    def _of_uncalled(self, path: str, sites: Mapping[str, SitePlan]) -> SitePlan:
        """What the plan says of a module that the batch does not reach: what one of its role has, FP8 left out, which
        may not fit what arrives."""
        how, twin = self.uncalled[path]
        like = sites.get(twin or "", SitePlan(Format.FP32, how=how))
        low = Choice(like.format, like.scaling).output_format
        return SitePlan(low, pad=0 if like.scaling else like.pad, how=how, pad_in=0 if like.scaling else like.pad_in)

    def _products(self) -> dict[str, list[str]]:
        """Module path -> products that its forward computes itself, whose region is a choice."""
        found: dict[str, list[str]] = {}
        for group in self.groups:
            for site in group.sites if group.has_format else ():
                if "#" in site:
                    found.setdefault(site.partition("#")[0], []).append(site)
        return found

    def fingerprint(self) -> str:
        """Changes when the space does: a study of another space is not continued."""
        groups = [(g.name, g.sites, g.how, sorted(g.fp8)) for g in self.groups]
        text = json.dumps([SPLITTING, self.choices(), groups, sorted(self.strided)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def decode(self, point: Mapping[str, str], table: CostTable, header: Mapping[str, Any]) -> Plan:
        """The plan of a point. ``header`` gives the fields that name the model and the device."""
        chosen = self.site_choices(point)
        sites: dict[str, SitePlan] = {}
        for group in self.groups:
            for site, how in zip(group.sites, group.how, strict=True):
                if group.has_format and how == "autocast" and "#" in site:
                    sites |= self._of_product(site, group, chosen)
                elif group.has_format:
                    choice, cost = chosen[site], table.site(site, chosen[site])
                    strided = bool(cost.pad) and site in self.strided
                    sites[site] = SitePlan(
                        choice.format, choice.scaling, cost.pad, how, pad_in=cost.pad_in, strided=strided
                    )
                elif group.feeds and all(chosen[feed] == FP32 for feed in group.feeds):
                    continue
                elif group.kind == "region":
                    sites[site] = SitePlan(self._region_format(group, chosen), how=how)
                elif point.get(group.name, HIGH) == HIGH and not _is_idle(group, chosen):
                    sites[site] = SitePlan(Format.FP32, how=how)
        if any(choice != FP32 for choice in chosen.values()):
            sites |= {path: self._of_uncalled(path, sites) for path in self.uncalled}
        plan = Plan(
            sites=sites,
            tf32=point.get(":tf32") == "on",
            channels_last=point.get(":channels_last") == "on",
            loss_format=None if point.get(":loss") == "follow" else Format.FP32,
            loss_compile=point.get(":loss") == COMPILED_LOSS,
            **header,
        )
        return dataclasses.replace(plan, scaler=ScalerConfig(enabled=plan.uses_fp16))


def _is_idle(pin: Group, chosen: Mapping[str, Choice]) -> bool:
    """Whether all that arrives at a pin is in FP32, as far as that is known."""
    return bool(pin.arriving) and all(any(chosen[site] == FP32 for site in each) for each in pin.arriving)

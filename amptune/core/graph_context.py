"""What a graph rule is given: the graph, the hardware and recipes asked about, and the dtypes that result."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, cast

from amptune.core.autocast import DeviceType, SiteDtypes, realise
from amptune.core.bounds.ranges import NOTHING, Assumptions, Ranges
from amptune.core.bounds.structure import Structure
from amptune.core.evidence import Evidence
from amptune.core.finding import Finding, Location, Severity
from amptune.core.formats import Format
from amptune.core.graph import Gemm, PrecisionGraph, Site
from amptune.core.hardware import Gpu
from amptune.core.operands import COPIES_ONE, input_of
from amptune.core.ops import Family, op_named
from amptune.core.recipes import STOCK, Recipe
from amptune.core.rule import GraphRule

NO_EVIDENCE = Evidence()
Mode = Literal["eager", "compile"]
SMALL_GEMM_FLOPS = 1_000_000
"""A matrix product under this is bound by its launch: its shape does not matter."""
SMALL_SHARE = 0.01
LARGE_SHARE = 0.05
"""Shares of the model's FLOPs under which a shape is not reported, and from which it is worth a warning."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The model under one recipe on one type of device."""

    recipe: Recipe
    device: DeviceType
    dtypes: Mapping[str, SiteDtypes] = dataclasses.field(hash=False)
    graph: PrecisionGraph = dataclasses.field(hash=False)
    facts: Assumptions = dataclasses.field(default=NOTHING, hash=False)
    structure: Structure | None = dataclasses.field(default=None, hash=False, compare=False)

    @property
    def label(self) -> str:
        """How a message names it."""
        return f"{self.recipe.name} on the CPU" if self.device == "cpu" else self.recipe.name

    @functools.cached_property
    def ranges(self) -> Ranges:
        """Bounds from the ops, the literals and what the user stated."""
        return Ranges(self.graph, self.dtypes, self.facts, self.structure)


class GraphContext:
    """All that a graph rule may ask.

    Attributes:
        graph: the sites and tensors.
        gpus: devices asked about.
        gpus_named: whether the user named them or they are present; False for the default table, on which a gap of
            the hardware is nothing that the user has to act on.
        recipes: recipes asked about.
        recipes_named: whether the user named them.
        mode: eager, or compiled with torch.compile.
        train: whether there is a backward.
        torch_version: such as ``2.13.0``.
        path: the model's file, for findings whose site has no source line.
        evidence: what is assumed and what was seen of the values.
        step_ms: predicted step time by (GPU key, recipe name), where one was made and the GPU sets it: in a step that
            is bound by launches on the processor, faster kernels save nothing. Without recipes whose format the GPU
            emulates, which nobody is to use there.
        waiting: keys of the GPUs whose step in their best 16-bit format waits for the processor.
        calls: the graph with each call of a site apart, for the rules that judge those; by default ``graph``.
    """

    def __init__(
        self,
        graph: PrecisionGraph,
        gpus: tuple[Gpu, ...],
        *,
        gpus_named: bool = True,
        recipes: tuple[Recipe, ...] = STOCK,
        recipes_named: bool = False,
        mode: Mode = "eager",
        train: bool = True,
        torch_version: str = "",
        path: str = "model.py",
        step_ms: Mapping[tuple[str, str], float] | None = None,
        waiting: Collection[str] = (),
        evidence: Evidence = NO_EVIDENCE,
        calls: PrecisionGraph | None = None,
    ) -> None:
        self.graph = graph
        self._calls = graph if calls is None else calls
        self._whole = graph
        self.gpus = gpus
        self.gpus_named = gpus_named
        self.recipes = recipes
        self.recipes_named = recipes_named
        self.mode = mode
        self.train = train
        self.torch_version = torch_version
        self.path = path
        self.step_ms = dict(step_ms or {})
        self.waiting = frozenset(waiting)
        self.evidence = evidence
        self._bounds: dict[str, Ranges] = {}
        self._dtypes: dict[tuple[Recipe, DeviceType], Mapping[str, SiteDtypes]] = {}

    @functools.cached_property
    def by_calls(self) -> GraphContext:
        """The same over the graph of calls; shares of the model and repeated blocks stay those of its sites."""
        if self._calls is self.graph:
            return self
        found = GraphContext(
            self._calls,
            self.gpus,
            gpus_named=self.gpus_named,
            recipes=self.recipes,
            recipes_named=self.recipes_named,
            mode=self.mode,
            train=self.train,
            torch_version=self.torch_version,
            path=self.path,
            step_ms=self.step_ms,
            waiting=self.waiting,
            evidence=self.evidence.of_calls(self._calls),
        )
        found._whole = self._whole
        found._dtypes = self._dtypes
        return found

    @functools.cached_property
    def _flops(self) -> int:
        return max(self._whole.flops, 1)

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """The model under each recipe asked about, on each type of device asked about.

        FP8 recipes are left out: what is not a linear runs in them as under BF16 autocast.
        """
        devices: list[DeviceType] = []
        for device, wanted in (("cuda", True), ("cpu", False)):
            if any(gpu.is_cuda is wanted for gpu in self.gpus):
                devices.append(cast("DeviceType", device))
        recipes = [recipe for recipe in self.recipes if not recipe.fp8 and not recipe.is_tf32]
        return tuple(self._run(recipe, device) for device in devices for recipe in recipes)

    def _run(self, recipe: Recipe, device: DeviceType) -> Run:
        dtypes = self.realised(recipe, device)
        return Run(recipe, device, dtypes, self.graph, self.evidence.facts, self._structure)

    @functools.cached_property
    def _structure(self) -> Structure:
        return Structure(self.graph)

    def bounds_under(self, recipe: Recipe, assumed: Assumptions) -> Ranges:
        """Bounds under a recipe on a GPU and under given assumptions, be the recipe asked about or not."""
        run = next((run for run in self.runs if run.recipe == recipe and run.device == "cuda"), None)
        if run is not None and assumed is self.evidence.facts:
            return run.ranges
        if run is not None and assumed is self.evidence.assumptions and (known := self.bounds(run)) is not None:
            return known
        return Ranges(self.graph, self.realised(recipe), assumed, self._structure)

    def bounds(self, run: Run) -> Ranges | None:
        """Bounds under the assumed inputs and weights; ``None`` where nothing is assumed."""
        if self.evidence.assumptions is None:
            return None
        if run.label not in self._bounds:
            self._bounds[run.label] = Ranges(self.graph, run.dtypes, self.evidence.assumptions, self._structure)
        return self._bounds[run.label]

    def bounds_with_batch(self, run: Run) -> Ranges | None:
        """Bounds with the numbers of the batch, whatever the weights are; ``None`` where no batch is known."""
        assumed = self.evidence.assumptions
        if assumed is None:
            return None
        key = f"{run.label}, batch"
        if key not in self._bounds:
            given = dataclasses.replace(self.evidence.facts, inputs=assumed.inputs)
            self._bounds[key] = Ranges(self.graph, run.dtypes, given, self._structure)
        return self._bounds[key]

    def realised(self, recipe: Recipe, device: DeviceType = "cuda") -> Mapping[str, SiteDtypes]:
        """Site id -> dtypes under a recipe, of each call apart: what reads a later call reads that call's dtype."""
        key = recipe, device
        if key not in self._dtypes:
            self._dtypes[key] = realise(self._calls, recipe, device)
        return self._dtypes[key]

    @functools.cached_property
    def weighted(self) -> frozenset[str]:
        """Ids of the sites that a parameter has a part in: all but those that are worked out from the batch alone."""
        fresh = [site.id for site in self.graph if site.params or site.opaque or site.attrs.get("operand_params")]
        found = set(fresh)
        while fresh:
            new = set(self.graph.graph.successors(fresh.pop())) - found
            new = {name for name in new if name not in self.graph or _takes_part(self.graph[name], found)}
            found |= new
            fresh += new
        return frozenset(found)

    def sites_in_half(self, *ops: str) -> Iterator[tuple[Site, tuple[Run, ...]]]:
        """Sites of the named ops whose arithmetic and result are in 16 bits, with the runs in which they are; not
        those in which torch refuses to run them."""
        for site in self.graph:
            if site.op in ops and (runs := tuple(run for run in self.runs if _is_in_half(run.dtypes[site.id]))):
                yield site, runs

    def share(self, site: Site) -> float:
        """The share of the model's forward FLOPs of a site and its like: the same op of the same width on the same
        line, as in all blocks."""
        return self._group_flops[_group(site)] / self._flops

    def share_of_line(self, site: Site) -> float:
        """The share of the model's forward FLOPs of the same op on the same line, of any width."""
        return self._line_flops[_place(site)] / self._flops

    def repeats(self, site: Site) -> int:
        """In how many blocks the site repeats: the same op of the same width on the same line, itself included."""
        return self._group_sizes[_group(site)]

    @functools.cached_property
    def _group_sizes(self) -> Mapping[object, int]:
        return collections.Counter(_group(site) for site in self._whole)

    @functools.cached_property
    def _line_flops(self) -> Mapping[object, int]:
        return self._flops_by(_place)

    @functools.cached_property
    def _group_flops(self) -> Mapping[object, int]:
        return self._flops_by(_group)

    def _flops_by(self, key: Callable[[Site], object]) -> Mapping[object, int]:
        totals: collections.Counter[object] = collections.Counter()
        for site in self._whole:
            totals[key(site)] += site.flops
        return totals

    def large_gemms(self, *families: Family) -> Iterator[tuple[Site, Gemm]]:
        """Matrix products worth a word, one for each shape of a site: neither tiny nor a tiny part of the model."""
        return ((site, gemm) for site, gemm in self.gemms(*families) if self.share(site) >= SMALL_SHARE)

    def gemms(self, *families: Family) -> Iterator[tuple[Site, Gemm]]:
        """Matrix products that are not bound by their launch, one for each shape of a site."""
        for site in self.graph:
            if op_named(site.op).family in families:
                for gemm in dict.fromkeys(site.gemms):
                    if gemm.flops >= SMALL_GEMM_FLOPS:
                        yield site, gemm

    def stays_wide(self, site: Site) -> bool:
        """Whether a site runs in FP32 or FP64 under each recipe that has a 16-bit format, as where autocast is off: it
        has no rows in 16 bits."""
        runs = [run for run in self.runs if run.recipe.half is not None]
        wide = ("float32", "float64")
        return bool(runs) and not site.opaque and all(run.dtypes[site.id].compute in wide for run in runs)

    def tensor_core_gpus(self) -> tuple[Gpu, ...]:
        """GPUs asked about; the CPU is left out, it has no tensor cores to align for."""
        return tuple(gpu for gpu in self.gpus if gpu.is_cuda)

    def step_share(self, gpu: Gpu, recipe: str, milliseconds: float) -> float | None:
        """``milliseconds`` as a share of the predicted step; ``None`` without a prediction."""
        step = self.step_ms.get((gpu.key, recipe))
        return milliseconds / step if step else None

    def location(self, site: Site | None) -> Location:
        """The source line of a site, or the start of the model's file."""
        return site.location if site and site.location else Location(self.path, 1)

    def finding(
        self, rule: GraphRule, site: Site | None, message: str, *, severity: Severity | None = None, **evidence: Any
    ) -> Finding:
        """A finding of ``rule`` at a site; the severity is the rule's unless another is given."""
        return Finding(
            rule=rule.code,
            name=rule.name,
            severity=rule.severity if severity is None else severity,
            message=message,
            location=self.location(site),
            site=site.site_id if site else None,
            evidence=evidence if site is None or site.call is None else {**evidence, "calls": [site.call]},
        )


def _takes_part(site: Site, among: Collection[str]) -> bool:
    """Whether the numbers of a site come from one of the named ones, rather than the places that it takes them from."""
    if site.op not in _PICKS or site.attrs.get("in_place") or "later_sources" in site.attrs:
        return True
    position = input_of(site, 0)
    return position is None or site.sources[position] in among


_PICKS = COPIES_ONE | {"grid_sample"}


def _is_in_half(dtypes: SiteDtypes) -> bool:
    return dtypes.in_half and not dtypes.raises


def _group(site: Site) -> object:
    """What repeated blocks have in common: their place, and the widths of what they multiply. All layers of an
    nn.Sequential, or behind one wrapper, run at one line."""
    return _place(site), frozenset((gemm.n, gemm.k) for gemm in site.gemms)


def _place(site: Site) -> object:
    """The source line and the op, or else the path without its numbers."""
    return (site.op, site.location) if site.location else re.sub(r"\d+", "*", site.id)


def listed(gpus: Iterable[Gpu]) -> str:
    """GPUs for a message: ``v100 (sm_70) and t4 (sm_75)``."""
    names = [f"{gpu.key} ({gpu.arch})" for gpu in gpus]
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def formats_in(runs: tuple[Run, ...], site: Site) -> tuple[Format, ...]:
    """The 16-bit formats that a site computes in, over some runs."""
    names = {run.dtypes[site.id].compute for run in runs}
    return tuple(number_format for number_format in (Format.FP16, Format.BF16) if number_format.torch_name in names)


def stopped(runs: tuple[Run, ...]) -> list[str]:
    """Names of the recipes of some runs on CUDA, for a finding's evidence of recipes under which the model raises."""
    return [run.recipe.name for run in runs if run.device == "cuda"]


def recipes_in(runs: tuple[Run, ...]) -> str:
    """The recipes of some runs, for a message: ``autocast-bf16 and autocast-fp16``."""
    names = list(dict.fromkeys("the model's own dtypes" if run.recipe.half is None else run.label for run in runs))
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"

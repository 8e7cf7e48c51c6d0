"""Predicted step time and memory of each recipe on each GPU: a roofline over the sites, nothing is run.

Assumptions, beside those of ``core.roofline`` (kernels), ``analyze.moves`` (bytes), ``analyze.kernels`` (casts),
``analyze.fusion`` (compiled models) and ``analyze.memory``:

- A step is forward, loss, backward and one fused AdamW step on FP32 states (28 bytes of traffic for each parameter).
- Kernels run one after the other. In eager mode the processor launches each of them, and the step takes the longer of
  launching and running: max(launches, kernels), never the kernels alone. A view, the forward of a module and the
  gradient of a parameter take the processor as long as an op; a cast by autocast and each further kernel of an op take
  it less (``analyze.kernels``).
- The input pipeline costs nothing. One GPU; no communication.
- The fixed model (``+fixed``) has misaligned dimensions of its products padded and convolutions in channels_last.
- FP8 recipes convert the linear modules whose dimensions FP8 takes; all else runs under BF16 autocast.

How far this is from measured steps is printed by tests/benchmarks/estimate_check.py.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amptune.analyze.stepcost.kernels import Groups, Kernel, Move, Setting, has_grouped_kernel
from amptune.analyze.stepcost.memory import Memory, step_memory
from amptune.analyze.stepcost.stepkernels import StepKernels, Times, counted
from amptune.core.autocast import HALF, SiteDtypes, realise
from amptune.core.closeness import FIXED
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site
from amptune.core.graph_context import Mode
from amptune.core.hardware import Gpu
from amptune.core.recipes import RECIPES, Recipe, converts_to_fp8
from amptune.core.roofline import Traffic, efficiency_of, peak_of

ADAMW_BYTES = 7
"""Times the bytes of a parameter: it and two moments are read and written, the gradient is read."""
UNSCALE_BYTES = 2
"""Times the bytes of a gradient: GradScaler reads and writes them all before the step."""
_NOTICEABLE = 0.01
COMPILED_LAUNCH_SHARE = 0.45
"""Of the eager processor time for each kernel: no Python between them."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One recipe on one GPU.

    Attributes:
        step_ms: predicted time of a training step.
        memory: predicted memory.
        speedup: FP32's step over this one.
        bound: whether the GPU or the launches on the processor set the time.
        fits: False where the recipe does not fit the GPU's memory.
        gpu_ms, launch_ms: time of the kernels, and of the processor, which launches them and waits for some.
        own: 16-bit dtypes that the model itself has beside the recipe, by their share of its FLOPs: those of its
            parameters, casts and autocast regions. Empty for recipes that are in 16 bits anyway.
        stops: why the model does not run under the recipe, and the numbers mean nothing; empty where it does.
    """

    step_ms: float
    memory: Memory
    speedup: float
    bound: str
    fits: bool
    gpu_ms: float = 0.0
    launch_ms: float = 0.0
    own: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    stops: str = ""

    def to_json(self) -> dict[str, Any]:
        """The form in analyze's JSON: nulls and a reason for a recipe under which the model does not run."""
        if self.stops:
            return dict.fromkeys(_NUMBERS) | {"reason": self.stops}
        return {
            "step_ms": round(self.step_ms, 4),
            "memory_bytes": self.memory.peak,
            "speedup": round(self.speedup, 3),
            "bound": self.bound,
            "fits": self.fits,
            "gpu_ms": round(self.gpu_ms, 4),
            "launch_ms": round(self.launch_ms, 4),
            **({"own_formats": dict(self.own)} if self.own else {}),
        }


_NUMBERS = ("step_ms", "memory_bytes", "speedup", "bound", "fits", "gpu_ms", "launch_ms")


def launch_words(gpu: Gpu, mode: Mode) -> str:
    """What launches on the processor are taken to cost beside this GPU, and where that is from."""
    share = COMPILED_LAUNCH_SHARE if mode == "compile" else 1.0
    each = share * statistics.mean(efficiency_of(gpu).launch_us)
    source = "measured here" if gpu.measured else "assumed, as beside one H200; a faster processor takes less"
    return f"{each:.0f} us each ({source})"


@dataclasses.dataclass(frozen=True)
class SiteTimes:
    """Predicted milliseconds of one site in a step, by recipe (``+fixed`` included), and what goes wrong in 16 bits."""

    site: Site
    milliseconds: Mapping[str, float] = dataclasses.field(hash=False)
    why: str = ""

    @property
    def gain(self) -> float:
        """What the best recipe saves against FP32, in milliseconds."""
        return self.milliseconds.get("fp32", 0.0) - min(self.milliseconds.values(), default=0.0)


def estimate_all(
    graph: PrecisionGraph,
    gpus: Sequence[Gpu],
    recipes: Sequence[Recipe],
    *,
    mode: Mode = "eager",
    train: bool = True,
    holds_output: bool = True,
    kernels: StepKernels | None = None,
) -> dict[str, dict[str, Estimate]]:
    """GPU key -> recipe name -> prediction, for GPUs with tabulated peaks and recipes that they and the model can run.

    Args:
        graph: the captured model.
        gpus: devices; those without peaks (the CPU) are left out.
        recipes: recipes to predict. FP32 is always predicted, as the base of the speedups.
        mode: eager or compile.
        train: with a backward and an optimizer step.
        holds_output: whether the training loop keeps the model's output in a variable through the backward.
        kernels: those of the graph, where they are used elsewhere too.
    """
    kernels = kernels or StepKernels(graph)
    wanted = [recipe for recipe in dict.fromkeys([RECIPES["fp32"], *recipes]) if applies(graph, recipe)]
    tables: dict[str, dict[str, Estimate]] = {gpu.key: {} for gpu in gpus if gpu.is_cuda}
    realised = _Realised(graph)
    for recipe in wanted:
        able = [gpu for gpu in gpus if gpu.is_cuda and can_run(recipe, gpu)]
        if not able:
            continue
        setting = Setting(recipe, train=train, fused=mode == "compile", holds_output=holds_output)
        dtypes = realised.under(recipe)
        memory = step_memory(graph, dtypes, setting)
        for fixed in (False, True):
            exact = dataclasses.replace(setting, fixed=fixed)
            work = _Work(kernels, graph, exact, dtypes, memory)
            for gpu in able:
                tables[gpu.key][recipe.name + (FIXED if fixed else "")] = work.on(gpu, tables[gpu.key])
    asked = {recipe.name for recipe in recipes} | {"fp32"}
    return {key: {n: e for n, e in table.items() if n.removesuffix(FIXED) in asked} for key, table in tables.items()}


def own_halves(graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes]) -> dict[str, float]:
    """16-bit dtype -> share of the FLOPs of a model that it computes, from a hundredth on."""
    shares: dict[str, float] = {}
    for site in graph:
        dtype = dtypes[site.id].compute
        if dtype in HALF:
            shares[dtype] = shares.get(dtype, 0.0) + site.flops / max(graph.flops, 1)
    return {dtype: round(share, 4) for dtype, share in shares.items() if share >= _NOTICEABLE}


def applies(graph: PrecisionGraph, recipe: Recipe) -> bool:
    """Whether the recipe changes anything in this model: an FP8 recipe without a layer to convert is BF16 autocast."""
    return recipe.fp8 is None or any(converts_to_fp8(site) for site in graph)


def can_run(recipe: Recipe, gpu: Gpu) -> bool:
    """Whether the GPU multiplies in the recipe's format at all; TF32 without TF32 units is no recipe of its own."""
    if recipe.is_tf32:
        return gpu.is_native(Format.TF32)
    return peak_of(gpu, recipe.format) > 0


class _Realised:
    """The dtypes of a graph under recipes; those that differ in TF32 or FP8 alone have the same."""

    def __init__(self, graph: PrecisionGraph) -> None:
        self._graph = graph
        self._known: dict[tuple[Format | None, Format | None], dict[str, SiteDtypes]] = {}

    def under(self, recipe: Recipe) -> Mapping[str, SiteDtypes]:
        """Site id -> dtypes."""
        key = recipe.autocast, recipe.params
        if key not in self._known:
            self._known[key] = realise(self._graph, recipe)
        return self._known[key]


class _Work:
    """All kernels of one step under one setting, ready to be timed on any GPU."""

    def __init__(
        self, kernels: StepKernels, graph: PrecisionGraph, setting: Setting,
        dtypes: Mapping[str, SiteDtypes], memory: Memory,
    ) -> None:  # fmt: skip
        self.setting = setting
        self.kernels = counted(kernels.of(dtypes, _timed(setting)).values())
        self.groups = [
            (kernel, count)
            for each, count in self.kernels
            for kernel in (*each.forward, *each.backward)
            if isinstance(kernel, Groups)
        ]
        self.memory = memory
        self.own = {} if setting.recipe.half else own_halves(graph, dtypes)
        self.extra = [*kernels.accumulations.under(dtypes, setting), *_optimizer(self.memory, setting)]
        self.views = sum(int(site.attrs.get("viewed", 0)) * site.calls for site in graph)
        self.modules = _modules(graph)
        self.trained = _trained_params(graph) if setting.train else 0

    def on(self, gpu: Gpu, others: Mapping[str, Estimate]) -> Estimate:
        """The prediction for one GPU; ``others`` has the FP32 one already."""
        times = Times(gpu)
        running = sum(times.of_site(each) * count for each, count in self.kernels)
        running += sum(times.of(kernel) for kernel in self.extra)
        launching = self._launch_seconds(gpu) + self._stood_seconds(times, gpu)
        step = max(running, launching) * 1e3
        base = others.get("fp32")
        return Estimate(
            step_ms=step,
            memory=self.memory,
            speedup=base.step_ms / step if base and step else 1.0,
            bound="launch" if launching > running else "gpu",
            fits=self.memory.peak <= gpu.memory,
            gpu_ms=running * 1e3,
            launch_ms=launching * 1e3,
            own=self.own,
        )

    def _stood_seconds(self, times: Times, gpu: Gpu) -> float:
        """What the processor stands still for: products group by group, each of which it waits for before the next, so
        that little else is queued meanwhile (beside an H200, Mixtral's step in TF32 took the time of both)."""
        waits = ((kernel, count) for kernel, count in self.groups if not has_grouped_kernel(kernel.format, gpu))
        return sum(times.of(kernel) * count for kernel, count in waits)

    def _launch_seconds(self, gpu: Gpu) -> float:
        ahead, behind = efficiency_of(gpu).launch_us
        forward = sum(_ops(kernel, gpu) * count for each, count in self.kernels for kernel in each.forward)
        forward += self.modules
        backward = sum(_ops(kernel, gpu) * count for each, count in self.kernels for kernel in each.backward)
        backward += len(self.extra) + self.trained
        # A view launches nothing, but is an op forward and a node of autograd backward: half of an op each.
        views = self.views * (ahead + behind * self.setting.train) / 2
        eager = (forward * ahead + backward * behind + views) * 1e-6
        return eager * (COMPILED_LAUNCH_SHARE if self.setting.fused else 1.0)


def _ops(kernel: Kernel, gpu: Gpu) -> float:
    return kernel.ops + (kernel.further_ops(gpu) if isinstance(kernel, Groups) else 0.0)


def _modules(graph: PrecisionGraph) -> int:
    """Modules whose forward runs: those of the sites and all that hold them."""
    found: set[str] = set()
    for site in graph:
        parts = site.module.split(".")
        found.update(".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return len(found)


def _trained_params(graph: PrecisionGraph) -> int:
    """Parameters whose gradients are put in place and handed to the optimizer, one by one."""
    return len({param.key or param.name for site in graph for param in site.params if param.meta.requires_grad})


def _timed(setting: Setting) -> Setting:
    """A setting without what times do not depend on."""
    return dataclasses.replace(setting, holds_output=True)


def _optimizer(memory: Memory, setting: Setting) -> Iterable[Kernel]:
    if setting.train and memory.gradients:
        yield Move(Traffic.OPTIMIZER, ADAMW_BYTES * memory.gradients)
        if setting.recipe.half is Format.FP16:
            yield Move(Traffic.OPTIMIZER, UNSCALE_BYTES * memory.gradients)


def site_times(
    graph: PrecisionGraph, gpu: Gpu, recipes: Sequence[Recipe], *, mode: Mode = "eager", train: bool = True,
    kernels: StepKernels | None = None,
) -> list[SiteTimes]:  # fmt: skip
    """Predicted times of every site on one GPU, those with the largest gain first."""
    times, kernels = Times(gpu), kernels or StepKernels(graph)
    found: dict[str, dict[str, float]] = {site.id: {} for site in graph}
    realised = _Realised(graph)
    for recipe in dict.fromkeys([RECIPES["fp32"], *recipes]):
        if not (can_run(recipe, gpu) and applies(graph, recipe)):
            continue
        dtypes = realised.under(recipe)
        for fixed in (False, True):
            setting = Setting(recipe, fixed=fixed, train=train, fused=mode == "compile")
            for name, each in kernels.of(dtypes, setting).items():
                found[name][recipe.name + (FIXED if fixed else "")] = times.of_site(each) * 1e3
    table = [SiteTimes(graph[name], milliseconds) for name, milliseconds in found.items()]
    return sorted(table, key=lambda row: -row.gain)

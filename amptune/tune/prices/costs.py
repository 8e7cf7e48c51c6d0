"""The measured cost table: what each unique site takes in each choice on this device, and what casts cost.

Sites with equal type, parameters and input shapes cost the same, so each such signature is measured once. Sites are
measured by themselves, in eager mode, with inputs already in their format: casts are priced on the graph's edges.
Under torch.compile, matrix products take what they take in eager mode; what is bound by memory is fused with its
neighbours, so it is priced by the bytes that it moves, and casts cost nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from amptune.apply import held_values, paddings
from amptune.capture.fakes import map_tensors
from amptune.core.choice import FP32, TF32, Choice
from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, SiteCost
from amptune.tune.choices.space import Space
from amptune.tune.prices.costcache import CostCache
from amptune.tune.prices.functioncalls import FunctionModule, is_function, places_of, watching
from amptune.tune.prices.sitetimes import HEAD_START_CYCLES, Call, FloatTensor, Variant, time_site
from amptune.tune.running.compilation import as_written
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import Candidate, backend_flags
from amptune.tune.running.training import Workbench, loss_of, training

HOPELESS = 5.0
"""A format whose warm-up takes this many times the FP32 time is not measured further."""
HOPELESS_MS = 5.0
"""And it must be this much slower, so that a hiccup in a site of microseconds does not count."""
CAST_SIZES = (1 << 12, 1 << 20)
CAST_SIZES_GPU = (1 << 16, 1 << 25)
CAST_REPEATS = 9
CAST_LAUNCHES = 100
"""Casts that are queued at once: fewer than a GPU's queue holds."""
FUSED_PASSES = 5
"""Times that a fused pointwise or norm module moves its tensor: forward reads and writes, backward reads the gradient
and the input and writes the input's gradient."""
_FUSED = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.PReLU, nn.Softmax, nn.GELU)


def measure_costs(
    bench: Workbench,
    num_calls: Mapping[str, int],
    batch: Any,
    choices: Mapping[str, Sequence[Choice]],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    fused: bool = False,
    layouts: bool = False,
    tf32: bool = False,
    cache: CostCache | None = None,
) -> CostTable:
    """Cost of every module site in FP32 and in each of its ``choices``, of products that a forward computes itself, and
    the cast prices.

    Args:
        bench: the live model.
        num_calls: each of these sites -> how often one forward of the model calls it.
        batch: what to run it on.
        choices: path -> what may be decided for it.
        progress: told (done, total) of the unique sites.
        fused: price for torch.compile.
        layouts: measure sites that images pass through in channels_last format as well.
        tf32: measure what multiplies matrices in FP32 with TF32 as well.
        cache: costs that are known already; None measures all.
    """
    functions = [site for site in num_calls if is_function(site)]
    calls = record_calls(bench, [site for site in num_calls if not is_function(site)], batch)
    recorded: dict[str, tuple[nn.Module, Call]] = {
        path: (bench.model.get_submodule(path), call) for path, call in calls.items()
    }
    recorded.update(record_functions(bench, functions, batch))
    alike: dict[tuple[Any, ...], list[str]] = {}
    for path, (module, call) in recorded.items():
        key = (_signature(module, call), tuple(choices[path]))
        alike.setdefault(key, []).append(path)
    measure = SiteMeasure(bench.device, cache or CostCache(bench.device), fused, tf32)
    sites: dict[str, dict[Choice, SiteCost]] = {}
    images: dict[str, dict[Choice, SiteCost]] = {}
    for done, ((_, offered), paths) in enumerate(alike.items()):
        progress(done, len(alike))
        module, call = recorded[paths[0]]
        tables = [(sites, measure.site(module, call, offered))]
        if layouts and _takes_images(call):
            tables.append((images, measure.site(module, call, offered, channels_last=True)))
        for table, costs in tables:
            for path in paths:
                table[path] = {choice: cost.times(num_calls[path]) for choice, cost in costs.items()}
    measure.cache.save()
    formats = {Format.FP32} | {choice.output_format for offered in choices.values() for choice in offered}
    casts = measure_casts(sorted(formats, key=list(Format).index), bench.device)
    if fused:
        return CostTable(sites, dict.fromkeys(casts, CastPrice(0.0, 0.0)), images)
    return CostTable(sites, casts, images, launching=launching_ms(bench.device))


def with_held(table: CostTable, model: nn.Module, space: Space) -> CostTable:
    """The table with the tensors that modules hold beside their layers: each is cast once a step, and back again."""
    tensors, names = held_values(model), space.held()
    held = {
        site: {
            choice: SiteCost(table.cast(Format.FP32, choice.output_format, tensors[site].numel()))
            for choice in group.site_choices(site)
        }
        for group in space.module_groups()
        for site in group.sites
        if site in names
    }
    images = {**table.channels_last, **held} if table.channels_last else table.channels_last
    return dataclasses.replace(table, sites={**table.sites, **held}, channels_last=images)


@dataclasses.dataclass
class SiteMeasure:
    """Measures sites, or takes what is known of them; the arguments are those of :func:`measure_costs`."""

    device: Device
    cache: CostCache
    fused: bool = False
    tf32: bool = False
    _bandwidth: float | None = None

    def site(
        self, module: nn.Module, call: Call, choices: Sequence[Choice], *, channels_last: bool = False
    ) -> dict[Choice, SiteCost]:
        """Cost of one leaf module in FP32 and in each choice, with the best padding."""
        with backend_flags(False):
            return self._site(module, call, choices, channels_last)

    def _site(
        self, module: nn.Module, call: Call, choices: Sequence[Choice], channels_last: bool
    ) -> dict[Choice, SiteCost]:
        if self.fused and isinstance(module, _FUSED):
            return {choice: self._by_bytes(call, choice) for choice in (FP32, *choices)}
        signature = _signature(module, call)
        base = self._known(module, call, signature, Variant(FP32, 0, channels_last), float("inf"))
        if math.isinf(base.ms):
            # It does not run on numbers of our own: what its formats take, only whole steps will tell.
            return dict.fromkeys((FP32, *choices), SiteCost(0.0))
        costs = {FP32: base}
        if self.tf32 and _multiplies(module):
            with backend_flags(True):
                costs[TF32] = self._known(module, call, signature, Variant(TF32, 0, channels_last), float("inf"))
        limit = max(HOPELESS * base.ms, base.ms + HOPELESS_MS)
        for choice in choices:
            if choice != FP32:
                variants = [Variant(choice, pad, channels_last, pad_in) for pad, pad_in in paddings(module)]
                found = [self._known(module, call, signature, variant, limit) for variant in variants]
                costs[choice] = min(found, key=lambda cost: cost.ms)
        return costs

    def _known(self, module: nn.Module, call: Call, signature: Any, variant: Variant, limit: float) -> SiteCost:
        key = (signature, variant)
        cost = self.cache.get(key)
        if cost is None:
            cost = time_site(module, call, variant, self.device, limit)
            self.cache.add(cost, key)
        return cost

    def _by_bytes(self, call: Call, choice: Choice) -> SiteCost:
        if self._bandwidth is None:
            self._bandwidth = bandwidth(self.device)
        elements = sum(_numel(value) for value in [*call.args, *call.kwargs.values()])
        per_pass = elements * choice.output_format.bytes / self._bandwidth * 1e3
        return SiteCost(2 * per_pass, (FUSED_PASSES - 2) * per_pass)


def _multiplies(module: nn.Module) -> bool:
    """Whether a module may be a matrix product, of which TF32 changes the time."""
    if isinstance(module, FunctionModule):
        return True
    return not isinstance(module, nn.Embedding) and any(parameter.ndim > 1 for parameter in module.parameters())


def _takes_images(call: Call) -> bool:
    return any(isinstance(value, FloatTensor) and len(value.shape) == 4 for value in call.args)


def _numel(value: Any) -> int:
    return torch.Size(value.shape).numel() if isinstance(value, FloatTensor) else 0


def record_calls(bench: Workbench, paths: Sequence[str], batch: Any) -> dict[str, Call]:
    """The first call of each leaf module in one real forward of ``batch``."""
    calls: dict[str, Call] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, Call(map_tensors(args, _shape_of), map_tensors(kwargs, _shape_of)))

        return hook

    with as_written(), training(bench, Candidate("fp32")):
        handles = [
            bench.model.get_submodule(path).register_forward_pre_hook(keep(path), with_kwargs=True) for path in paths
        ]
        try:
            loss_of(bench, Candidate("fp32"), batch)
        finally:
            for handle in handles:
                handle.remove()
    return calls


def record_functions(bench: Workbench, sites: Sequence[str], batch: Any) -> dict[str, tuple[FunctionModule, Call]]:
    """The first call of each product that a forward computes itself, in one real forward of ``batch``."""
    found: dict[str, tuple[FunctionModule, Call]] = {}
    held = {id(tensor) for tensor in (*bench.model.parameters(), *bench.model.buffers())}

    def shape_of(tensor: torch.Tensor) -> FloatTensor | torch.Tensor:
        found = _shape_of(tensor)
        is_held = not held.isdisjoint((id(tensor), id(tensor._base)))
        return dataclasses.replace(found, is_held=is_held) if isinstance(found, FloatTensor) else found

    def keep(site: str, function: FunctionModule, args: Any, kwargs: Any, _result: Any) -> None:
        if site not in found:
            found[site] = function, Call(map_tensors(args, shape_of), map_tensors(kwargs, shape_of))

    def run() -> None:
        with as_written():
            loss_of(bench, Candidate("fp32"), batch)

    with training(bench, Candidate("fp32")):
        places = places_of(bench.model, sites, run)
        with watching(bench.model, sites, places, keep):
            if sites:
                run()
    return found


def measure_casts(formats: Sequence[Format], device: Device) -> dict[frozenset[Format], CastPrice]:
    """Fixed and per-byte price of casting there and back again for each pair of formats (a line through two sizes)."""
    prices = {}
    sizes = CAST_SIZES_GPU if device.is_cuda else CAST_SIZES
    for a, b in itertools.combinations(formats, 2):
        times = [_time_cast(size, a, b, device) for size in sizes]
        per_element = max(0.0, (times[1] - times[0]) / (sizes[1] - sizes[0]))
        fixed = max(0.0, times[0] - per_element * sizes[0])
        prices[frozenset((a, b))] = CastPrice(fixed, per_element / 4)
    return prices


def launching_ms(device: Device) -> float:
    """Milliseconds that Python takes to queue a cast of a small tensor and its gradient's way back.

    0 on a CPU, where a cast takes no other time than its own.
    """
    return statistics.median(_queueing_ms(device) for _ in range(CAST_REPEATS)) if device.is_cuda else 0.0


def _queueing_ms(device: Device) -> float:
    x = torch.zeros(16, device=device.torch, requires_grad=True)
    device.synchronize()
    begin = time.perf_counter()
    y = x
    for _ in range(CAST_LAUNCHES // 2):
        y = y.to(torch.bfloat16).to(torch.float32)
    y.backward(torch.ones_like(y))
    return (time.perf_counter() - begin) * 1e3 / CAST_LAUNCHES


def bandwidth(device: Device) -> float:
    """Bytes a second that a large copy reads and writes."""
    size = CAST_SIZES_GPU[1] if device.is_cuda else CAST_SIZES[1]
    x = torch.randn(size, device=device.torch)
    milliseconds = statistics.median(times_of(lambda: x.clone(), device))
    return 2 * x.nbytes / (milliseconds / 1e3)


def _time_cast(size: int, a: Format, b: Format, device: Device) -> float:
    first, second = (getattr(torch, f.torch_name) for f in (a, b))
    x = torch.randn(size, device=device.torch).to(first)
    return statistics.median(times_of(lambda: x.to(second).to(first), device))


def times_of(function: Callable[[], object], device: Device) -> Iterator[float]:
    """Milliseconds of each of several runs, after a first one that does not count."""
    function()
    device.synchronize()
    device.head_start(HEAD_START_CYCLES)
    marks = [(device.mark(), function(), device.mark()) for _ in range(CAST_REPEATS)]
    device.synchronize()
    return (device.elapsed(start, end) for start, _, end in marks)


def _shape_of(tensor: torch.Tensor) -> FloatTensor | torch.Tensor:
    return FloatTensor.like(tensor) if tensor.is_floating_point() else tensor.detach()


def _signature(module: nn.Module, call: Call) -> tuple[Any, ...]:
    """What the cost depends on, the same in every process: it is also a key on disk."""
    parameters = tuple((name, tuple(p.shape), p.requires_grad) for name, p in module.named_parameters())
    shapes = repr(_shape_repr(call.args)) + repr(_shape_repr(call.kwargs))
    cls = type(module)
    return (f"{cls.__module__}.{cls.__qualname__}", module.extra_repr(), parameters, shapes)


def _shape_repr(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), str(value.dtype))
    if isinstance(value, dict):
        return tuple((key, _shape_repr(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(_shape_repr(item) for item in value)
    return value

"""The measured cost table: forward and backward time of each unique site in each choice on this device, and of casts.

Sites with equal type, parameters and input shapes cost the same, so each such signature is measured once. Sites are
measured by themselves, in eager mode, with inputs already in their format: casts are priced on the graph's edges.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from amptune.core.choice import FP32, Choice
from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, SiteCost
from amptune.runtime import apply_plan
from amptune.tune.device import Device
from amptune.tune.recipes import Candidate, backend_flags
from amptune.tune.training import Workbench, loss_of, training

REPEATS = 7
WARMUPS = 4
HOPELESS = 5.0
"""A format whose warm-up takes this many times the FP32 time is not measured further."""
HOPELESS_MS = 5.0
"""And it must be this much slower, so that a hiccup in a site of microseconds does not count."""
PAD = 64
"""Multiple that padded output features are brought to: 128 bytes of 16-bit numbers, what GEMM kernels like best."""
CAST_SIZES = (1 << 12, 1 << 20)

Signature = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """Arguments of one call of a leaf module, with tensors of floats replaced by their shapes to save memory."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FloatTensor:
    """Stands for a floating tensor argument of this shape."""

    shape: tuple[int, ...]
    requires_grad: bool


def measure_costs(
    bench: Workbench,
    num_calls: Mapping[str, int],
    batch: Any,
    choices: Mapping[str, Sequence[Choice]],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CostTable:
    """Cost of every module site in FP32 and in each of its ``choices``, and the cast prices.

    ``num_calls``: path of each module site -> how often one forward of the model calls it.
    """
    calls = record_calls(bench, list(num_calls), batch)
    by_signature: dict[Signature, list[str]] = {}
    for path, call in calls.items():
        key = (_signature(bench.model.get_submodule(path), call), tuple(choices[path]))
        by_signature.setdefault(key, []).append(path)
    sites: dict[str, dict[Choice, SiteCost]] = {}
    for done, paths in enumerate(by_signature.values()):
        progress(done, len(by_signature))
        module = bench.model.get_submodule(paths[0])
        costs = measure_site(module, calls[paths[0]], choices[paths[0]], bench.device)
        for path in paths:
            sites[path] = {choice: cost.times(num_calls[path]) for choice, cost in costs.items()}
    formats = {Format.FP32} | {choice.output_format for offered in choices.values() for choice in offered}
    return CostTable(sites, measure_casts(sorted(formats, key=list(Format).index), bench.device))


def record_calls(bench: Workbench, paths: Sequence[str], batch: Any) -> dict[str, Call]:
    """The first call of each leaf module in one real forward of ``batch``."""
    calls: dict[str, Call] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(path, Call(_shapes_of(args), _shapes_of(kwargs)))

        return hook

    with training(bench, Candidate("fp32")):
        handles = [
            bench.model.get_submodule(path).register_forward_pre_hook(keep(path), with_kwargs=True) for path in paths
        ]
        try:
            loss_of(bench, Candidate("fp32"), batch)
        finally:
            for handle in handles:
                handle.remove()
    return calls


def measure_site(module: nn.Module, call: Call, choices: Sequence[Choice], device: Device) -> dict[Choice, SiteCost]:
    """Cost of one leaf module in FP32 and in each choice, with the best padding."""
    with backend_flags(False):
        base = _time_in(module, call, FP32, 0, device, float("inf"))
        costs = {FP32: SiteCost(base)}
        for choice in choices:
            if choice == FP32:
                continue
            limit = max(HOPELESS * base, base + HOPELESS_MS)
            variants = [SiteCost(_time_in(module, call, choice, 0, device, limit))]
            if type(module) is nn.Linear and module.out_features % 8:
                variants.append(SiteCost(_time_in(module, call, choice, PAD, device, limit), pad=PAD))
            costs[choice] = min(variants, key=lambda cost: cost.ms)
    return costs


def measure_casts(formats: Sequence[Format], device: Device) -> dict[frozenset[Format], CastPrice]:
    """Fixed and per-byte price of casting there and back again for each pair of formats (a line through two sizes)."""
    prices = {}
    for a, b in itertools.combinations(formats, 2):
        times = [_time_cast(size, a, b, device) for size in CAST_SIZES]
        per_element = max(0.0, (times[1] - times[0]) / (CAST_SIZES[1] - CAST_SIZES[0]))
        fixed = max(0.0, times[0] - per_element * CAST_SIZES[0])
        prices[frozenset((a, b))] = CastPrice(fixed, per_element / 4)
    return prices


def _time_cast(size: int, a: Format, b: Format, device: Device) -> float:
    first, second = (getattr(torch, f.torch_name) for f in (a, b))
    x = torch.randn(size, device=device.torch).to(first)
    return _median_ms(lambda: x.to(second).to(first), device)


def _time_in(module: nn.Module, call: Call, choice: Choice, pad: int, device: Device, limit: float) -> float:
    """Milliseconds of forward and backward of a copy of ``module`` in a choice; infinite when it has no kernel."""
    holder = nn.Sequential(copy.deepcopy(module))
    try:
        apply_plan(holder, {"0": {"format": choice.format.label, "scaling": choice.scaling, "pad": pad}})
        arriving = choice.output_format
        args, kwargs = _fill(call.args, arriving, device), _fill(call.kwargs, arriving, device)
        output = _first_tensor(holder[0](*args, **kwargs))
        gradient = torch.randn_like(output) if output is not None and output.requires_grad else None

        def once() -> None:
            result = _first_tensor(holder[0](*args, **kwargs))
            if gradient is not None and result is not None:
                result.backward(gradient)

        return _median_ms(once, device, limit)
    except RuntimeError:
        return float("inf")  # no kernel for this format on this device: a legal answer of the table


def _median_ms(function: Callable[[], object], device: Device, limit: float = float("inf")) -> float:
    times = []
    for index in range(WARMUPS + REPEATS):
        device.synchronize()
        begin = time.perf_counter()
        function()
        device.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
        # The first run sets things up; one slow run among the others may be the machine's noise.
        if index + 1 == WARMUPS and min(times[1:]) > limit:
            return float("inf")
    return statistics.median(times[WARMUPS:])


def _shapes_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return FloatTensor(tuple(value.shape), value.requires_grad) if value.is_floating_point() else value.detach()
    if isinstance(value, dict):
        return {key: _shapes_of(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_shapes_of(item) for item in value)
    return value


def _fill(value: Any, number_format: Format, device: Device) -> Any:
    if isinstance(value, FloatTensor):
        dtype = getattr(torch, number_format.torch_name)
        return torch.randn(value.shape, device=device.torch).to(dtype).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _fill(item, number_format, device) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_fill(item, number_format, device) for item in value)
    return value


def _signature(module: nn.Module, call: Call) -> Signature:
    parameters = tuple((name, tuple(p.shape), p.requires_grad) for name, p in module.named_parameters())
    shapes = repr(_shape_repr(call.args)) + repr(_shape_repr(call.kwargs))
    return (type(module), module.extra_repr(), parameters, shapes)


def _shape_repr(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), str(value.dtype))
    if isinstance(value, dict):
        return tuple((key, _shape_repr(item)) for key, item in value.items())
    if isinstance(value, tuple):
        return tuple(_shape_repr(item) for item in value)
    return value


def _first_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    return None

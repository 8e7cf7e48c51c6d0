"""What the ops between planned sites cost in each format: they follow their inputs, so their time belongs to a choice.

Attention, activations and residual adds are not sites that a plan names, yet most of what a 16-bit plan saves beside
its matrix products is there. Each op is priced by the roofline, calibrated on the GPU at hand, in FP32 and in 16 bits,
and the price is shared out evenly among the planned sites that its inputs come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from amptune.analyze.calibration.calibrate import calibrated
from amptune.analyze.device import present_gpu
from amptune.analyze.stepcost.kernels import Setting
from amptune.analyze.stepcost.sitekernels import kernels_of
from amptune.apply import held_by, owner_of
from amptune.core.autocast import SiteDtypes
from amptune.core.choice import TF32, Choice
from amptune.core.formats import Format
from amptune.core.graph import LOSS, PrecisionGraph, Site, TensorMeta
from amptune.core.hardware import Gpu
from amptune.core.recipes import RECIPES
from amptune.core.tables import CostTable, SiteCost

Prices = Mapping[str, Mapping[Format, float]]
"""Site -> format of its output, or TF32 -> milliseconds of what follows it."""


def with_followers(table: CostTable, prices: Prices) -> CostTable:
    """The table with the price of what follows a site in its cost."""
    return dataclasses.replace(
        table, sites=_added(table.sites, prices), channels_last=_added(table.channels_last, prices)
    )


def follower_prices(
    graph: PrecisionGraph,
    planned: Collection[str],
    formats: Iterable[Format],
    gpu: Gpu | None,
    *,
    fused: bool = False,
    raised: Collection[str] = (),
) -> dict[str, dict[Format, float]]:
    """Prices of the ops that follow, on ``gpu``; nothing without one: a CPU has no roofline here.

    Args:
        graph: sites of the model.
        planned: those that a plan decides.
        formats: to price them in.
        gpu: where they run.
        fused: compiled, where only attention and other products have kernels of their own.
        raised: what an autocast region computes in FP32, whatever arrives.
    """
    if gpu is None:
        return {}
    settings = {name: Setting(RECIPES[name], fused=fused) for name in ("fp32", "tf32")}
    prices: dict[str, dict[Format, float]] = {}
    for site in graph:
        if owner_of(site, planned) is not None or site.module == LOSS:
            continue
        sources = planned_sources(graph, site.id, planned)
        for number_format in formats if sources else ():
            setting = settings["tf32" if number_format is Format.TF32 else "fp32"]
            computed = Format.FP32 if site.id in raised else number_format
            share = milliseconds_of(site, computed, setting, gpu) / len(sources)
            for source in sources:
                found = prices.setdefault(source, {})
                found[number_format] = found.get(number_format, 0.0) + share
    return prices


def this_gpu(device_type: str) -> Gpu | None:
    """The GPU at hand with constants measured on it (about two seconds); None on a CPU."""
    gpu = present_gpu() if device_type == "cuda" else None
    return calibrated(gpu) if gpu else None


def planned_sources(graph: PrecisionGraph, site_id: str, planned: Collection[str]) -> frozenset[str]:
    """The planned sites that the inputs of a site come from, looking through what follows."""
    found: set[str] = set()
    seen = {site_id}
    stack = [site_id]
    while stack:
        here = graph[stack.pop()]
        found |= held_by(graph, here) & set(planned)
        for producer in graph.producers(here.id):
            owner = owner_of(producer, planned)
            if owner is not None:
                found.add(owner)
            elif producer.id not in seen:
                seen.add(producer.id)
                stack.append(producer.id)
    return frozenset(found)


def milliseconds_of(site: Site, number_format: Format, setting: Setting, gpu: Gpu) -> float:
    """Forward and backward of a site whose floating inputs all have one format, by the roofline."""
    """Forward and backward of a site whose floating inputs all have one format, by the roofline."""
    kernels = kernels_of(site, _dtypes_in(site, number_format), setting)
    return sum(kernel.seconds(gpu) for kernel in (*kernels.forward, *kernels.backward)) * 1e3


def _dtypes_in(site: Site, number_format: Format) -> SiteDtypes:
    """The dtypes of a site whose floating inputs all have one format."""
    name = number_format.torch_name

    def of(tensor: TensorMeta) -> str:
        return name if tensor.is_floating else tensor.dtype

    inputs = tuple(map(of, site.inputs))
    params = tuple(of(param.meta) for param in site.params)
    return SiteDtypes(inputs, inputs, params, tuple(map(of, site.outputs)))


def _price(prices: Mapping[Format, float], choice: Choice) -> float:
    ms = prices.get(choice.output_format, 0.0)
    return prices.get(Format.TF32, ms) if choice == TF32 else ms


def _added(sites: Mapping[str, Mapping[Choice, SiteCost]], prices: Prices) -> dict[str, dict[Choice, SiteCost]]:
    return {
        name: {
            choice: dataclasses.replace(cost, followers=_price(prices.get(name, {}), choice))
            for choice, cost in costs.items()
        }
        for name, costs in sites.items()
    }

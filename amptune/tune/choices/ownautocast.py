"""Autocast regions that the model opens itself, and dtypes of its parameters: they are in every recipe, the FP32
reference included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from amptune.core.graph import LOSS, PrecisionGraph, Site

_MOST = 0.5
"""Share of the model's products in regions without autocast from which on an autocast recipe says little of it."""


def is_in_fp32(graph: PrecisionGraph) -> bool:
    """Whether the model by itself computes in FP32: it opens no region of autocast, and holds and makes no tensor in
    another format."""
    tensors = (
        tensor for site in graph for tensor in (*site.inputs, *site.outputs, *(p.meta for p in site.params))
    )  # fmt: skip
    opens = any(site.attrs.get("autocast") is not None for site in graph)
    return not opens and all(tensor.dtype == "float32" for tensor in tensors if tensor.is_floating)


def own_autocast_notes(graph: PrecisionGraph) -> Iterator[str]:
    """What the user has to know of such regions to read the recipes' numbers."""
    products = [site for site in graph if site.flops and site.module != LOSS]
    lowered = [site for site in products if site.attrs.get("autocast") not in (None, False, "float32")]
    if lowered:
        yield (
            f"the model switches autocast on itself ({lowered[0].attrs['autocast']}{_place(lowered)}): the FP32 "
            f"reference and the stock recipes run with it too, only the layers of a plan do not{_kept_text(lowered)}; "
            "take it out to have each format measured, and judged by FP32"
        )
    off = [site for site in products if site.attrs.get("autocast") is False]
    if sum(site.flops for site in off) > _MOST * sum(site.flops for site in products):
        yield (
            f"the model switches autocast off itself{_place(off, ' (', ')')}: the autocast recipes leave in FP32 what "
            "runs there; take it out to have them measured"
        )


def own_dtype_note(model: nn.Module) -> str | None:
    """What the user has to know of parameters that are trained in another dtype than FP32."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()]
    others = [(name, p.dtype) for name, p in trained if p.dtype is not torch.float32]
    if not others:
        return None
    (name, dtype), more = others[0], len(others) - 1
    label = str(dtype).removeprefix("torch.")
    lost = ", in which small steps of the optimizer are lost" if dtype.itemsize < torch.float32.itemsize else ""
    named = f"{name} and {more} more parameters are" if more else f"{name} is"
    return (
        f"{named} trained in {label}{lost}: the FP32 reference and the stock recipes train so too; make the model in "
        "float32 to have each format measured, and judged by FP32"
    )


def _kept_text(lowered: Sequence[Site]) -> str:
    """What stays in such a region under a plan too: products that a forward computes itself."""
    own = [site for site in lowered if not site.is_module]
    if not own:
        return ""
    named = f"{own[0].op}{_place(own, ' in ')}" + (f" and {len(own) - 1} more" if len(own) > 1 else "")
    kept = own[0].attrs["autocast"]
    return f", while products that its forward computes itself ({named}) stay in {kept} under each plan"


def _place(sites: Sequence[Site], before: str = ", ", after: str = "") -> str:
    places = [site.location for site in sites if site.location is not None]
    return f"{before}{places[0].path}:{places[0].line}{after}" if places else ""

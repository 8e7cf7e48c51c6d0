"""Bounds of what ops say about places: indices of sorted or largest numbers, and numbers put on a diagonal."""

from __future__ import annotations

from amptune.core.bounds.intervals import ANY, Range, point
from amptune.core.graph import Site, TensorMeta

_BESIDE_VALUES = frozenset(
    {
        *("sort", "topk", "max", "min", "median", "cummax", "cummin", "max_pool1d", "max_pool2d", "max_pool3d"),
        *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    }
)
"""Ops that give places in their operand beside its numbers."""


def places(site: Site, ranges: list[Range]) -> Range:
    """Places in an operand: from 0 up to its size, which a search may give too."""
    return Range(0.0, float(max(tensor.numel for tensor in site.inputs) or 1)) if site.inputs else Range(0.0)


def in_order(site: Site, ranges: list[Range]) -> Range:
    """Of sort the numbers themselves, of argsort their places."""
    return places(site, ranges) if site.attrs.get("called") == "argsort" else ranges[0] if ranges else ANY


def on_diagonal(site: Site, ranges: list[Range]) -> Range:
    """Of a matrix its diagonal; of a vector a matrix that is zero beside it."""
    if not ranges or not site.inputs or not site.outputs:
        return ANY
    picks = len(site.outputs[0].shape) < len(site.inputs[0].shape)
    return ranges[0] if picks else ranges[0].union(point(0.0))


def beside(producer: Site, tensor: TensorMeta) -> Range | None:
    """Bounds of the indices that a site gives beside its numbers; ``None`` for any other tensor."""
    own = tensor.is_floating or not any(output.is_floating for output in producer.outputs)
    return None if own or producer.op not in _BESIDE_VALUES else places(producer, [])

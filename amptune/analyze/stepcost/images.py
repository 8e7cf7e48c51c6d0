"""Which tensors of four or five dimensions are images and volumes, as far as their layout in memory goes.

In the fixed model the weights and inputs are in channels_last, so that what convolutions give is, and all that keeps
the layout of what it reads. A reshape or a permutation ends that: the heads of an attention stay as they are.
"""

from __future__ import annotations

import dataclasses

from amptune.analyze.stepcost.kernels import Setting
from amptune.core.autocast import sources_of
from amptune.core.graph import INPUT, PrecisionGraph, Site
from amptune.core.ops import Family, op_named

_RANKS = (4, 5)
_KEEPS = (Family.POINTWISE, Family.SENSITIVE, Family.NORM, Family.POOL, Family.CAST)
_KEEPING_OPS = frozenset({"cat", "pad", "clone", "contiguous", "copy", "roll", "flip"})


def mark_images(graph: PrecisionGraph) -> None:
    """Set ``image`` to False on the sites whose tensors of four or five dimensions are no images, in place."""
    images: set[str] = set()
    for site in list(graph):
        if not any(len(tensor.shape) in _RANKS for tensor in (*site.inputs, *site.outputs)):
            continue
        if op_named(site.op).family is Family.CONV or (_keeps_layout(site) and _reads_image(graph, site, images)):
            images.add(site.id)
        else:
            graph.replace_site(dataclasses.replace(site, attrs={**site.attrs, "image": False}))


def in_channels_last(site: Site, setting: Setting) -> bool:
    """Whether the kernels find their tensors in channels_last: as they come, or in the fixed model."""
    fixed = setting.fixed and site.attrs.get("image", True) and len(site.inputs[0].shape) in _RANKS
    return bool(site.attrs.get("channels_last")) or fixed


def _keeps_layout(site: Site) -> bool:
    return op_named(site.op).family in _KEEPS or site.op in _KEEPING_OPS


def _reads_image(graph: PrecisionGraph, site: Site, images: set[str]) -> bool:
    views = site.attrs.get("views") or {}
    for index, source in enumerate(sources_of(graph, site)):
        cuts, every = views.get(index, ("", ""))
        given = source in images or source == INPUT
        if given and cuts == every and len(site.inputs[index].shape) in _RANKS:
            return True
    return False

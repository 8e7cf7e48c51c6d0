"""Copies into rows behind fused attention that are none, by how its kernels lay out their result.

The flash kernels of torch and cuDNN lay it out as the query (``empty_like`` of aten's flash_api.cpp,
``alloc_with_matching_layout`` of cudnn/MHA.cpp), the memory-efficient one with the heads of a token side by side
(attention.cu), plain products head by head. ``output.transpose(1, 2).contiguous()`` and a reshape of it then return
what there is, also where the capture, on fakes of the CPU, has seen plain products: with dropout or a learned mask.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from amptune.analyze.stepcost.attention import Backend, backend_of
from amptune.core.autocast import SiteDtypes, sources_of
from amptune.core.graph import PrecisionGraph, Site

_HEADS_WITHIN = (0, 2, 1, 3)
"""Dimensions of (batch, heads, tokens, size) from the outermost in memory, where a token's heads are side by side."""
_TURN = re.compile(r"(?:transpose|swapaxes|swapdims|permute|movedim)[^{]*")
_HEADS_BACK = re.compile(r"(?:transpose|swapaxes|swapdims)\((?:1, 2|2, 1|-2, -3|-3, -2)\)|permute\(\[?0, 2, 1, 3")


def finds_rows(graph: PrecisionGraph, site: Site, dtypes: Mapping[str, SiteDtypes]) -> bool:
    """Whether what the site would copy into rows is attention's result, which lies in rows."""
    return bool(attention_behind(graph, site, dtypes))


def attention_behind(graph: PrecisionGraph, site: Site, dtypes: Mapping[str, SiteDtypes]) -> str:
    """The id of the attention whose result the site would copy into rows, though it lies so; empty for none."""
    if site.op != "contiguous" and not site.attrs.get("copied"):
        return ""
    views = site.attrs.get("views") or {}
    for index, source in enumerate(sources_of(graph, site)):
        if source not in graph or graph[source].op != "scaled_dot_product_attention":
            continue
        cuts, every = views.get(index, ("", ""))
        turns = _TURN.findall(every)
        if cuts or len(turns) != 1 or not _HEADS_BACK.match(turns[0]):
            continue
        if _has_heads_within(graph[source], dtypes[source].compute):
            return source
    return ""


def _has_heads_within(site: Site, dtype: str) -> bool:
    """Whether the result of a call has the heads of a token side by side."""
    backend = backend_of(site, dtype)
    if backend is Backend.FLASH and site.inputs[0].shape[-1] % 8 == 0:
        return bool((site.attrs.get("strided") or {}).get(0) == _HEADS_WITHIN)
    return backend is Backend.EFFICIENT

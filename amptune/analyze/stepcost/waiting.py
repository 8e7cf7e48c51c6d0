"""Kernels that wait: few threads one after the other, or many that write to one address; bytes do not bound them.

What torch's kernels do (aten/src/ATen/native/cuda), and how long each turn takes on an H200 (kernel_times.py
--further, kernels_further_h200.json):

- Bilinear interpolation of contiguous images has one thread a pixel of the result, which goes through all images and
  channels; its backward adds each pixel to four of the input by atomics, which wait where many pixels share one.
- A running sum and a softmax over another dimension than the last go along it row by row.
- The loss of a batch of rows is gathered and its gradient scattered by one block of threads.
- Rows that are looked up cost a turn each, however short.
- A reduction along the dimension that lies innermost in memory has half a warp or more for each result, idle where that
  dimension is short; one that tells where the largest number is carries its place along, in every layout (Reduce.cuh).
  What is reduced over neighbours, heads or taps takes as long in 16 bits as in 32 (dgcnn's profiled steps, H200).
"""

from __future__ import annotations

from collections.abc import Iterator

from amptune.analyze.stepcost.images import in_channels_last
from amptune.analyze.stepcost.kernels import Setting, Waiting
from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.graph import Site
from amptune.core.ops import Family, op_named

_IMAGE_TURN, _PIXELS = 0.38e-6, 270_000
"""Seconds of a thread for one channel of one image, and pixels that the GPU works on at a time."""
_ATOMIC, _SHARED_FIRST, _SHARED_LAST = 1.4e-12, 0.12e-12, 0.0075e-12
"""Seconds of an atomic addition, and further ones for each pixel that writes to the same, channels first and last."""
_HALF_ATOMIC, _HALF_SHARED, _HALF_MOST = 3e-12, 0.5e-12, 10e-12
"""The same in 16 bits, which torch adds by comparing and swapping, and the most that they are slower by."""
_SCAN_TURN, _SOFTMAX_TURN = 0.25e-6, 0.6e-6
_LOSS_ROW, _LOOKUP_ROW = 1e-9, 0.6e-9
_LOOKUP_BYTE = 0.4e-12
"""What a byte takes that is read or written on the way, at half of the bandwidth."""
_REDUCED, _REDUCED_WITH_PLACE = 0.14e-9, 0.2e-9
"""Seconds of a result of a reduction, without and with the place of what was found."""
_FIND_PLACES = ("max", "min", "argmax", "argmin", "median")
_SORTED = 70e-6
"""Sorting the indices of an embedding for its gradient, beyond its kernels' starts."""


def waits(site: Site, dtypes: SiteDtypes, setting: Setting, *, backward: bool) -> Iterator[Waiting]:
    """What a site's kernels take beside what their bytes do; not an op of its own for the processor."""
    seconds = _seconds(site, dtypes, setting, backward)
    if seconds:
        yield Waiting(seconds, ops=0)


def _seconds(site: Site, dtypes: SiteDtypes, setting: Setting, backward: bool) -> float:
    shape = site.inputs[0].shape if site.inputs else ()
    made = site.outputs[0].shape if site.outputs else ()
    match site.op:
        case "interpolate" | "upsample" if site.attrs.get("mode") == "bilinear" and len(shape) == len(made) == 4:
            last = in_channels_last(site, setting)
            half = dtypes.compute in HALF
            return _spread_back(shape, made, last=last, half=half) if backward else _spread(made, last=last)
        case "cumsum" | "softmax" | "log_softmax" if (length := _across(site, shape)) > 1:
            return length * (_SCAN_TURN if site.op == "cumsum" else _SOFTMAX_TURN)
        case "cross_entropy" | "nll_loss" if len(shape) == 2:
            return _LOSS_ROW * shape[0]
        case "embedding" | "index" | "index_select" if len(made) > 1 and not backward:
            return _looked_up(site, dtypes)
        case "embedding" | "embedding_bag" if backward:
            return _SORTED + _looked_up(site, dtypes)
    return 0.0


def least_seconds(site: Site) -> float:
    """What the results of a reduction take, however few elements each is of."""
    dims = site.attrs.get("dim")
    if op_named(site.op).family is not Family.REDUCTION or dims is None or not site.inputs or not site.outputs:
        return 0.0
    results = site.outputs[0].numel
    if site.op in _FIND_PLACES:
        return _REDUCED_WITH_PLACE * results
    rank = len(site.inputs[0].shape)
    innermost = (site.attrs.get("strided") or {}).get(0, (rank - 1,))[-1]
    reduced = [dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims]) if isinstance(dim, int)]
    return _REDUCED * results if rank and innermost in reduced else 0.0


def _spread(made: tuple[int, ...], *, last: bool) -> float:
    rounds = -(-made[2] * made[3] // _PIXELS)
    return 0.0 if last else rounds * made[0] * made[1] * _IMAGE_TURN


def _spread_back(shape: tuple[int, ...], made: tuple[int, ...], *, last: bool, half: bool) -> float:
    sharing = made[2] * made[3] / max(shape[2] * shape[3], 1)
    each = _ATOMIC + sharing * (_SHARED_LAST if last else _SHARED_FIRST)
    if half and not last:
        each = min(_HALF_ATOMIC + sharing * _HALF_SHARED, each + _HALF_MOST)
    return 4 * made[0] * made[1] * made[2] * made[3] * each


def _looked_up(site: Site, dtypes: SiteDtypes) -> float:
    """Of rows that are too short to keep the memory busy; all that one index names is a row."""
    elements = site.outputs[0].numel
    indices = max((tensor.numel for tensor in site.inputs if not tensor.is_floating), default=0)
    width = elements / indices if 0 < indices <= elements else site.outputs[0].shape[-1]
    moved = width * (2 if dtypes.outputs and dtypes.outputs[0] in HALF else 4) * 2
    return elements / max(width, 1) * max(0.0, _LOOKUP_ROW - moved * _LOOKUP_BYTE)


def _across(site: Site, shape: tuple[int, ...]) -> int:
    """Length of the dimension that the op goes along, where it is not the last; 0 otherwise."""
    dim = site.attrs.get("dim")
    if not isinstance(dim, int) or not shape or dim % len(shape) == len(shape) - 1:
        return 0
    return shape[dim]

"""Kernels that torch runs because tensors are not contiguous: copies before ops that want them so, and slower reads.

What wants contiguous operands, by torch's sources: norms over rows and softmaxes (``expect_contiguous``), a linear
layer with a batch of matrices, whose operand is folded into one matrix (``should_fold`` of LinearAlgebra.cpp; its bias
is then added by a kernel of its own), products of batches, whose leading dimensions are folded into one, batch norms
over sequences (``analyze.sequences``), and what an einsum says itself (``analyze.einsums``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.analyze.stepcost.images import in_channels_last
from amptune.analyze.stepcost.kernels import Move, Setting, has_bias, input_bytes, move, output_bytes
from amptune.core.autocast import SiteDtypes
from amptune.core.graph import DTYPE_BYTES, Site
from amptune.core.ops import Family, op_named
from amptune.core.roofline import Traffic

ROW_NORMS = ("layer_norm", "rms_norm")
_BLOCK, _NEIGHBOURS = 256, 2
"""Elements that a block of threads of ``elementwise_kernel`` copies, 2 for each of 128 threads (CUDALoops.cuh), and how
many of one sector are enough for a copy to be bound by its loads."""
_SEQUENCE = 3
"""Dimensions of a batch of sequences."""


def copies(site: Site, dtypes: SiteDtypes, *, backward: bool) -> Iterator[Move]:
    """Copies of operands into rows: forward of each; backward of the gradient on its way back, or of a norm's operand
    once more."""
    sizes = input_bytes(site, dtypes.inputs)
    copied = {index: order for index, order in _strided(site, dtypes) if _is_copied(site, index, order, dtypes)}
    for index, order in copied.items():
        if backward and (not site.inputs[index].requires_grad or index in site.attrs.get("in_rows", ())):
            continue  # a batch norm copies the gradient of its result itself
        yield move(copy_kind(site.inputs[index].shape, order), 2 * sizes[index], dtypes.inputs[index])
    rearranged, suffix = site.attrs.get("rearranged") or {}, "_back" if backward else ""
    for name, kind in (("rows", Traffic.LAYOUT), ("turned", Traffic.TURNED)):
        if elements := rearranged.get(name + suffix):
            yield move(kind, 2 * elements * DTYPE_BYTES.get(dtypes.compute, 4), dtypes.compute)
    if copied and not backward and site.op == "linear" and has_bias(site):
        yield move(Traffic.UNROLLED, 2 * sum(output_bytes(site, dtypes)), dtypes.compute)


def copy_kind(shape: tuple[int, ...], order: tuple[int, ...]) -> Traffic:
    """The kind of a copy into rows of a tensor whose dimensions lie so in memory.

    A read across the rows fetches a sector of 32 bytes for each element, from the second level of the cache, whose
    bandwidth binds: a transposed copy takes as long in 16 bits as in 32. Where the neighbours in memory belong to the
    elements that the same block of threads copies, they share their sectors.
    """
    if order[-1] == len(shape) - 1:
        return Traffic.LAYOUT
    apart = math.prod(shape[order[-1] + 1 :])
    return Traffic.UNROLLED if apart * _NEIGHBOURS <= _BLOCK else Traffic.TURNED


def kept_copies(site: Site, dtypes: SiteDtypes) -> set[int]:
    """Operands of which autograd keeps the copy into rows: those of products and batch norms; of row norms it keeps
    the operand itself."""
    if site.op not in ("linear", "matmul", "batch_norm"):
        return set()
    return {index for index, order in _strided(site, dtypes) if _is_copied(site, index, order, dtypes)}


def is_sequence_norm(site: Site) -> bool:
    """Whether a batch norm is over sequences."""
    return site.op == "batch_norm" and len(site.inputs[0].shape) == _SEQUENCE


def mixed_bytes(site: Site, dtypes: SiteDtypes, setting: Setting) -> float:
    """Bytes that a pointwise op reads and writes across rows, since operands of its full size lie differently."""
    numel = site.outputs[0].numel if site.outputs else 0
    if setting.fixed and site.inputs and in_channels_last(site, setting):
        return 0.0  # then all images are in channels_last
    orders = dict(_strided(site, dtypes))
    sizes = input_bytes(site, dtypes.inputs)
    large = [index for index, tensor in enumerate(site.inputs) if tensor.numel == numel]
    turned = [index for index in large if orders.get(index) != orders.get(large[0])]
    return 2.0 * sum(sizes[index] for index in turned)


def turns(site: Site, dtypes: SiteDtypes) -> Traffic | None:
    """The kind of a copy of the first operand into rows, where another dimension than its last is innermost."""
    first = next((order for index, order in _strided(site, dtypes) if index == 0), ())
    shape = site.inputs[0].shape if site.inputs else ()
    return copy_kind(shape, first) if first and first[-1] != len(shape) - 1 else None


def _strided(site: Site, dtypes: SiteDtypes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Operands that are not laid out row by row: position, and dimensions from the outermost inwards.

    What a batch norm over sequences has put into rows is so in FP32 and FP16, which are cuDNN's.
    """
    in_rows = site.attrs.get("in_rows", ())
    for index, order in (site.attrs.get("strided") or {}).items():
        if order != tuple(sorted(order)) and not (index in in_rows and dtypes.given[index] == "bfloat16"):
            yield index, order


def _is_copied(site: Site, index: int, order: tuple[int, ...], dtypes: SiteDtypes) -> bool:
    rank = len(site.inputs[index].shape)
    if site.op in ROW_NORMS or site.op == "cross_entropy" or op_named(site.op).family is Family.SOFTMAX:
        return True
    if site.op == "linear":
        return rank > 2
    if is_sequence_norm(site):
        return index == 0 and dtypes.inputs[0] != "bfloat16"
    if site.op == "matmul" and rank > 3:
        leading = [dim < rank - 2 for dim in order]
        return leading != sorted(leading, reverse=True)
    return False

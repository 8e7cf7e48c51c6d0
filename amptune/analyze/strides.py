"""Kernels that torch runs because tensors are not contiguous: copies before ops that want them so, and slower reads.

What wants contiguous operands, by torch's sources: norms over rows and softmaxes (``expect_contiguous``), a linear
layer with a batch of matrices, whose operand is folded into one matrix (``should_fold`` of LinearAlgebra.cpp; its bias
is then added by a kernel of its own), products of batches, whose leading dimensions are folded into one, and what an
einsum says itself (``analyze.einsums``).
"""

from __future__ import annotations

from collections.abc import Iterator

from amptune.analyze.images import in_channels_last
from amptune.analyze.kernels import Move, Setting, has_bias, input_bytes, move, output_bytes
from amptune.core.autocast import SiteDtypes
from amptune.core.graph import DTYPE_BYTES, Site
from amptune.core.ops import Family, op_named
from amptune.core.roofline import Traffic

ROW_NORMS = ("layer_norm", "rms_norm")


def copies(site: Site, dtypes: SiteDtypes, *, backward: bool) -> Iterator[Move]:
    """Copies of operands into rows: forward of each; backward of the gradient on its way back, or of a norm's operand
    once more."""
    sizes = input_bytes(site, dtypes.inputs)
    copied = {index: order for index, order in _strided(site) if _is_copied(site, index, order)}
    for index, order in copied.items():
        if site.inputs[index].requires_grad or not backward:
            kind = Traffic.LAYOUT if order[-1] == len(site.inputs[index].shape) - 1 else Traffic.TURNED
            yield move(kind, 2 * sizes[index], dtypes.inputs[index])
    rearranged, suffix = site.attrs.get("rearranged") or {}, "_back" if backward else ""
    for name, kind in (("rows", Traffic.LAYOUT), ("turned", Traffic.TURNED)):
        if elements := rearranged.get(name + suffix):
            yield move(kind, 2 * elements * DTYPE_BYTES.get(dtypes.compute, 4), dtypes.compute)
    if copied and not backward and site.op == "linear" and has_bias(site):
        yield move(Traffic.UNROLLED, 2 * sum(output_bytes(site, dtypes)), dtypes.compute)


def mixed_bytes(site: Site, dtypes: SiteDtypes, setting: Setting) -> float:
    """Bytes that a pointwise op reads and writes across rows, since operands of its full size lie differently."""
    numel = site.outputs[0].numel if site.outputs else 0
    if setting.fixed and site.inputs and in_channels_last(site, setting):
        return 0.0  # then all images are in channels_last
    orders = dict(_strided(site))
    sizes = input_bytes(site, dtypes.inputs)
    large = [index for index, tensor in enumerate(site.inputs) if tensor.numel == numel]
    turned = [index for index in large if orders.get(index) != orders.get(large[0])]
    return 2.0 * sum(sizes[index] for index in turned)


def turns(site: Site) -> bool:
    """Whether the first operand has another dimension innermost than its last: a copy into rows reads across them."""
    first = next((order for index, order in _strided(site) if index == 0), ())
    return bool(first) and first[-1] != len(site.inputs[0].shape) - 1


def _strided(site: Site) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Operands that are not laid out row by row: position, and dimensions from the outermost inwards."""
    for index, order in (site.attrs.get("strided") or {}).items():
        if order != tuple(sorted(order)):
            yield index, order


def _is_copied(site: Site, index: int, order: tuple[int, ...]) -> bool:
    rank = len(site.inputs[index].shape)
    if site.op in ROW_NORMS or site.op == "cross_entropy" or op_named(site.op).family is Family.SOFTMAX:
        return True
    if site.op == "linear":
        return rank > 2
    if site.op == "matmul" and rank > 3:
        leading = [dim < rank - 2 for dim in order]
        return leading != sorted(leading, reverse=True)
    return False

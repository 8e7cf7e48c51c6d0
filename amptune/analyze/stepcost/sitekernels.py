"""The kernels that one site runs in a training step under a recipe.

Assumptions beside those of ``core.roofline``: a weight is cast once a step (autocast's cache), an activation once for
each consumer; a gradient that several consumers hand back is added up in memory; FP8 products cast their operands in
kernels of their own, by the number that torchao's eager code runs. Pointwise kernels are those of torch's
TensorIterator: vectorised where all tensors have one dtype and one shape, else with one load for each element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from amptune.analyze.stepcost.attention import attention_kernels
from amptune.analyze.stepcost.convolutions import convolution_kernels
from amptune.analyze.stepcost.fp8casts import fp8_casts
from amptune.analyze.stepcost.images import in_channels_last
from amptune.analyze.stepcost.kernels import (
    Convolution,
    Depthwise,
    Groups,
    Kernel,
    Move,
    Product,
    Setting,
    SiteKernels,
    Steps,
    Timed,
    Waiting,
    call_share,
    cast,
    format_of,
    input_bytes,
    move,
    needs_backward,
    of_one_call,
    output_bytes,
    params_of_one_call,
    softmax_in_half,
    trains_bias,
)
from amptune.analyze.stepcost.moves import Cost, cost_of
from amptune.analyze.stepcost.strides import ROW_NORMS, copies, is_sequence_norm, mixed_bytes, turns
from amptune.analyze.stepcost.transforms import transform_moves
from amptune.analyze.stepcost.waiting import least_seconds, waits
from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.formats import Format
from amptune.core.graph import DTYPE_BYTES, Gemm, Site
from amptune.core.ops import Family, op_named
from amptune.core.recipes import converts_to_fp8
from amptune.core.roofline import Pass, Traffic

_SCATTERS = ("index_add", "scatter_add", "scatter", "index_copy")
"""Ops whose first input is what is written to, and all others say what and where."""
_SORTED_BACK = ("index", "index_select")
"""Ops whose gradient is added to its places by whole rows, in the order of the sorted indices."""
_KEEP_WHAT_THEY_OVERWRITE = ("hardtanh", "relu6", "silu", "hardswish", "mish", "leaky_relu")
"""Ops whose backward reads their input, so that autograd copies it before it is overwritten."""
_ONE_BLOCK_A_CHANNEL = (Traffic.BATCH_NORM, Traffic.BATCH_NORM_NATIVE)
"""Batch norms of contiguous tensors, cuDNN's (its kernels are called 1C11) and torch's own."""
_LANES_ARE_CHANNELS, _FEW_LANES = (Traffic.BATCH_NORM_LAST, Traffic.BATCH_NORM_NATIVE_LAST), 32
"""Batch norms whose threads lie along the channels, and channels that leave half of them idle (16 and 32, H200)."""
ROWWISE_SHARE = 0.72
"""Rate of FP8 products with a scale for each row against those with one scale, H100 (see estimate_check)."""


def kernels_of(site: Site, dtypes: SiteDtypes, setting: Setting) -> SiteKernels:
    """The kernels of one site, over all of its calls."""
    forward: list[Kernel] = []
    backward: list[Kernel] = []
    family = op_named(site.op).family
    if not setting.fused:
        forward += _input_casts(site, dtypes)
        forward += [*_reshapes(site, dtypes), *copies(site, dtypes, backward=False)]
        backward += [*_input_casts(site, dtypes, backward=True), *copies(site, dtypes, backward=True)]
    if not (setting.recipe.fp8 and converts_to_fp8(site)):  # FP8 is made of the FP32 weights
        forward += _weight_casts(site, dtypes)
        backward += _weight_casts(site, dtypes, backward=True)
    site, dtypes = _with_first_params(site, dtypes)
    if family in _PRODUCTS:
        own = list(_PRODUCTS[family](site, dtypes, setting))
        forward += [kernel for kernel, is_backward in own if not is_backward]
        backward += [kernel for kernel, is_backward in own if is_backward]
    elif not setting.fused and (cost := cost_of(site.op)) is not None:
        forward += [*_moves(site, dtypes, setting, cost, backward=False), *waits(site, dtypes, setting, backward=False)]
        backward += [*_moves(site, dtypes, setting, cost, backward=True), *waits(site, dtypes, setting, backward=True)]
    if family not in _PRODUCTS and site.opaque:
        own = list(_own_products(site, dtypes, setting))
        forward += [kernel for kernel, is_backward in own if not is_backward]
        backward += [kernel for kernel, is_backward in own if is_backward]
    trained = setting.train and needs_backward(site)
    if site.calls > 1:
        share, work = call_share(site) / site.calls, _work_share(site)
        forward, backward = ([_scaled(kernel, share, work) for kernel in kernels] for kernels in (forward, backward))
    return SiteKernels(tuple(forward) * site.calls, tuple(backward) * site.calls if trained else ())


def _with_first_params(site: Site, dtypes: SiteDtypes) -> tuple[Site, SiteDtypes]:
    """A site with the parameters of its first call, whose shapes it has, and not those of all calls of its line."""
    params = params_of_one_call(site)
    if len(params) == len(site.params):
        return site, dtypes
    return dataclasses.replace(site, params=params), dataclasses.replace(dtypes, params=dtypes.params[: len(params)])


def _work_share(site: Site) -> float:
    """Operations of a call in the mean against those of the first, whose shapes the site has."""
    first = sum(gemm.flops for gemm in of_one_call(site))
    return sum(gemm.flops for gemm in site.gemms) / (first * site.calls) if first else 1.0


def _scaled(kernel: Kernel, share: float, work: float) -> Kernel:
    """A kernel with ``share`` times the bytes and ``work`` times the operations, as far as it is about either."""
    match kernel:
        case Move():
            return dataclasses.replace(kernel, bytes=kernel.bytes * share)
        case Waiting():
            return dataclasses.replace(kernel, alone=kernel.alone * share)
        case Product() | Groups():
            return dataclasses.replace(kernel, gemm=_shortened(kernel.gemm, work))
        case Convolution():
            return dataclasses.replace(kernel, gemm=_shortened(kernel.gemm, work), bytes=round(kernel.bytes * share))
        case Depthwise():
            return dataclasses.replace(kernel, flops=round(kernel.flops * work), bytes=round(kernel.bytes * share))
    return kernel


def _shortened(gemm: Gemm, share: float) -> Gemm:
    return dataclasses.replace(gemm, m=max(1, round(gemm.m * share)))


def _input_casts(site: Site, dtypes: SiteDtypes, backward: bool = False) -> Iterator[Move]:
    for index, before, after in dtypes.casts:
        if not backward or site.inputs[index].requires_grad:
            yield cast(site.inputs[index].numel, *((after, before) if backward else (before, after)))


def _reshapes(site: Site, dtypes: SiteDtypes) -> Iterator[Move]:
    """Reshapes on the way here that are no views."""
    if elements := site.attrs.get("copied"):
        item = max((DTYPE_BYTES.get(dtype, 4) for dtype in dtypes.given), default=4)
        yield Move(Traffic.LAYOUT, 2 * elements * item, narrow=item == 2)


def _weight_casts(site: Site, dtypes: SiteDtypes, backward: bool = False) -> Iterator[Move]:
    for param, dtype in zip(site.params, dtypes.params, strict=True):
        if (
            dtype
            and param.meta.dtype != dtype
            and param.meta.is_floating
            and (not backward or param.meta.requires_grad)
        ):
            both = (dtype, param.meta.dtype) if backward else (param.meta.dtype, dtype)
            yield cast(param.meta.numel / site.calls, *both)


def _moves(site: Site, dtypes: SiteDtypes, setting: Setting, cost: Cost, *, backward: bool) -> Iterator[Move]:
    own = _moves_of_its_own(site, dtypes, cost, backward=backward)
    if own is not None:
        yield from own
        return
    reads, written = input_bytes(site, dtypes.inputs), sum(output_bytes(site, dtypes))
    if site.op == "group_norm" and len(site.inputs[0].shape) == 4 and in_channels_last(site, setting):
        # Its kernels take contiguous tensors alone; the convolution behind it wants channels last again.
        yield move(Traffic.LAYOUT, 2 * (sum(reads) + written), dtypes.compute, 2)
    if not backward and cost.traffic is Traffic.POINTWISE and (turned := mixed_bytes(site, dtypes, setting)):
        yield move(Traffic.TURNED, turned, _narrowest(dtypes))
        return
    if not backward and site.op in _KEEP_WHAT_THEY_OVERWRITE and site.attrs.get("inplace") and needs_backward(site):
        yield move(Traffic.JOINED, 2 * sum(reads), dtypes.compute)
    yield from _by_units(site, dtypes, setting, cost, sum(reads), written, backward=backward)


def _moves_of_its_own(site: Site, dtypes: SiteDtypes, cost: Cost, *, backward: bool) -> Iterator[Move] | None:
    """The moves of an op that its cost in units does not describe; ``None`` for any other."""
    reads, written = input_bytes(site, dtypes.inputs), sum(output_bytes(site, dtypes))
    family = op_named(site.op).family
    if family is Family.EMBEDDING:
        return _lookup(cost, _table_bytes(site), _looked_up(site, dtypes), dtypes, backward=backward)
    if site.op in _SCATTERS and len(site.inputs) > 1:
        return _scatter(site, dtypes, sum(reads[1:]), written, backward=backward)
    if family is Family.FFT and "stft" not in site.op:
        return transform_moves(site, dtypes, backward=backward)
    if softmax_in_half(site, dtypes):
        return _softmax_in_half(cost, sum(reads) / 2, backward=backward)
    if site.op in ROW_NORMS:
        return _row_norm(site, sum(reads) or written, backward=backward)
    if backward and site.op in ("mul", "div", "add", "sub"):
        return _arithmetic_backward(site, reads, written, dtypes)
    return None


def _softmax_in_half(cost: Cost, logits: float, *, backward: bool) -> Iterator[Move]:
    if backward:
        yield Move(Traffic.POINTWISE, 2 * logits)
    yield Move(cost.traffic, (3 if backward else 2) * logits, 2, narrow=True)


def _by_units(
    site: Site, dtypes: SiteDtypes, setting: Setting, cost: Cost, read: int, written: int, *, backward: bool
) -> Iterator[Move]:
    """Kernels that move so many times what the op reads and what it writes."""
    x_units, y_units, launches = cost.backward if backward else cost.forward
    moved = x_units * (read + (0 if backward else _table_bytes(site))) + y_units * written
    if not (moved and launches):
        return
    elements = max((tensor.numel for tensor in (*site.inputs, *site.outputs)), default=0)
    each = cost.instructions[1] if backward else cost.instructions[0]
    kind, narrowest = _traffic(site, dtypes, setting, cost, backward=backward), _narrowest(dtypes)
    kernels = move(kind, moved, narrowest, launches, each * elements)
    if not backward and (least := least_seconds(site)):
        kernels = dataclasses.replace(kernels, least=least)
    if kind in _ONE_BLOCK_A_CHANNEL:
        samples = site.inputs[0].shape[0] if site.op == "instance_norm" else 1
        kernels = dataclasses.replace(kernels, workers=samples * site.inputs[0].shape[1])
    elif kind in _LANES_ARE_CHANNELS and site.inputs[0].shape[1] <= _FEW_LANES:
        kernels = dataclasses.replace(kernels, bytes=2 * moved)
    yield kernels


def _table_bytes(site: Site) -> int:
    return sum(param.meta.nbytes for param in site.params)


def _narrowest(dtypes: SiteDtypes) -> str:
    floating = [dtype for dtype in (*dtypes.inputs, *dtypes.outputs) if dtype in (*HALF, "float32", "float64")]
    return min(floating, key=lambda dtype: DTYPE_BYTES[dtype], default="float32")


def _looked_up(site: Site, dtypes: SiteDtypes) -> int:
    """Bytes of the rows that indices name; those of a bag are summed, so that fewer are written."""
    item = DTYPE_BYTES.get(dtypes.outputs[0], 4) if dtypes.outputs else 4
    width = site.outputs[0].shape[-1] if site.outputs and site.outputs[0].shape else 1
    return max(sum(output_bytes(site, dtypes)), site.inputs[0].numel * width * item if site.inputs else 0)


def _scatter(site: Site, dtypes: SiteDtypes, added: int, written: int, *, backward: bool) -> Iterator[Move]:
    """Terms are read and added to their places one by one; the gradient of each is read there. Out of place, what is
    there is copied first."""
    dtype = dtypes.outputs[0] if dtypes.outputs else "float32"
    if not backward and not site.attrs.get("in_place"):
        yield move(Traffic.POINTWISE, 2 * written, dtype)
    yield move(Traffic.UNROLLED, 2 * added, dtype)


def _lookup(cost: Cost, table: int, written: int, dtypes: SiteDtypes, *, backward: bool) -> Iterator[Move]:
    """Rows are copied; their gradients are sorted and added into a table of zeros."""
    dtype = dtypes.outputs[0] if dtypes.outputs else "float32"
    units = cost.backward if backward else cost.forward
    if backward:
        yield move(Traffic.POINTWISE, table, dtype)
    yield move(cost.traffic if backward else Traffic.POINTWISE, units[1] * written, dtype, units[2])


def _row_norm(site: Site, read: int, *, backward: bool) -> Iterator[Move]:
    """One block of threads a row; the gradients of the weights are sums down the columns, by a kernel of their own."""
    if not site.outputs or not site.outputs[0].shape:
        return
    weights = [param.meta for param in site.params if len(param.meta.shape) < len(site.outputs[0].shape)]
    width = weights[0].numel if weights else site.outputs[0].shape[-1]
    rows = site.outputs[0].numel / max(width, 1)
    if not backward:
        yield Move(Traffic.POINTWISE, 2 * read, blocks=rows)
        return
    yield Move(Traffic.POINTWISE, 3 * read, blocks=rows / 3)
    if any(meta.requires_grad for meta in weights):
        yield Move(Traffic.NORM_WEIGHTS, 2 * read)


def _arithmetic_backward(site: Site, reads: Sequence[int], written: int, dtypes: SiteDtypes) -> Iterator[Move]:
    """A product hands each operand the gradient times the other; a sum hands it on, reduced where it was broadcast, and
    a difference hands on its negative to what is taken off."""
    scaled = site.op in ("mul", "div")
    dtype = dtypes.outputs[0] if dtypes.outputs else "float32"
    numel = site.outputs[0].numel if site.outputs else 0
    for place, (tensor, size) in enumerate(zip(site.inputs, reads, strict=True), start=1):
        if not tensor.requires_grad:
            continue
        is_second = 1 < place == len(reads)
        if scaled:
            other = sum(reads) - size if len(reads) > 1 else 0
            twice = 3 if site.op == "div" and is_second else 1
            kind = Traffic.UNROLLED if other and other != written else Traffic.POINTWISE
            yield move(kind, twice * (written + other + written), dtype, twice)
        if site.op == "sub" and is_second:
            yield move(Traffic.POINTWISE, 2 * written, dtype)
        if tensor.numel < numel:
            yield move(Traffic.REDUCTION, written + size, dtype)
    for param in site.params:
        if param.meta.requires_grad and numel:
            yield move(Traffic.REDUCTION, written, dtype)
            if scaled:
                yield move(Traffic.UNROLLED, 2 * written, dtype)


def _traffic(site: Site, dtypes: SiteDtypes, setting: Setting, cost: Cost, *, backward: bool) -> Traffic:
    """The kernel's kind where dtypes, shapes or layout decide it."""
    if cost.traffic is Traffic.POINTWISE and not _is_vectorised(site, dtypes):
        return Traffic.UNROLLED
    if site.op in ("cat", "stack") and not site.attrs.get("strided"):
        return Traffic.JOINED
    if backward and site.op in _SORTED_BACK:
        return Traffic.LAYOUT
    if op_named(site.op).family is Family.MEMORY and not backward and (turned := turns(site, dtypes)):
        return turned
    if cost.traffic is Traffic.GATHER and not backward:
        return Traffic.UNROLLED
    if cost.traffic is Traffic.BATCH_NORM:
        if site.op == "instance_norm":  # a batch norm of one sample, whose channels are those of all, in rows
            return Traffic.BATCH_NORM_NATIVE if dtypes.inputs[0] == "bfloat16" else Traffic.BATCH_NORM
        flat = len(site.inputs[0].shape) == 2
        last = flat or (in_channels_last(site, setting) and not is_sequence_norm(site))
        if flat or dtypes.inputs[0] == "bfloat16":
            return Traffic.BATCH_NORM_NATIVE_LAST if last else Traffic.BATCH_NORM_NATIVE
        return Traffic.BATCH_NORM_LAST if last else Traffic.BATCH_NORM
    return cost.traffic


def _is_vectorised(site: Site, dtypes: SiteDtypes) -> bool:
    """Whether a pointwise kernel loads several elements at a time: one dtype, one shape."""
    large = [(tensor, dtype) for tensor, dtype in zip(site.inputs, dtypes.inputs, strict=True) if tensor.numel > 1]
    stored = [param.meta for param in site.params if param.meta.numel > 1]
    numel = site.outputs[0].numel if site.outputs else 0
    kinds = {dtype for tensor, dtype in large if tensor.is_floating} | set(dtypes.outputs)
    return len(kinds) <= 1 and all(tensor.numel == numel for tensor in (*(tensor for tensor, _ in large), *stored))


def _products(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    number_format = format_of(dtypes.compute, setting.recipe)
    fp8 = setting.recipe.fp8 if converts_to_fp8(site) else None
    if fp8:
        yield from fp8_casts(site, setting)
        number_format = Format.FP8_E4M3
    share = ROWWISE_SHARE if fp8 and fp8 != "tensorwise" else 1.0
    for gemm in of_one_call(site):
        directions = [Pass.FORWARD]
        if any(tensor.requires_grad for tensor in site.inputs):
            directions.append(Pass.INPUT)
        if any(param.meta.requires_grad for param in site.params) or len(site.inputs) > 1:
            directions.append(Pass.WEIGHT)
        for direction in directions:
            product: Kernel = Product(gemm, number_format, direction, setting.fixed, setting.fused, share)
            if site.op == "grouped_mm":
                product = Groups(gemm, number_format, direction)
            yield product, direction is not Pass.FORWARD
    if trains_bias(site):
        yield move(Traffic.REDUCTION, sum(output_bytes(site, dtypes)), dtypes.compute), True


def _own_products(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """The products in an autograd function of the user's own, whose backward is taken to have two for each: no graph
    shows what it does."""
    number_format = format_of(dtypes.compute, setting.recipe)
    for gemm in of_one_call(site):
        for direction in Pass:
            product = Product(gemm, number_format, direction, setting.fixed, setting.fused)
            yield product, direction is not Pass.FORWARD


def _recurrent(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    number_format = format_of(dtypes.compute, setting.recipe)
    for gemm in of_one_call(site):
        if gemm.batch > 1:
            # Gates are read, state and gates are written; the backward reads them again and writes their gradients.
            gates = 2 * gemm.m * gemm.n * number_format.bytes
            yield Steps(gemm, number_format, gates), False
            yield Steps(gemm, number_format, 2 * gates, kernels=4), True
            yield Product(dataclasses.replace(gemm, m=gemm.m * gemm.batch, batch=1), number_format, Pass.WEIGHT), True
        else:
            for direction in Pass:
                yield Product(gemm, number_format, direction, setting.fixed), direction is not Pass.FORWARD


_PRODUCTS = {
    Family.GEMM: _products,
    Family.CONV: convolution_kernels,
    Family.ATTENTION: attention_kernels,
    Family.RNN: _recurrent,
}

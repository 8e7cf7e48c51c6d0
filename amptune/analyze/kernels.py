"""The kernels that one site runs in a training step under a recipe, to be timed on any GPU.

Assumptions beside those of ``core.roofline``: a weight is cast once a step (autocast's cache), an activation once for
each consumer; a gradient that several consumers hand back is added up in memory; FP8 products cast their operands in
kernels of their own, by the number that torchao's eager code runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from amptune.analyze.moves import Cost, cost_of
from amptune.core.autocast import SiteDtypes
from amptune.core.formats import Format
from amptune.core.graph import DTYPE_BYTES, Gemm, Site
from amptune.core.hardware import FP8_MULTIPLE, Gpu
from amptune.core.ops import Family, op_named
from amptune.core.recipes import Recipe
from amptune.core.roofline import (
    Pass,
    Traffic,
    attention_seconds,
    conv_seconds,
    efficiency_of,
    gemm_seconds,
    oriented,
    padded_gemm,
    traffic_seconds,
)

ROWWISE_SHARE = 0.72
"""Rate of FP8 products with a scale for each row against those with one scale, H100 (see estimate_check)."""
ATTRS_READ = ("channels_last", "is_causal", "masked")
"""The arguments of ops that kernels depend on."""


class Kernel(Protocol):
    """Something that takes time on a GPU."""

    @property
    def launches(self) -> int:
        """How many kernels it is."""

    def seconds(self, gpu: Gpu) -> float:
        """Its time."""


@dataclasses.dataclass(frozen=True)
class Move:
    """Kernels that are bound by the bytes they move."""

    traffic: Traffic
    bytes: float
    launches: int = 1

    def seconds(self, gpu: Gpu) -> float:
        """The larger of the traffic's time and the shortest time of so many kernels."""
        shortest = self.launches * efficiency_of(gpu).kernel_us * 1e-6
        return max(traffic_seconds(self.bytes, self.traffic, gpu), shortest) if self.bytes else 0.0


@dataclasses.dataclass(frozen=True)
class Product:
    """One matrix product; ``fixed`` pads its misaligned dimensions.

    ``may_pad``: a compiler pads them at run time where that is faster, by copies of operands and result.
    ``share``: of the usual rate, for kernels that scale each row.
    """

    gemm: Gemm
    format: Format
    direction: Pass
    fixed: bool = False
    may_pad: bool = False
    share: float = 1.0
    launches: int = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the product in its direction."""
        gemm = padded_gemm(self.gemm, self.format, gpu) if self.fixed else self.gemm
        rows = (gemm.k, gemm.n)
        plain = gemm_seconds(oriented(gemm, self.direction), self.format, gpu, rows=rows) / self.share
        if not self.may_pad or gemm == (wide := padded_gemm(gemm, self.format, gpu)):
            return plain
        copied = 2 * (gemm.m * (gemm.k + gemm.n) + gemm.k * gemm.n) * self.format.bytes
        by_compiler = gemm_seconds(oriented(wide, self.direction), self.format, gpu, rows=(wide.k, wide.n))
        return min(plain, by_compiler + traffic_seconds(copied, Traffic.LAYOUT, gpu))


@dataclasses.dataclass(frozen=True)
class Steps:
    """The recurrent products of an RNN: ``gemm.batch`` steps, one after the other."""

    gemm: Gemm
    format: Format
    launches: int = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of all steps; cuDNN launches them as one."""
        return self.gemm.batch * gemm_seconds(dataclasses.replace(self.gemm, batch=1), self.format, gpu)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One pass of a convolution, by its implicit product and the bytes of its tensors."""

    gemm: Gemm
    format: Format
    direction: Pass
    bytes: int
    launches: int = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the pass in the layout that the tensor cores want."""
        return conv_seconds(oriented(self.gemm, self.direction), self.format, gpu, bytes_moved=self.bytes)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Fused attention, forward or backward; ``flops`` are the forward's. A mask rules out the flash kernel."""

    flops: int
    format: Format
    backward: bool
    masked: bool = False
    launches: int = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the kernel."""
        slow = 1.6 if self.masked and self.format.bits == 16 else 1.0
        return slow * attention_seconds(self.flops, self.format, gpu, backward=self.backward)


@dataclasses.dataclass(frozen=True)
class SiteKernels:
    """All kernels of a site in one step."""

    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the kernels of a site are to be worked out.

    Attributes:
        recipe: under which it runs.
        fixed: dimensions padded and convolutions in channels_last.
        train: with a backward.
        fused: compiled: pointwise work is priced by :mod:`amptune.analyze.fusion`, casts are free.
        holds_output: whether the training loop keeps the model's output in a variable through the backward.
    """

    recipe: Recipe
    fixed: bool = False
    train: bool = True
    fused: bool = False
    holds_output: bool = True


def kernels_of(site: Site, dtypes: SiteDtypes, setting: Setting) -> SiteKernels:
    """The kernels of one site, over all of its calls."""
    forward: list[Kernel] = []
    backward: list[Kernel] = []
    family = op_named(site.op).family
    if not setting.fused:
        forward += _input_casts(site, dtypes)
        backward += _input_casts(site, dtypes, backward=True)
    forward += _weight_casts(site, dtypes)
    backward += _weight_casts(site, dtypes, backward=True)
    if family in _PRODUCTS:
        own = list(_PRODUCTS[family](site, dtypes, setting))
        forward += [kernel for kernel, is_backward in own if not is_backward]
        backward += [kernel for kernel, is_backward in own if is_backward]
    elif not setting.fused and (cost := cost_of(site.op)) is not None:
        forward += _moves(site, dtypes, cost, backward=False)
        backward += _moves(site, dtypes, cost, backward=True)
    trained = setting.train and needs_backward(site)
    share = call_share(site) / site.calls
    if share != 1:
        forward, backward = ([_scaled(kernel, share) for kernel in kernels] for kernels in (forward, backward))
    return SiteKernels(tuple(forward) * site.calls, tuple(backward) * site.calls if trained else ())


def _scaled(kernel: Kernel, share: float) -> Kernel:
    """A kernel with ``share`` times the bytes, where bytes are what it is about."""
    return dataclasses.replace(kernel, bytes=kernel.bytes * share) if isinstance(kernel, Move) else kernel


def call_share(site: Site) -> float:
    """Bytes of all calls of a site over those of its first one, whose shapes the site has: a shared module may be
    called on tensors of other sizes."""
    tensors = (*site.inputs, *site.outputs, *(param.meta for param in site.params))
    first = sum(tensor.nbytes for tensor in tensors)
    return max(1.0, site.bytes_moved / first) if site.calls > 1 and first and site.bytes_moved else float(site.calls)


def needs_backward(site: Site) -> bool:
    """Whether autograd runs a backward for the site."""
    return any(tensor.requires_grad for tensor in (*site.inputs, *(param.meta for param in site.params)))


def format_of(dtype: str, recipe: Recipe) -> Format:
    """The format that products of this dtype run in."""
    found = Format.parse(dtype) if dtype in ("float16", "bfloat16") else Format.FP32
    return Format.TF32 if found is Format.FP32 and recipe.tf32 else found


def converts_to_fp8(site: Site) -> bool:
    """Whether an FP8 recipe converts the site: linear modules whose K and N are multiples of 16."""
    fits = all(gemm.k % FP8_MULTIPLE == 0 and gemm.n % FP8_MULTIPLE == 0 for gemm in site.gemms)
    return site.op == "linear" and site.is_module and bool(site.gemms) and fits and not site.opaque


def input_bytes(site: Site, dtypes: Sequence[str]) -> list[int]:
    """Bytes of each input in the given dtypes."""
    return [tensor.numel * DTYPE_BYTES.get(dtype, 4) for tensor, dtype in zip(site.inputs, dtypes, strict=True)]


def output_bytes(site: Site, dtypes: SiteDtypes) -> list[int]:
    """Bytes of each output as delivered."""
    pairs = zip(site.outputs, dtypes.outputs, strict=True)
    return [tensor.numel * DTYPE_BYTES.get(dtype, 4) for tensor, dtype in pairs]


def _input_casts(site: Site, dtypes: SiteDtypes, backward: bool = False) -> Iterator[Move]:
    for index, before, after in dtypes.casts:
        if not backward or site.inputs[index].requires_grad:
            size = site.inputs[index].numel * (DTYPE_BYTES[before] + DTYPE_BYTES[after])
            yield Move(Traffic.CAST, size)


def _weight_casts(site: Site, dtypes: SiteDtypes, backward: bool = False) -> Iterator[Move]:
    for param, dtype in zip(site.params, dtypes.params, strict=True):
        if (
            dtype
            and param.meta.dtype != dtype
            and param.meta.is_floating
            and (not backward or param.meta.requires_grad)
        ):
            yield Move(Traffic.CAST, param.meta.numel * (param.meta.itemsize + DTYPE_BYTES[dtype]) / site.calls)


def _moves(site: Site, dtypes: SiteDtypes, cost: Cost, *, backward: bool) -> Iterator[Move]:
    reads = input_bytes(site, dtypes.inputs)
    written = sum(output_bytes(site, dtypes))
    table = sum(param.meta.nbytes for param in site.params)
    if op_named(site.op).family is Family.EMBEDDING:
        zeros = table if backward else 0
        units = cost.backward if backward else cost.forward
        yield Move(cost.traffic, zeros + units[1] * written, units[2])
        return
    if backward and site.op in ("mul", "div", "add", "sub"):
        yield from _arithmetic_backward(site, reads, written)
        return
    x_units, y_units, launches = cost.backward if backward else cost.forward
    moved = x_units * (sum(reads) + (table if not backward else 0)) + y_units * written
    if moved and launches:
        yield Move(_traffic(site, dtypes, cost), moved, launches)


def _arithmetic_backward(site: Site, reads: Sequence[int], written: int) -> Iterator[Move]:
    """A product hands each operand the gradient times the other; a sum hands it on, reduced where it was broadcast."""
    scaled = site.op in ("mul", "div")
    numel = site.outputs[0].numel if site.outputs else 0
    for tensor, size in zip(site.inputs, reads, strict=True):
        if not tensor.requires_grad:
            continue
        if scaled:
            other = sum(reads) - size if len(reads) > 1 else 0
            twice = 3 if site.op == "div" and tensor is site.inputs[-1] and len(reads) > 1 else 1
            yield Move(Traffic.POINTWISE, twice * (written + other + written), twice)
        if tensor.numel < numel:
            yield Move(Traffic.REDUCTION, written + size)
    for param in site.params:
        if param.meta.requires_grad and numel:
            yield Move(Traffic.REDUCTION, written * (3 if scaled else 1), 2 if scaled else 1)


def _traffic(site: Site, dtypes: SiteDtypes, cost: Cost) -> Traffic:
    """BatchNorm in BF16 runs torch's own kernel, which is slower than cuDNN's."""
    if cost.traffic is Traffic.BATCH_NORM and dtypes.inputs and dtypes.inputs[0] == "bfloat16":
        return Traffic.BATCH_NORM_BF16
    return cost.traffic


_Timed = Iterator[tuple[Kernel, bool]]


def _products(site: Site, dtypes: SiteDtypes, setting: Setting) -> _Timed:
    number_format = format_of(dtypes.compute, setting.recipe)
    fp8 = setting.recipe.fp8 if converts_to_fp8(site) else None
    if fp8:
        yield from _fp8_casts(site, setting)
        number_format = Format.FP8_E4M3
    share = ROWWISE_SHARE if fp8 and fp8 != "tensorwise" else 1.0
    for gemm in _of_one_call(site):
        directions = [Pass.FORWARD]
        if any(tensor.requires_grad for tensor in site.inputs):
            directions.append(Pass.INPUT)
        if any(param.meta.requires_grad for param in site.params) or len(site.inputs) > 1:
            directions.append(Pass.WEIGHT)
        for direction in directions:
            product = Product(gemm, number_format, direction, setting.fixed, setting.fused, share)
            yield product, direction is not Pass.FORWARD
    if any(len(param.meta.shape) == 1 and param.meta.requires_grad for param in site.params):
        yield Move(Traffic.REDUCTION, sum(output_bytes(site, dtypes))), True


def _fp8_casts(site: Site, setting: Setting) -> _Timed:
    """Scales and casts of input, weight and output gradient: fused by a compiler, a kernel for each op in eager."""
    weight = sum(param.meta.numel for param in site.params if len(param.meta.shape) > 1)
    activations = sum(tensor.numel for tensor in site.inputs)
    gradient = sum(tensor.numel for tensor in site.outputs)
    # Compiled: read for the largest value, read again and write 1 byte, twice for both layouts. Eager: abs, max, two
    # products in FP32, clamp and the cast, each through memory.
    per_element, launches = (8, 2) if setting.fused else (24, 8)
    yield Move(Traffic.CAST, (activations + 2 * weight) * per_element, 2 * launches), False
    yield Move(Traffic.CAST, gradient * per_element, launches), True


def _of_one_call(site: Site) -> tuple[Gemm, ...]:
    return site.gemms[: max(1, len(site.gemms) // site.calls)] if site.gemms else ()


def _convolutions(site: Site, dtypes: SiteDtypes, setting: Setting) -> _Timed:
    number_format = format_of(dtypes.compute, setting.recipe)
    item = DTYPE_BYTES.get(dtypes.compute, 4)
    given, made = site.inputs[0].numel * item, sum(output_bytes(site, dtypes))
    moved = given + made + sum(param.meta.numel for param in site.params) * item
    transposes = _is_transposed(site, number_format) and not setting.fixed
    for gemm in _of_one_call(site):
        passes = [(Pass.FORWARD, given + made)]
        if site.inputs[0].requires_grad:
            passes.append((Pass.INPUT, given + made))
        if any(param.meta.requires_grad for param in site.params):
            passes.append((Pass.WEIGHT, given + made))
        for direction, layout in passes:
            is_backward = direction is not Pass.FORWARD
            yield Convolution(gemm, number_format, direction, moved), is_backward
            if transposes:
                yield Move(Traffic.LAYOUT, 2 * layout, 2), is_backward


def _is_transposed(site: Site, number_format: Format) -> bool:
    """Whether the tensor core kernels have to transpose contiguous tensors first."""
    spatial = site.op.startswith(("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"))
    return spatial and number_format is not Format.FP32 and site.attrs.get("channels_last") is False


def _attention(site: Site, dtypes: SiteDtypes, setting: Setting) -> _Timed:
    if site.op == "multi_head_attention":
        yield from _multi_head(site, dtypes, setting)
        return
    number_format = format_of(dtypes.compute, setting.recipe)
    flops = sum(gemm.flops for gemm in _of_one_call(site))
    if site.attrs.get("is_causal"):
        flops //= 2
    masked = bool(site.attrs.get("masked"))
    yield Attention(flops, number_format, False, masked), False
    yield Attention(flops, number_format, True, masked), True
    yield Move(Traffic.POINTWISE, 2 * sum(output_bytes(site, dtypes))), True


def _multi_head(site: Site, dtypes: SiteDtypes, setting: Setting) -> _Timed:
    """nn.MultiheadAttention returns its weights by default, so it writes the scores: products and a softmax."""
    yield from _products(site, dtypes, setting)
    scores = sum(gemm.batch * gemm.m * gemm.n for gemm in _of_one_call(site) if gemm.batch > 1) // 2
    item = DTYPE_BYTES.get(dtypes.compute, 4)
    yield Move(Traffic.SOFTMAX, scores * (2 * item + 8), 3), False
    yield Move(Traffic.SOFTMAX, scores * (3 * item + 12), 3), True


def _recurrent(site: Site, dtypes: SiteDtypes, setting: Setting) -> _Timed:
    number_format = format_of(dtypes.compute, setting.recipe)
    for gemm in _of_one_call(site):
        if gemm.batch > 1:
            yield Steps(gemm, number_format), False
            yield Steps(gemm, number_format), True
            yield Product(dataclasses.replace(gemm, m=gemm.m * gemm.batch, batch=1), number_format, Pass.WEIGHT), True
        else:
            for direction in Pass:
                yield Product(gemm, number_format, direction, setting.fixed), direction is not Pass.FORWARD


_PRODUCTS = {
    Family.GEMM: _products,
    Family.CONV: _convolutions,
    Family.ATTENTION: _attention,
    Family.RNN: _recurrent,
}

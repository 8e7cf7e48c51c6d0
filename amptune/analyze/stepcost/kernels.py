"""Kernels of a training step, to be timed on any GPU, and what they depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from amptune.core.attending import Attending, attention_seconds
from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.formats import Format
from amptune.core.graph import DTYPE_BYTES, Gemm, Param, Site
from amptune.core.hardware import Gpu
from amptune.core.recipes import Recipe
from amptune.core.roofline import (
    Pass,
    Traffic,
    conv_seconds,
    depthwise_seconds,
    efficiency_of,
    gemm_seconds,
    oriented,
    padded_gemm,
    traffic_seconds,
)

ATTRS_READ = ("call_params", "channels_last", "is_causal", "masked", "mask_strided", "dropout_p", "copied",
              "rearranged", "stride", "dilation", "in_place", "strided", "in_rows", "fused", "batch_first", "embed_dim",
              "kdim", "vdim", "dropout", "called", "dim", "mode", "inplace", "s", "image")  # fmt: skip
"""The arguments of ops that kernels depend on."""


class Kernel(Protocol):
    """Something that takes time on a GPU."""

    @property
    def ops(self) -> float:
        """What it costs the processor, in ops that Python calls."""

    def seconds(self, gpu: Gpu) -> float:
        """Its time."""


_BENEATH = 0.4
"""What a kernel beneath an op costs the processor, against an op that Python calls: a cast by autocast, one more kernel
of the op. No Python, no lookup of a module, no argument to read (steps beside H200s)."""
_LIBRARY_LAUNCH = 0.25
"""The same for a kernel that a library launches itself, as the steps of a GRU and the transposes around a convolution:
no dispatcher of torch either (a GRU's steps, H200)."""
_GROUP = 0.6
"""The same for one of the groups of rows that torch multiplies one by one: four views, a number read and a product."""
_IN_A_STEP = 1.1
"""Time of a kernel that is bound by memory within a step against the same kernel alone, run over and over: with it the
mean error of the steps of all 47 models of steps_*_h200.json is least (1.07 to 1.1 whichever of them is left out)."""
_TAKEN_FROM_STEPS = (
    Traffic.CAST,
    Traffic.CAST_UP,
    Traffic.NORM_WEIGHTS,
    Traffic.SOFTMAX,
    Traffic.OPTIMIZER,
    Traffic.FUSED,
)
"""Kinds whose rates are those of steps already (see ``core.efficiency``)."""
_BY_NO_OP = (Traffic.CAST, Traffic.CAST_UP, Traffic.TRANSPOSE)
Timed = Iterator[tuple[Kernel, bool]]
"""Kernels, each with whether it belongs to the backward."""


@dataclasses.dataclass(frozen=True)
class Move:
    """Kernels that are bound by the bytes they move, or by the instructions that they run on each element.

    ``blocks``: of threads, for kernels that have one for each row. ``narrow``: its elements have two bytes.
    ``workers``: blocks that share all the work, for kernels that have a fixed number (see :func:`traffic_seconds`).
    ``least``: seconds that its results take, as on an H200, where there are many of few elements each.
    """

    traffic: Traffic
    bytes: float
    launches: int = 1
    instructions: float = 0.0
    blocks: float = 0.0
    narrow: bool = False
    workers: float = 0
    least: float = 0.0

    @property
    def ops(self) -> float:
        """One op and its further kernels beneath it; kernels that all run beneath another op are none of their own."""
        if self.traffic is Traffic.TRANSPOSE:
            return _LIBRARY_LAUNCH * self.launches
        return _BENEATH * self.launches if self.traffic in _BY_NO_OP else 1 + _BENEATH * (self.launches - 1)

    def seconds(self, gpu: Gpu) -> float:
        """The start of the kernels, and the larger of traffic and arithmetic."""
        if not self.bytes:
            return 0.0
        constants = efficiency_of(gpu)
        starts = self.launches * constants.kernel_us + self.blocks * constants.block_us / gpu.sms
        slower = 1.0 if self.traffic in _TAKEN_FROM_STEPS else _IN_A_STEP
        moving = slower * traffic_seconds(
            self.bytes, self.traffic, gpu, narrow=self.narrow, instructions=self.instructions, workers=self.workers
        )
        return starts * 1e-6 + max(moving, self.least)


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A kernel that is bound by neither bytes nor operations: few threads one after the other, or many that write to
    one address. ``alone`` is its time in seconds, as on an H200."""

    alone: float
    ops: float = 1

    def seconds(self, gpu: Gpu) -> float:
        """That time, on any GPU."""
        return self.alone


def cast(elements: float, before: str, after: str, launches: int = 1) -> Move:
    """A change of dtype; from a narrow one to a wide one torch's kernel is slower."""
    items = DTYPE_BYTES.get(before, 4), DTYPE_BYTES.get(after, 4)
    return Move(Traffic.CAST_UP if items[0] < items[1] else Traffic.CAST, elements * sum(items), launches)


def move(traffic: Traffic, moved: float, dtype: str, launches: int = 1, instructions: float = 0.0) -> Move:
    """Kernels on elements of ``dtype``."""
    return Move(traffic, moved, launches, instructions, narrow=DTYPE_BYTES.get(dtype, 4) == 2)


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
    ops: float = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the product in its direction."""
        gemm = padded_gemm(self.gemm, self.format, gpu) if self.fixed else self.gemm
        rows = (gemm.k, gemm.n)
        product = oriented(gemm, self.direction)
        plain = gemm_seconds(product, self.format, gpu, rows=rows, direction=self.direction) / self.share
        if not self.may_pad or gemm == (wide := padded_gemm(gemm, self.format, gpu)):
            return plain
        copied = 2 * (gemm.m * (gemm.k + gemm.n) + gemm.k * gemm.n) * self.format.bytes
        product = oriented(wide, self.direction)
        by_compiler = gemm_seconds(product, self.format, gpu, rows=(wide.k, wide.n), direction=self.direction)
        return min(plain, by_compiler + traffic_seconds(copied, Traffic.LAYOUT, gpu))


@dataclasses.dataclass(frozen=True)
class Groups:
    """The products of ``gemm.batch`` groups of rows with a matrix each (``grouped_mm``): one kernel, where it is there.

    Elsewhere torch reads on the CPU where the groups end, for which it waits for the GPU, and multiplies one group
    after the other (ATen/native/GroupedMMUtils.h, torch 2.13).
    """

    gemm: Gemm
    format: Format
    direction: Pass

    @property
    def ops(self) -> float:
        """The call of the user's code."""
        return 1.0

    def further_ops(self, gpu: Gpu) -> float:
        """Those in which torch calls itself: for each group, where there is no kernel for all."""
        return 0.0 if has_grouped_kernel(self.format, gpu) else _GROUP * self.gemm.batch

    def seconds(self, gpu: Gpu) -> float:
        """Time of all groups."""
        gemm = oriented(self.gemm, self.direction)
        if has_grouped_kernel(self.format, gpu):
            return gemm_seconds(gemm, self.format, gpu, direction=self.direction)
        one = dataclasses.replace(gemm, batch=1)
        return gemm.batch * gemm_seconds(one, self.format, gpu, direction=self.direction)


def has_grouped_kernel(number_format: Format, gpu: Gpu) -> bool:
    """Whether torch multiplies groups of rows in one kernel: in BF16 on Hopper and on Blackwell of data centers."""
    return number_format is Format.BF16 and gpu.capability is not None and gpu.capability[0] in (9, 10)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The recurrent part of an RNN: ``gemm.batch`` steps, one after the other, of a product and the gates' arithmetic.

    ``gates``: bytes that the arithmetic of one step moves. ``kernels``: that cuDNN launches for one step, in a loop of
    its own that costs the processor less than an op does.
    """

    gemm: Gemm
    format: Format
    gates: float = 0.0
    kernels: int = 2

    @property
    def ops(self) -> float:
        """Of all steps."""
        return _LIBRARY_LAUNCH * self.kernels * self.gemm.batch

    def seconds(self, gpu: Gpu) -> float:
        """Time of all steps on the GPU."""
        product = gemm_seconds(dataclasses.replace(self.gemm, batch=1), self.format, gpu)
        return self.gemm.batch * (product + Move(Traffic.POINTWISE, self.gates).seconds(gpu))


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One pass of a convolution, by its implicit product and the bytes of its tensors (see :func:`conv_seconds`)."""

    gemm: Gemm
    format: Format
    direction: Pass
    bytes: int
    taps: int = 1
    winograd: bool = False
    few_channels: bool = False
    volume: bool = False
    ops: float = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the pass in the layout that the library's kernels want."""
        return conv_seconds(
            self.gemm, self.format, gpu, self.direction, bytes_moved=self.bytes, taps=self.taps,
            winograd=self.winograd, few_channels=self.few_channels, volume=self.volume,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """One pass of a convolution with one channel a group."""

    flops: int
    format: Format
    direction: Pass
    bytes: int
    channels_last: bool = False
    taps: int = 1
    ops: float = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the pass by the kernel for this layout."""
        return depthwise_seconds(
            self.flops, self.format, gpu, self.direction, bytes_moved=self.bytes, channels_last=self.channels_last,
            taps=self.taps,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Attention:
    """Fused attention, forward or backward."""

    work: Attending
    format: Format
    backward: bool
    ops: float = 1

    def seconds(self, gpu: Gpu) -> float:
        """Time of the kernel."""
        return attention_seconds(self.work, self.format, gpu, backward=self.backward)


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
        fused: compiled: pointwise work is priced by :mod:`amptune.analyze.stepcost.fusion`, casts are free.
        holds_output: whether the training loop keeps the model's output in a variable through the backward.
    """

    recipe: Recipe
    fixed: bool = False
    train: bool = True
    fused: bool = False
    holds_output: bool = True


def params_of_one_call(site: Site) -> tuple[Param, ...]:
    """Those of the first call of a line that is called with several."""
    return site.params[: site.attrs.get("call_params", len(site.params))]


def call_share(site: Site) -> float:
    """Bytes of all calls of a site over those of its first one, whose shapes the site has: a shared module may be
    called on tensors of other sizes."""
    tensors = (*site.inputs, *site.outputs, *(param.meta for param in params_of_one_call(site)))
    first = sum(tensor.nbytes for tensor in tensors)
    return max(1.0, site.bytes_moved / first) if site.calls > 1 and first and site.bytes_moved else float(site.calls)


def needs_backward(site: Site) -> bool:
    """Whether autograd runs a backward for the site."""
    return any(tensor.requires_grad for tensor in (*site.inputs, *(param.meta for param in site.params)))


def format_of(dtype: str, recipe: Recipe) -> Format:
    """The format that products of this dtype run in; FP32 stands for FP64, which no flag lowers to TF32."""
    found = Format.parse(dtype) if dtype in ("float16", "bfloat16") else Format.FP32
    return Format.TF32 if found is Format.FP32 and recipe.tf32 and dtype != "float64" else found


def input_bytes(site: Site, dtypes: Sequence[str]) -> list[int]:
    """Bytes of each input in the given dtypes."""
    return [tensor.numel * DTYPE_BYTES.get(dtype, 4) for tensor, dtype in zip(site.inputs, dtypes, strict=True)]


def output_bytes(site: Site, dtypes: SiteDtypes) -> list[int]:
    """Bytes of each output as delivered."""
    pairs = zip(site.outputs, dtypes.outputs, strict=True)
    return [tensor.numel * DTYPE_BYTES.get(dtype, 4) for tensor, dtype in pairs]


def softmax_in_half(site: Site, dtypes: SiteDtypes) -> bool:
    """Whether a cross entropy takes its log_softmax in 16 bits.

    It names the dtype of its input to log_softmax, which autocast then leaves alone; the cast to FP32 comes before the
    loss itself (aten/src/ATen/native/LossNLL.cpp).
    """
    return site.op == "cross_entropy" and any(index == 0 and before in HALF for index, before, _ in dtypes.casts)


def of_one_call(site: Site) -> tuple[Gemm, ...]:
    """The products of the first call."""
    return site.gemms[: max(1, len(site.gemms) // site.calls)] if site.gemms else ()


def has_bias(site: Site) -> bool:
    """Whether the site adds a vector to its result."""
    return any(len(param.meta.shape) == 1 for param in site.params)


def trains_bias(site: Site) -> bool:
    """Whether that vector has a gradient."""
    return any(len(param.meta.shape) == 1 and param.meta.requires_grad for param in site.params)

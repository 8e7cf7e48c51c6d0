"""The kernels of convolutions: cuDNN's passes, the transposes around them, and torch's own sums for the bias.

- Kernels for tensor cores want channels last: contiguous tensors are transposed before and after, but for 1 x 1
  convolutions of stride 1, which are plain products in either layout.
- They load 16 bytes at a time, so input channels are padded to a multiple of that.
- The bias is added by a kernel of its own (aten/src/ATen/native/Convolution.cpp), its gradient is a sum.
- A convolution with one channel a group is bound by the vector units, at rates that depend on layout, format and pass.
"""

from __future__ import annotations

import dataclasses
import math

from amptune.analyze.kernels import (
    Convolution,
    Depthwise,
    Setting,
    Timed,
    format_of,
    has_bias,
    move,
    of_one_call,
    output_bytes,
    trains_bias,
)
from amptune.core.autocast import SiteDtypes
from amptune.core.formats import Format
from amptune.core.graph import DTYPE_BYTES, Gemm, Site
from amptune.core.hardware import REQUIRED_BYTES
from amptune.core.roofline import Pass, Traffic

_SPATIAL = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")


def convolution_kernels(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """The kernels of one call, each with whether it is the backward's."""
    number_format = format_of(dtypes.compute, setting.recipe)
    item = DTYPE_BYTES.get(dtypes.compute, 4)
    given, made = site.inputs[0].numel * item, sum(output_bytes(site, dtypes))
    moved = given + made + sum(param.meta.numel for param in site.params) * item
    taps = _taps(site)
    keeps_size = bool(site.outputs) and site.inputs[0].shape[2:] == site.outputs[0].shape[2:]
    transposes = _is_transposed(site, number_format) and not setting.fixed
    for gemm in of_one_call(site):
        for direction in _passes(site):
            behind = direction is not Pass.FORWARD
            if _is_depthwise(site, gemm):
                last = setting.fixed or bool(site.attrs.get("channels_last"))
                yield Depthwise(gemm.flops, number_format, direction, moved, last, taps=gemm.k), behind
                continue
            loaded = _loaded(gemm, site, number_format)
            few = number_format is not Format.FP32 and _channels(gemm, site) * number_format.bytes < REQUIRED_BYTES
            yield Convolution(loaded, number_format, direction, moved, taps, keeps_size, few), behind
            if transposes:
                yield move(Traffic.TRANSPOSE, 2 * (given + made), dtypes.compute, 3), behind
    if has_bias(site):
        yield move(Traffic.UNROLLED, 2 * made, dtypes.compute), False
    if trains_bias(site):
        yield move(Traffic.REDUCTION, made, dtypes.compute), True


def _passes(site: Site) -> list[Pass]:
    passes = [Pass.FORWARD]
    if site.inputs[0].requires_grad:
        passes.append(Pass.INPUT)
    if any(param.meta.requires_grad for param in site.params) or len(site.inputs) > 1:
        passes.append(Pass.WEIGHT)
    return passes


def _is_depthwise(site: Site, gemm: Gemm) -> bool:
    """Whether each group has one input channel."""
    shape = site.inputs[0].shape
    return gemm.batch > 1 and len(shape) > 2 and gemm.batch == shape[1]


def _loaded(gemm: Gemm, site: Site, number_format: Format) -> Gemm:
    """The product with input channels as the kernels for tensor cores load them."""
    channels = _channels(gemm, site)
    if number_format is Format.FP32 or not channels or gemm.k % channels:
        return gemm
    multiple = REQUIRED_BYTES // number_format.bytes
    return dataclasses.replace(gemm, k=gemm.k // channels * math.ceil(channels / multiple) * multiple)


def _channels(gemm: Gemm, site: Site) -> int:
    """Input channels of a group."""
    shape = site.inputs[0].shape
    return shape[1] // gemm.batch if len(shape) > 2 else 0


def _taps(site: Site) -> int:
    """Positions of the kernel."""
    weights = [param.meta.shape for param in site.params if len(param.meta.shape) > 2]
    return math.prod(weights[0][2:]) if weights else 1


def _is_transposed(site: Site, number_format: Format) -> bool:
    """Whether the kernels for tensor cores have to transpose contiguous tensors first."""
    spatial = site.op.startswith(_SPATIAL)
    if not spatial or number_format is Format.FP32 or site.attrs.get("channels_last") is not False:
        return False
    return not _is_pointwise(site)


def _is_pointwise(site: Site) -> bool:
    """Whether the convolution is 1 x 1 with stride 1."""
    same = bool(site.outputs) and site.inputs[0].shape[2:] == site.outputs[0].shape[2:]
    return bool(site.params) and _taps(site) == 1 and same

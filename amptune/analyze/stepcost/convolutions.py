"""The kernels of convolutions: cuDNN's passes, the transposes around them, and torch's own sums for the bias.

- Kernels for tensor cores want channels last: contiguous tensors are transposed before and after, but for 1 x 1
  convolutions of stride 1, which are plain products in either layout.
- They load 16 bytes at a time, so input channels are padded to a multiple of that. The input gradient of fewer
  channels (three colours) has kernels in FP32 alone.
- The bias is added by a kernel of its own (aten/src/ATen/native/Convolution.cpp), its gradient is a sum.
- A convolution with one channel a group is bound by the vector units, at rates that depend on layout, format and pass.
- A transposed convolution is the input gradient of the convolution the other way, and its input gradient that
  convolution itself: the same kernels with the passes exchanged.
- One dimension is the two of an image with a height of 1 (aten/src/ATen/native/Convolution.cpp).
"""

from __future__ import annotations

import dataclasses
import math

from amptune.analyze.stepcost.images import in_channels_last
from amptune.analyze.stepcost.kernels import (
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

_EXCHANGED = {Pass.FORWARD: Pass.INPUT, Pass.INPUT: Pass.FORWARD, Pass.WEIGHT: Pass.WEIGHT}
"""Pass of a transposed convolution -> pass of the convolution the other way."""
_MANY_WEIGHTS = 2**19
"""Weights from which FP32's gradient is put together in copies of both tensors, H200."""
_TILE = 6
"""Side of the tiles in which Winograd's weight gradient of 3 x 3 reads input and gradient, four steps apart: it has
both in memory as tiles, and the weights (H200, to a hundredth)."""
_LEAST_TAPS, _LEAST_IN_ROW = {Pass.FORWARD: 13, Pass.INPUT: 20}, 10
"""Taps below which torch's passes of a depthwise convolution take no less time for an element, whose place in the image
they have to work out; of the input gradient along one dimension (4 to 31 taps, 3 x 3 to 7 x 7, H200)."""


def convolution_kernels(site: Site, dtypes: SiteDtypes, setting: Setting) -> Timed:
    """The kernels of one call, each with whether it is the backward's."""
    number_format = format_of(dtypes.compute, setting.recipe)
    item = DTYPE_BYTES.get(dtypes.compute, 4)
    given, made = site.inputs[0].numel * item, sum(output_bytes(site, dtypes))
    moved = given + made + sum(param.meta.numel for param in site.params) * item
    taps = math.prod(_window(site))
    last = in_channels_last(site, setting)
    transposes = _needs_layout(site, number_format) and not last
    winograd = _has_winograd(site)
    for gemm in of_one_call(site):
        for direction in _passes(site):
            behind = direction is not Pass.FORWARD
            if _is_depthwise(site, gemm):
                yield _depthwise(site, gemm, number_format, direction, moved, last), behind
                continue
            few = _channels(gemm, site) * number_format.bytes < REQUIRED_BYTES
            exchanged = _EXCHANGED[direction] if _is_backwards(site) else direction
            product = _plain(gemm, site)
            if not (few and exchanged is Pass.INPUT):
                product = _loaded(product, site, number_format)
            volume = len(_window(site)) == 3
            yield Convolution(product, number_format, exchanged, moved, taps, winograd, few, volume), behind
            if transposes:
                yield move(Traffic.TRANSPOSE, 2 * (given + made), dtypes.compute, 3), behind
    if has_bias(site):
        yield move(Traffic.UNROLLED, 2 * made, dtypes.compute), False
    if trains_bias(site):
        yield move(Traffic.REDUCTION, made, dtypes.compute), True


def workspace(site: Site, dtypes: SiteDtypes, setting: Setting, *, backward: bool) -> int:
    """Bytes that the library takes beside the tensors of a call (kernels_further_h200.json): transposed copies of input
    and result, in FP32 where the gradient of many weights is put together; the tiles of Winograd's algorithm.

    What FP32's Fourier transforms take is more and not foreseen: twice the spectra of all weights and once those of
    input and result, complex numbers over the image's sides as powers of two. That is what the forward from 256 to 256
    channels over 8 images of 128 x 128 takes (33 GiB, to a thousandth) and what the steps of unet and latent lack (one
    convolution of 1024 to 512 channels over 16 x 16, of 256 to 256 over 64 x 64). Which ones run so is the library's
    guess: 256 to 256 over 8 images of 80 x 80 (fcos) and over 16 of 128 x 128 (deeplab) do not."""
    number_format = format_of(dtypes.compute, setting.recipe)
    gemms = of_one_call(site)
    if not gemms or not site.inputs or any(_is_depthwise(site, gemm) for gemm in gemms):
        return 0
    item = DTYPE_BYTES.get(dtypes.compute, 4)
    loads = [each * item for each in (site.inputs[0].shape[1], site.outputs[0].shape[1])]
    if loads[0] < REQUIRED_BYTES:
        return 0  # colours have kernels that read them as they are
    given, made = site.inputs[0].numel * item, sum(output_bytes(site, dtypes))
    if _needs_layout(site, number_format) and not in_channels_last(site, setting):
        return given + round(made * max(1.0, REQUIRED_BYTES / loads[1]))  # few channels are filled up
    if number_format is not Format.FP32 or not backward or loads[1] < REQUIRED_BYTES:
        return 0
    weights = sum(gemm.n * gemm.k * gemm.batch for gemm in gemms)
    if _has_winograd(site) and gemms[0].batch == 1:
        return round(_TILE**2 * ((given + made) / (_TILE - 2) ** 2 + weights * item / 9))
    return given + made if gemms[0].n * gemms[0].k >= _MANY_WEIGHTS and not _has_winograd(site) else 0


def _passes(site: Site) -> list[Pass]:
    passes = [Pass.FORWARD]
    if site.inputs[0].requires_grad:
        passes.append(Pass.INPUT)
    if any(param.meta.requires_grad for param in site.params) or len(site.inputs) > 1:
        passes.append(Pass.WEIGHT)
    return passes


def _depthwise(
    site: Site, gemm: Gemm, number_format: Format, direction: Pass, moved: int, last: bool
) -> Depthwise:  # fmt: skip
    """The kernel of one pass: torch's own for contiguous tensors, but for those in FP16 that it hands to the library.

    The input gradient reads every tap of each input element, whatever the stride; few taps are no faster than
    ``_LEAST_TAPS`` in torch's kernels.
    """
    by_torch = not last
    if by_torch and number_format is Format.FP16:
        by_torch = not _library_takes_depthwise(site)
        number_format = Format.BF16 if by_torch else number_format
    least = _LEAST_TAPS.get(direction, 0) if by_torch else 0
    if direction is Pass.INPUT and len(_window(site)) == 1:
        least = min(least, _LEAST_IN_ROW)
    elements = site.inputs[0].numel if direction is Pass.INPUT else gemm.flops // (2 * gemm.k)
    flops = 2 * elements * max(gemm.k, least)
    return Depthwise(flops, number_format, direction, moved, last, taps=gemm.k)


def _library_takes_depthwise(site: Site) -> bool:
    """Whether torch hands a contiguous depthwise convolution in FP16 to cuDNN: use_cudnn_depthwise of
    aten/src/ATen/native/Convolution.cpp."""
    window, (samples, channels, *sides) = _window(site), site.inputs[0].shape
    steps = set(_each(site.attrs.get("stride")))
    if len(sides) > 2 or channels < 32 or not _is_one(site.attrs.get("dilation")) or len(steps) > 1:
        return False
    if len(sides) == 1:
        return steps == {1}
    if len(set(window)) != 1 or window[0] not in (1, 3, 5) or sides[1] < 7:
        return False
    if steps == {1}:
        return True
    if steps != {2} or window[0] == 1:
        return False
    return samples == 1 or channels >= 512 or (channels >= 256 and sides[1] >= 28)


def _is_backwards(site: Site) -> bool:
    return site.op.startswith("conv_transpose")


def _plain(gemm: Gemm, site: Site) -> Gemm:
    """The product of the convolution whose kernels run: of a transposed one, that the other way."""
    return dataclasses.replace(gemm, n=gemm.k, k=gemm.n) if _is_backwards(site) else gemm


def _is_depthwise(site: Site, gemm: Gemm) -> bool:
    """Whether each group has one input channel; torch has kernels of its own for those, but for transposed ones."""
    shape = site.inputs[0].shape
    return gemm.batch > 1 and len(shape) > 2 and gemm.batch == shape[1] and not _is_backwards(site)


def _loaded(gemm: Gemm, site: Site, number_format: Format) -> Gemm:
    """The product with input channels as the kernels for tensor cores load them."""
    channels = _channels(gemm, site)
    if number_format is Format.FP32 or not channels or gemm.k % channels:
        return gemm
    multiple = REQUIRED_BYTES // number_format.bytes
    return dataclasses.replace(gemm, k=gemm.k // channels * math.ceil(channels / multiple) * multiple)


def _channels(gemm: Gemm, site: Site) -> int:
    """Input channels of a group, as the kernels see it."""
    shape = (site.outputs if _is_backwards(site) else site.inputs)[0].shape
    return shape[1] // gemm.batch if len(shape) > 2 else 0


def _window(site: Site) -> tuple[int, ...]:
    """The positions of the kernel along each axis; its weight may be computed, as under a weight norm."""
    stored = [param.meta for param in site.params]
    weights = [meta.shape for meta in (*stored, *site.inputs[1:]) if len(meta.shape) > 2]
    return weights[0][2:] if weights else ()


def _has_winograd(site: Site) -> bool:
    return _window(site) == (3, 3) and _is_one(site.attrs.get("stride")) and _is_one(site.attrs.get("dilation"))


def _is_one(steps: object) -> bool:
    return set(_each(steps)) == {1}


def _each(steps: object) -> list[object]:
    """A stride or dilation along each axis that is named; 1 where the call does not give it."""
    return [1 if step is None else step for step in (steps if isinstance(steps, list | tuple) else [steps])]


def _needs_layout(site: Site, number_format: Format) -> bool:
    """Whether the kernels for tensor cores have to transpose tensors that are known to be contiguous.

    A convolution of one tap and stride 1 is a product of the pixels of an image, if those fill whole loads.
    """
    if number_format is Format.FP32 or site.attrs.get("channels_last") is not False or not _window(site):
        return False
    if math.prod(_window(site)) != 1 or not _is_one(site.attrs.get("stride")):
        return True
    return number_format.bytes == 2 and math.prod(site.inputs[0].shape[2:]) * 2 % REQUIRED_BYTES != 0

"""What a module can be planned in: how a format is put in force on it, and which formats its kernels take."""

from __future__ import annotations

from typing import Literal, cast

from torch import Tensor, nn

from amptune import runtime
from amptune.core.formats import Format

_FIRST_BF16_CAPABILITY = (8, 0)
"""NVIDIA Ampere; below it bf16 kernels are emulated."""


def how_to_apply(module: nn.Module) -> Literal["swap", "autocast"] | None:
    """How a format is put in force on ``module``; None for a container or another module that takes none itself.

    ``swap`` for a module without parameters means that it computes in the format and gives back its input's dtype.
    """
    return cast("Literal['swap', 'autocast'] | None", runtime.how_to_apply(module))


def legal_formats(
    module: nn.Module, *, device_type: str, capability: tuple[int, int] | None = None
) -> tuple[Format, ...]:
    """Formats that ``module`` can compute in on a device, FP32 first; empty where ``how_to_apply`` is None.

    Args:
        module: a module of the model.
        device_type: "cpu", "cuda", ...
        capability: compute capability of the CUDA device; None takes a current one.
    """
    if how_to_apply(module) is None:
        return ()
    if device_type == "cuda" and capability is not None and capability < _FIRST_BF16_CAPABILITY:
        return (Format.FP32, Format.FP16)
    return (Format.FP32, Format.BF16, Format.FP16)


def multiplies(module: nn.Module) -> bool:
    """Whether a plannable module is a matrix product or convolution, or may hold some: an RNN, attention, a class of
    the user's."""
    is_product = isinstance(module, nn.Linear | nn.Bilinear | nn.modules.conv._ConvNd)
    return is_product or how_to_apply(module) == "autocast" or runtime.linear_layout(module) is not None


def has_own_kernel(module: nn.Module) -> bool:
    """Whether a plan computes a layer that the user wrote by hand with a kernel of torch's, in FP32 too."""
    is_own = runtime.base_class(type(module)) not in runtime.SWAPS
    return is_own and (runtime.rms_epsilon(module) is not None or runtime.linear_layout(module) is not None)


_LINEAR_PAD = 64
"""Multiple for features of a Linear: 128 bytes of 16-bit numbers, what GEMM kernels like best."""
_CHANNEL_PADS = (8, 4)
"""Multiples for channels: what tensor cores take 16 bytes of, and the four that cuDNN has kernels of its own for."""


def paddings(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Multiples (output, input features) worth measuring: none, and for each side that is misaligned."""
    if not can_pad(module):
        return ((0, 0),)
    # The weight that the forward reads: it may be computed from others, as spectral_norm does it.
    rows, columns = cast("Tensor", module.weight).shape[:2]
    pads = (_LINEAR_PAD,) if isinstance(module, nn.Linear) else _CHANNEL_PADS
    found = [(pad if rows % 8 else 0, pad if columns % 8 else 0) for pad in pads]
    return tuple(dict.fromkeys([(0, 0), *found]))


def can_pad(module: nn.Module) -> bool:
    """Whether output and input features of ``module``, a convolution's channels, can be padded while it computes."""
    return runtime.can_pad(module)

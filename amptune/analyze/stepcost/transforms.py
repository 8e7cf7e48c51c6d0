"""The kernels of Fourier transforms: one pass through memory for each dimension, and what torch puts around them.

By aten/src/ATen/native/cuda/SpectralOps.cpp and torch/csrc/autograd/FunctionsManual.cpp: cuFFT does not scale, so a
kernel does, for one direction; a transform of several dimensions to real numbers may overwrite what it reads, so that
is copied first. The gradient of real numbers is a transform of complex ones of full size, which the half that is kept
is padded to; the gradient of a transform to real numbers doubles what stands for two.
"""

from __future__ import annotations

from collections.abc import Iterator

from amptune.analyze.stepcost.kernels import Move
from amptune.core.autocast import SiteDtypes
from amptune.core.graph import DTYPE_BYTES, Site
from amptune.core.roofline import Traffic


def transform_moves(site: Site, dtypes: SiteDtypes, *, backward: bool) -> Iterator[Move]:
    """The kernels of one call in one direction."""
    if not site.inputs or not site.outputs:
        return
    given = site.inputs[0].numel * DTYPE_BYTES.get(dtypes.inputs[0], 8)
    made = site.outputs[0].numel * DTYPE_BYTES.get(dtypes.outputs[0], 8)
    from_real, to_real = (not dtype.startswith("complex") for dtype in (dtypes.inputs[0], dtypes.outputs[0]))
    count, inverse = _dimensions(site), "ifft" in _name(site) or "irfft" in _name(site)
    if not backward:
        if to_real and count > 1:
            yield Move(Traffic.POINTWISE, 2 * given)
        yield from _passes(given, made, count)
        if inverse:
            yield Move(Traffic.POINTWISE, 2 * made)
    elif from_real:
        full = 2 * given
        yield Move(Traffic.POINTWISE, full + 2 * made, 2)
        yield from _passes(full, full, count)
    else:
        yield from _passes(made, given, count)
        if to_real:
            yield Move(Traffic.POINTWISE, 2 * given)
        if inverse:
            yield Move(Traffic.POINTWISE, 2 * given)


def _passes(given: int, made: int, count: int) -> Iterator[Move]:
    """Along rows from one to the other, and across them where the numbers are complex: that side takes more bytes."""
    yield Move(Traffic.POINTWISE, given + made)
    if count > 1:
        yield Move(Traffic.LAYOUT, 2 * (count - 1) * max(given, made), count - 1)


def _name(site: Site) -> str:
    return str(site.attrs.get("called") or site.op)


def _dimensions(site: Site) -> int:
    """How many dimensions are transformed: named by the function, by ``dim`` or ``s``, or all of them."""
    name = _name(site)
    if name.endswith("2"):
        return 2
    if not name.endswith("n"):
        return 1
    for argument in ("dim", "s"):
        if isinstance(named := site.attrs.get(argument), list | tuple):
            return len(named)
    return max(1, len(site.inputs[0].shape))

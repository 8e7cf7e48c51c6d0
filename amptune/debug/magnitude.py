"""How large the numbers of one tensor are, and how much of them a number format would lose."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from amptune.core.formats import Format


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """The numbers of one tensor.

    Attributes:
        dtype: torch's name.
        numel: number of elements.
        low, high: smallest and largest finite element; 0 where there is none.
        nan, posinf, neginf: whether an element is one.
        zeros: elements that are zero.
        lost: nonzero elements that the format asked about rounds to zero.
        lost_norm: share of the tensor's norm (L2) that lies in them.
        subnormal: nonzero elements below the format's smallest normal number, which lose digits.
    """

    dtype: str
    numel: int
    low: float
    high: float
    nan: bool = False
    posinf: bool = False
    neginf: bool = False
    zeros: int = 0
    lost: int = 0
    lost_norm: float = 0.0
    subnormal: int = 0

    @property
    def amax(self) -> float:
        """The largest finite magnitude."""
        return max(abs(self.low), abs(self.high))

    @property
    def finite(self) -> bool:
        """Whether every element is finite."""
        return not (self.nan or self.posinf or self.neginf)

    @property
    def nonzero(self) -> int:
        """Elements that are not zero."""
        return self.numel - self.zeros

    def worse_than(self, twin: Magnitude | None) -> bool:
        """Whether it is non-finite in a way in which its FP32 twin is not."""
        if twin is None:
            return not self.finite
        inf = (self.posinf and not twin.posinf) or (self.neginf and not twin.neginf)
        return (self.nan and not twin.nan) or (inf and not twin.nan)

    def words(self) -> str:
        """``up to 412``, ``inf``, ``NaN``."""
        if self.nan:
            return "NaN"
        if self.finite:
            return f"up to {number(self.amax)}"
        return "inf and -inf" if self.posinf and self.neginf else "inf" if self.posinf else "-inf"

    def to_json(self) -> dict[str, Any]:
        """The fields that a reader can use."""
        return {
            "dtype": self.dtype, "amax": self.amax, "min": self.low, "max": self.high, "nan": self.nan,
            "inf": self.posinf or self.neginf, "zeros": self.zeros, "numel": self.numel,
        }  # fmt: skip


def measure(tensor: torch.Tensor, number_format: Format | None = None) -> Magnitude:
    """The magnitude of a floating tensor; with a format also what it would lose. Waits for the device."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # inside vmap and grad: all samples at once
        tensor = torch._C._functorch.get_unwrapped(tensor)
    with torch.no_grad():
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return _measured(_plain(tensor), number_format)
        # Of small tensors the way through the dispatch modes that are open costs more than the sums.
        with torch._C._DisableTorchDispatch():
            return _measured(_plain(tensor), number_format)


def _measured(tensor: torch.Tensor, number_format: Format | None) -> Magnitude:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() == 0:
        return Magnitude(name, 0, 0.0, 0.0)
    low, high = _ends(tensor)
    flags: dict[str, bool] = {}
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = torch.isfinite(tensor)
        flags = {
            "nan": bool(torch.isnan(tensor).any()),
            "posinf": bool(torch.isposinf(tensor).any()),
            "neginf": bool(torch.isneginf(tensor).any()),
        }
        tensor = tensor[finite]
        low, high = _ends(tensor) if tensor.numel() else (0.0, 0.0)
    numel = finite.numel() if flags else tensor.numel()
    found = Magnitude(name, numel, low, high, **flags)
    return found if number_format is None else _with_losses(found, tensor, number_format)


def _ends(tensor: torch.Tensor) -> list[float]:
    return torch.stack(torch.aminmax(tensor)).tolist()


def _with_losses(found: Magnitude, tensor: torch.Tensor, number_format: Format) -> Magnitude:
    if not tensor.numel():
        return found
    sizes = tensor.abs()
    # Half the smallest subnormal rounds to zero: a tie goes to the even neighbour.
    flushed = sizes <= number_format.smallest_subnormal / 2
    below = sizes < number_format.smallest_normal
    nonzero, no_more, small = torch.stack([torch.count_nonzero(part) for part in (sizes, flushed, below)]).tolist()
    zeros = sizes.numel() - nonzero
    lost = no_more - zeros
    share = 0.0
    if lost:
        share = float(
            torch.linalg.vector_norm(sizes[flushed].double()) / torch.linalg.vector_norm(sizes.double())
        )  # fmt: skip
    return dataclasses.replace(found, zeros=zeros, lost=lost, lost_norm=share, subnormal=small - no_more)


def number(value: float) -> str:
    """A magnitude for people: 65,504 and 8,113, 0.0312, 1.2e-09."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()

"""A Choice: what can be decided for one site, a number format and for FP8 how tensors are scaled. Pure Python."""

from __future__ import annotations

import dataclasses
import functools

from amptune.core.formats import Format

SCALINGS = ("tensorwise", "rowwise", "rowwise_gw_hp")
"""One scale for a tensor; one for each row; the same with the weight gradient in 16 bits."""

_ORDER = list(Format)


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Choice:
    """A number format, and for FP8 a scaling; its label is ``bf16`` or ``fp8_e4m3:rowwise``.

    The order is that of ``Format`` and then of ``SCALINGS``: a fixed one, which says nothing about what is better.

    Raises:
        ValueError: an FP8 format without one of ``SCALINGS``, or another format with one.
    """

    format: Format
    scaling: str | None = None

    def __post_init__(self) -> None:
        if self.format.is_fp8 and self.scaling not in SCALINGS:
            raise ValueError(f"{self.format} needs a scaling, one of {', '.join(SCALINGS)}; found {self.scaling!r}")
        if not self.format.is_fp8 and self.scaling is not None:
            raise ValueError(f"{self.format} takes no scaling; found {self.scaling!r}")

    def __str__(self) -> str:
        return self.label

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Choice):
            return NotImplemented
        return self._rank() < other._rank()

    @property
    def label(self) -> str:
        """The text that ``parse`` reads."""
        return f"{self.format.label}:{self.scaling}" if self.scaling else self.format.label

    @property
    def output_format(self) -> Format:
        """Format of the site's output, what travels on the edges: an FP8 matrix product gives BF16, TF32 gives FP32."""
        if self.format is Format.TF32:
            return Format.FP32
        return Format.BF16 if self.format.is_fp8 else self.format

    @classmethod
    def parse(cls, text: str) -> Choice:
        """The choice with this label.

        Raises:
            ValueError: unknown format or scaling.
        """
        return _parsed(text)

    def _rank(self) -> tuple[int, int]:
        return _ORDER.index(self.format), SCALINGS.index(self.scaling) if self.scaling else -1


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Choice:
    # A search reads the labels of its points thousands of times.
    name, _, scaling = text.partition(":")
    return Choice(Format.parse(name), scaling or None)


FP32 = Choice(Format.FP32)
TF32 = Choice(Format.TF32)
"""No choice of one site, but what FP32 is for all sites of a process whose TF32 flag is on."""
BF16 = Choice(Format.BF16)
FP16 = Choice(Format.FP16)
FP8 = tuple(Choice(Format.FP8_E4M3, scaling) for scaling in SCALINGS)
"""What a search may offer for FP8: E4M3 for inputs and weights. The gradient's format belongs to the scaling."""

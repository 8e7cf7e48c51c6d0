"""Number formats: range and resolution of every format a site can compute in. Pure Python, no torch."""

from __future__ import annotations

import enum
import math


class Format(enum.Enum):
    """A binary floating point format.

    Each member is built from its name, exponent bits, stored mantissa bits, storage bits and whether its top exponent
    holds infinities and NaNs as IEEE 754 has it. E4M3 is the OCP "fn" variant (OCP 8-bit floating point specification
    1.0): no infinity, and only the all-ones mantissa of the top exponent is NaN, so its largest number is 448.
    """

    FP32 = ("fp32", 8, 23, 32, True)
    TF32 = ("tf32", 8, 10, 32, True)
    BF16 = ("bf16", 8, 7, 16, True)
    FP16 = ("fp16", 5, 10, 16, True)
    FP8_E4M3 = ("fp8_e4m3", 4, 3, 8, False)
    FP8_E5M2 = ("fp8_e5m2", 5, 2, 8, True)

    def __init__(self, label: str, exponent_bits: int, mantissa_bits: int, bits: int, ieee: bool) -> None:
        self.label = label
        self.exponent_bits = exponent_bits
        self.mantissa_bits = mantissa_bits
        self.bits = bits
        self.has_infinity = ieee
        bias = 2 ** (exponent_bits - 1) - 1
        self.epsilon = 2.0**-mantissa_bits
        self.smallest_normal = 2.0 ** (1 - bias)
        self.smallest_subnormal = 2.0 ** (1 - bias - mantissa_bits)
        top = bias if ieee else bias + 1
        largest_fraction = 2.0 - self.epsilon if ieee else 2.0 - 2 * self.epsilon
        self.max = largest_fraction * 2.0**top

    def __str__(self) -> str:
        return self.label

    @property
    def bytes(self) -> int:
        """Bytes of one stored element."""
        return self.bits // 8

    @property
    def is_fp8(self) -> bool:
        """Whether a tensor in this format needs a scale beside it."""
        return self.bits == 8

    @property
    def torch_name(self) -> str:
        """The torch dtype's name, such as ``bfloat16``. TF32 is a way to multiply float32, so it answers float32."""
        return _TORCH_NAMES[self.label]

    @property
    def largest_exact_integer(self) -> int:
        """The largest n such that every integer of magnitude up to n is representable."""
        return int(2 ** (self.mantissa_bits + 1))

    def spacing_at(self, value: float) -> float:
        """How far apart its normal numbers of the size of ``value`` are, which is not 0."""
        return self.epsilon * 2.0 ** math.floor(math.log2(abs(value)))

    def round(self, value: float) -> float:
        """Round ``value`` to this format, to nearest even; what overflows becomes infinity, or NaN without one."""
        if value == 0 or math.isnan(value) or math.isinf(value):
            return value
        exponent = max(math.frexp(value)[1] - 1, math.frexp(self.smallest_normal)[1] - 1)
        step = 2.0 ** (exponent - self.mantissa_bits)
        rounded = round(value / step) * step  # Python rounds halves to even
        if abs(rounded) > self.max:
            return math.copysign(math.inf, value) if self.has_infinity else math.nan
        return rounded

    @classmethod
    def parse(cls, text: str) -> Format:
        """The format called ``text``, by our name or torch's (``bf16``, ``bfloat16``, ``torch.bfloat16``).

        Raises:
            ValueError: no format has this name.
        """
        name = text.removeprefix("torch.").lower()
        for member in cls:
            if (
                name == member.label
                or (name == member.torch_name and member is not cls.TF32)
                or name in _ALIASES.get(member.label, ())
            ):
                return member
        raise ValueError(f"unknown number format {text!r}; known: {', '.join(m.label for m in cls)}")


_TORCH_NAMES = {
    "fp32": "float32",
    "tf32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
_ALIASES = {"fp32": ("float",), "fp16": ("half",)}

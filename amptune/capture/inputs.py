"""Input tensors from ``--input 16x1024:int64:50257``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import torch

from amptune.errors import TargetError

_PATTERN = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>scalar|\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?::(?P<high>\d+))?"
)
SEED = 0


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input tensor: ``name`` is the forward parameter (empty = by position), ``high`` the exclusive bound of
    integers (0 = not given, so 2)."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    high: int = 0
    name: str = ""

    def make(self, generator: torch.Generator) -> torch.Tensor:
        """Standard normal numbers, or integers in [0, high)."""
        if self.dtype is torch.bool:
            return torch.randint(0, 2, self.shape, generator=generator).bool()
        if self.dtype.is_floating_point or self.dtype.is_complex:
            real = torch.complex64 if self.dtype.is_complex else torch.float32
            return torch.randn(self.shape, generator=generator, dtype=real).to(self.dtype)
        return torch.randint(0, self.high or 2, self.shape, generator=generator).to(self.dtype)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        high = f":{self.high}" if self.high else ""
        return f"{self.name + '=' if self.name else ''}{shape}:{str(self.dtype).removeprefix('torch.')}{high}"


def parse_input(text: str) -> InputSpec:
    """Read ``[name=]SHAPE[:dtype[:high]]``, such as ``16x1024:int64:50257`` or ``image=8x3x32x32``.

    Raises:
        TargetError: the text has another form, or names no dtype of torch.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise TargetError(
            f"--input {text}: expected [name=]SHAPE[:dtype[:high]]",
            hint="for example 16x1024:int64:50257, or image=8x3x32x32:float32",
        )
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise TargetError(f"--input {text}: torch has no dtype {match['dtype']!r}", hint="for example float32 or int64")
    shape = () if match["shape"] == "scalar" else tuple(int(part) for part in match["shape"].split("x"))
    return InputSpec(shape, dtype, int(match["high"] or 0), match["name"] or "")


def make_inputs(specs: Sequence[InputSpec]) -> Any:
    """A batch of fixed random numbers: one tensor, a dict where inputs have names, else a tuple of several."""
    generator = torch.Generator().manual_seed(SEED)
    tensors = [spec.make(generator) for spec in specs]
    if all(spec.name for spec in specs):
        return {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def parse_inputs(texts: Sequence[str], parameters: Sequence[str] = ()) -> tuple[InputSpec, ...]:
    """Read several inputs; without names, several take those of ``parameters`` (forward's, in order).

    Raises:
        TargetError: a text cannot be read, some have names and some not, or there are more than parameters.
    """
    specs = tuple(parse_input(text) for text in texts)
    if len({bool(spec.name) for spec in specs}) > 1:
        raise TargetError("some --input have a name and some have not", hint="give name=SHAPE to all of them")
    if len(specs) < 2 or specs[0].name:
        return specs
    if len(specs) > len(parameters):
        raise TargetError(f"{len(specs)} --input, but forward takes {len(parameters)}: {', '.join(parameters)}")
    return tuple(dataclasses.replace(spec, name=name) for spec, name in zip(specs, parameters, strict=False))

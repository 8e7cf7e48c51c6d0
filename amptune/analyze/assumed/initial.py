"""Bounds of weights from what initialises them, while a model is built without memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode

from amptune.core.bounds.intervals import Range, point, scaled, symmetric
from amptune.core.bounds.transfer.layers import Weight


class Initialisers(TorchFunctionMode):
    """Notes for each tensor without memory the last call that filled it.

    A uniform distribution and a constant have bounds; of a normal one ``DEVIATIONS`` deviations count, which one number
    in five hundred million passes. Row sums are those of independent draws: the mean of |w| times the length of the row
    and as many deviations of the sum.
    """

    DEVIATIONS: ClassVar[int] = 6

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Range, float, float]] = {}  # storage -> range, mean of |w|, deviation of |w|
        self._kept: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        filled = args[0] if args else kwargs.get("tensor")  # torch.nn.init names it
        name = str(getattr(func, "__name__", ""))
        if isinstance(filled, FakeTensor) and name.endswith("_") and not name.startswith("__"):
            self.note(name, filled, args[1:], kwargs)
        return result

    def of(self, tensor: torch.Tensor) -> Weight | None:
        """Bounds of a parameter; ``None`` for one that nothing is known of."""
        found = self._known.get(_storage(tensor))
        if found is None:
            return None
        bounds, mean, deviation = found
        length = math.prod(tensor.shape[1:]) if tensor.dim() > 1 else 0
        rows = mean * length + self.DEVIATIONS * deviation * math.sqrt(length) if length else math.inf
        return Weight(bounds, min(rows, bounds.magnitude * length) if length else math.inf)

    def note(self, name: str, tensor: FakeTensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a call that fills ``tensor`` says about its numbers."""
        values = [value for value in (*args, *kwargs.values()) if isinstance(value, int | float)]
        key, old = _storage(tensor), self._known.get(_storage(tensor))
        new = self._filled(name, tensor, values, kwargs)
        if new is None:
            if name == "mul_" and old and values:
                new = scaled(old[0], values[0]), old[1] * abs(values[0]), old[2] * abs(values[0])
            elif name in _KEEPS:
                return
            elif old is not None:
                del self._known[key]
                return
            else:
                return
        elif old is not None and tensor.numel() < _elements(tensor):
            new = new[0].union(old[0]), max(new[1], old[1]), max(new[2], old[2])  # a part of it was filled
        self._known[key] = new
        self._kept.append(tensor)

    def _filled(
        self, name: str, tensor: FakeTensor, values: list[float], kwargs: dict[str, Any]
    ) -> tuple[Range, float, float] | None:
        if name == "zero_":
            return point(0.0), 0.0, 0.0
        if name in ("fill_", "constant_") and values:
            return point(float(values[0])), abs(float(values[0])), 0.0
        if name == "kaiming_uniform_":
            end = _kaiming_end(tensor, kwargs)
            return symmetric(end), end / 2, end / math.sqrt(3)
        if name == "uniform_":
            low, high = [*values, 0.0, 1.0][:2] if len(values) != 1 else (values[0], 1.0)
            size = max(abs(low), abs(high))
            return Range(float(low), float(high)), size / 2 if low == -high else size, size / math.sqrt(12)
        if name == "trunc_normal_":
            mean, deviation, low, high = values[:4]
            inner = Range(mean - self.DEVIATIONS * deviation, mean + self.DEVIATIONS * deviation)
            return Range(low, high).within(inner), deviation * math.sqrt(2 / math.pi) + abs(mean), deviation
        if name == "normal_":
            mean = float(kwargs.get("mean", values[0] if values else 0.0))
            deviation = float(kwargs.get("std", values[1] if len(values) > 1 else 1.0))
            spread = self.DEVIATIONS * deviation
            bounds = symmetric(spread) if mean == 0 else Range(mean - spread, mean + spread)
            return bounds, deviation * math.sqrt(2 / math.pi) + abs(mean), deviation
        return None


def _kaiming_end(tensor: FakeTensor, kwargs: dict[str, Any]) -> float:
    """The end of the uniform distribution of ``torch.nn.init.kaiming_uniform_``."""
    gain = torch.nn.init.calculate_gain(kwargs.get("nonlinearity", "leaky_relu"), kwargs.get("a", 0))
    field = math.prod(tensor.shape[2:])
    fan = tensor.shape[1] * field if kwargs.get("mode", "fan_in") == "fan_in" else tensor.shape[0] * field
    return gain * math.sqrt(3 / max(fan, 1))


_KEEPS = frozenset({"requires_grad_", "detach_", "copy_", "share_memory_", "squeeze_", "unsqueeze_", "t_"})


@contextlib.contextmanager
def recorded_initialisers() -> Iterator[Initialisers]:
    """Watch the calls that fill tensors, among them those of ``torch.nn.init``; inside of ``parameters_as_fakes``."""
    watcher = Initialisers()
    name = "_no_grad_trunc_normal_"
    original = getattr(torch.nn.init, name, None)

    def draw(tensor: torch.Tensor, mean: float, std: float, a: float, b: float, **kwargs: Any) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            watcher.note("trunc_normal_", tensor, (mean, std, a, b), {})
        return original(tensor, mean, std, a, b, **kwargs) if original else tensor

    if original is not None:
        setattr(torch.nn.init, name, draw)
    try:
        with watcher:
            yield watcher
    finally:
        if original is not None:
            setattr(torch.nn.init, name, original)


def _storage(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata)


def _elements(tensor: torch.Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage().nbytes() // max(tensor.itemsize, 1)

"""How a kernel is timed on the GPU at hand, and what came out."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from amptune.core.formats import Format

DEVICE = "cuda"
REPEATS = 5
"""Timed batches of a probe; the median counts."""
BATCH_SECONDS = 0.008
"""How long one batch of a probe runs on the GPU."""

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One measurement.

    Attributes:
        name: kind of kernel and format, such as ``gemm bf16`` or ``memory norm``.
        seconds: median time on the GPU.
        ideal: seconds at the table's peak or bandwidth.
    """

    name: str
    seconds: float
    ideal: float

    @property
    def share(self) -> float:
        """What the kernel reaches of the peak or bandwidth."""
        return self.ideal / self.seconds


def time_on_gpu(run: Run) -> float:
    """Median seconds of one call, by events around batches of calls that keep the GPU busy."""
    for _ in range(2):
        run()
    once = _batch_seconds(run, 1)
    count = max(1, min(50, round(BATCH_SECONDS / max(once, 1e-6))))
    return statistics.median(_batch_seconds(run, count) for _ in range(REPEATS))


def _batch_seconds(run: Run, count: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / count


def probe(name: str, ideal: float, prepare: Callable[[], Run]) -> Iterator[Probe]:
    """The probe; none where this GPU or this torch cannot run it."""
    try:
        yield Probe(name, time_on_gpu(prepare()), ideal)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError):
        return


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal random numbers on the device."""
    return torch.randn(*shape, device=DEVICE).to(dtype)


def dtype_of(number_format: Format) -> torch.dtype:
    """torch's dtype of a format."""
    found: torch.dtype = getattr(torch, number_format.torch_name)
    return found

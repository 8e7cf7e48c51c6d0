"""What the device at hand is, what it can do, and how to wait for it."""

from __future__ import annotations

import dataclasses
import platform
import time
from typing import Any

import torch
from torch import nn

from amptune.core.choice import FP8, Choice
from amptune.core.formats import Format
from amptune.errors import UsageError
from amptune.runtime import apply_plan


@dataclasses.dataclass(frozen=True)
class Device:
    """A torch device with the facts that a result must name."""

    name: str

    @property
    def torch(self) -> torch.device:
        """The torch device."""
        return torch.device(self.name)

    @property
    def is_cuda(self) -> bool:
        """Whether kernels run asynchronously on a GPU."""
        return self.torch.type == "cuda"

    def synchronize(self) -> None:
        """Wait until all work queued on the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def mark(self) -> Any:
        """A point in time of the work queued so far; see ``elapsed``."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks, after ``synchronize``."""
        return float(start.elapsed_time(end)) if self.is_cuda else (end - start) * 1e3

    def head_start(self, cycles: int) -> None:
        """Keep the GPU busy for so many clock cycles, so that Python can queue work ahead of it."""
        if self.is_cuda:
            torch.cuda._sleep(cycles)

    def flush_bytes(self) -> int:
        """Bytes to write between measurements to empty a GPU's cache; 0 on a CPU, where that would take too long."""
        return 2 * int(torch.cuda.get_device_properties(self.torch).L2_cache_size) if self.is_cuda else 0

    def memory_bytes(self) -> int | None:
        """All memory of a GPU; None on a CPU, which has none of its own."""
        return int(torch.cuda.get_device_properties(self.torch).total_memory) if self.is_cuda else None

    def describe(self) -> dict[str, Any]:
        """Name, compute capability, torch, driver: what a measurement is valid for."""
        facts: dict[str, Any] = {"type": self.torch.type, "torch": torch.__version__}
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(self.torch)
            facts |= {
                "gpu": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": self.memory_bytes(),
                "cuda": torch.version.cuda,
                "driver": _driver_version(),
            }
        else:
            facts |= {"gpu": _cpu_name(), "capability": torch.backends.cpu.get_cpu_capability(), "driver": None,
                      "threads": torch.get_num_threads()}  # fmt: skip
        return facts

    def has_tf32(self) -> bool:
        """Whether FP32 matrix products can run as TF32 (compute capability 8.0 and above)."""
        return self.is_cuda and torch.cuda.get_device_capability(self.torch) >= (8, 0)

    def has_fp8(self) -> bool:
        """Whether the hardware multiplies FP8 matrices (compute capability 8.9 and above)."""
        return self.is_cuda and torch.cuda.get_device_capability(self.torch) >= (8, 9)

    def formats(self) -> tuple[Format, ...]:
        """16-bit formats worth trying here, each by one small matrix product that must run."""
        candidates = [f for f in (Format.BF16, Format.FP16) if self._multiplies(f)]
        if self.is_cuda and torch.cuda.get_device_capability(self.torch) < (8, 0):
            # Emulated on older GPUs, at a fraction of the FP32 rate, while is_bf16_supported() answers True.
            candidates = [f for f in candidates if f is not Format.BF16]
        return tuple(candidates)

    def fp8_choices(self) -> tuple[Choice, ...]:
        """FP8 choices that run here, each by one small linear forward and backward.

        Only where the hardware multiplies FP8: elsewhere it is emulation.
        """
        if not self.has_fp8():
            return ()
        return tuple(choice for choice in FP8 if self._trains(choice))

    def _trains(self, choice: Choice) -> bool:
        layer = nn.Sequential(nn.Linear(64, 64)).to(self.torch)
        x = torch.ones(64, 64, device=self.torch, dtype=torch.bfloat16, requires_grad=True)
        try:
            apply_plan(layer, {"0": {"format": choice.format.label, "scaling": choice.scaling}})
            layer(x).float().sum().backward()
        except (RuntimeError, ValueError, NotImplementedError):
            return False
        return True

    def _multiplies(self, number_format: Format) -> bool:
        x = torch.ones(16, 16, device=self.torch, dtype=getattr(torch, number_format.torch_name))
        try:
            return bool(torch.isfinite(x @ x).all())
        except RuntimeError:
            return False

    def peak_memory(self) -> int | None:
        """Highest number of bytes allocated since the last reset; ``None`` on a CPU, where torch does not count."""
        return int(torch.cuda.max_memory_allocated(self.torch)) if self.is_cuda else None

    def reset_peak_memory(self) -> None:
        """Start counting the peak anew."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)


def find_device(name: str | None) -> Device:
    """The device called ``name``, or the best one present.

    Raises:
        UsageError: torch does not know it, or it is not here.
    """
    if name is None:
        return Device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: amptune tune measures on cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name!r}: no CUDA device is available to this torch ({torch.__version__})",
                         hint="use --device cpu, or install a CUDA build of torch")  # fmt: skip
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return Device(name)


def _driver_version() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # an optional library over an optional driver interface: any failure means "not known"
        return None
    return version.decode() if isinstance(version, bytes) else str(version)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

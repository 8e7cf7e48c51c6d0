"""What the machine and its torch can do, format by format: each one is tried and timed, not looked up."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch

from amptune.analyze.device import present_gpu
from amptune.core.closeness import WAITING_ERROR
from amptune.core.formats import Format
from amptune.core.hardware import Gpu
from amptune.core.op_support import ops_without_kernel, table_version, tried_on
from amptune.runtime import set_backend_flags

State = Literal["fast", "works", "slow", "no"]
SIZE = {"cuda": 4096, "cpu": 512}
"""Side of the square product that is timed: long enough to fill a GPU, short enough for a processor."""
REPEATS = 7
SLOW = 0.8
"""A 16-bit product below this share of the FP32 rate is not worth having."""
FAST = 1.3
TESTED_PACKAGES = ("torch", "torchao", "transformers", "optuna", "scipy", "rich")


@dataclasses.dataclass(frozen=True)
class FormatReport:
    """One format on one device: how its product ran, at which rate against FP32, and how many ops refuse the format.

    ``gaps`` is from the table of :mod:`amptune.core.op_support`; ``None`` for formats that only products come in.
    """

    number_format: Format
    state: State
    rate: float | None
    note: str = ""
    gaps: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in the command's JSON."""
        rate = None if self.rate is None else round(self.rate, 2)
        return {
            "format": str(self.number_format),
            "state": self.state,
            "rate_vs_fp32": rate,
            "note": self.note,
            "ops_without_kernel": self.gaps,
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What doctor found.

    Attributes:
        device: ``cuda`` or ``cpu``.
        name: product or processor.
        formats: one entry for each format.
        recipe: where to start.
        reason: why there.
        packages: versions of what amptune uses; absent ones are missing.
        notes: what else a user should know.
    """

    device: str
    name: str
    formats: tuple[FormatReport, ...]
    recipe: str
    reason: str
    packages: dict[str, str] = dataclasses.field(hash=False)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The command's JSON."""
        return {
            "version": 1,
            "device": self.device,
            "name": self.name,
            "formats": [entry.to_json() for entry in self.formats],
            "recipe": self.recipe,
            "reason": self.reason,
            "packages": self.packages,
            "notes": list(self.notes),
        }


def examine() -> Report:
    """Try every format on the device that training would run on."""
    gpu = present_gpu()
    device = "cuda" if gpu is not None else "cpu"
    formats = try_formats(device, gpu)
    recipe, reason = recommend(device, formats)
    name = gpu.name if gpu is not None else f"no CUDA device; {torch.backends.cpu.get_cpu_capability()} processor"
    return Report(device, name, formats, recipe, reason, _packages(), _notes(gpu))


def try_formats(device: str, gpu: Gpu | None = None) -> tuple[FormatReport, ...]:
    """Run one product in each format; rates are against FP32 with TF32 off."""
    base = _seconds(Format.FP32, device)
    reports = []
    for number_format in Format:
        if number_format is Format.FP8_E5M2:
            continue  # its products exist wherever those of E4M3 do
        seconds = base if number_format is Format.FP32 else _seconds(number_format, device)
        gaps = len(ops_without_kernel(number_format.torch_name, device)) if number_format.bits == 16 else None
        reports.append(dataclasses.replace(_judge(number_format, seconds, base, gpu), gaps=gaps))
    return tuple(reports)


def _judge(number_format: Format, seconds: float | None, base: float | None, gpu: Gpu | None) -> FormatReport:
    if seconds is None or base is None:
        return FormatReport(number_format, "no", None, "no kernel")
    if number_format is Format.TF32 and gpu is not None and not gpu.is_native(Format.TF32):
        return FormatReport(number_format, "no", None, "no TF32 units: such products stay in FP32")
    rate = base / seconds
    if number_format is Format.FP32:
        return FormatReport(number_format, "works", 1.0)
    if rate < SLOW:
        emulated = gpu is not None and not gpu.is_native(number_format)
        return FormatReport(number_format, "slow", rate, "emulated" if emulated else "runs, but slower than fp32")
    return FormatReport(number_format, "fast" if rate >= FAST else "works", rate)


def recommend(device: str, formats: tuple[FormatReport, ...]) -> tuple[str, str]:
    """The recipe to start from: the safest of those that are fast."""
    rates = {entry.number_format: entry.rate or 0.0 for entry in formats if entry.state == "fast"}
    if Format.BF16 in rates:
        reason = f"BF16 products run {rates[Format.BF16]:.1f}x as fast as FP32, and need no loss scaling"
        return "autocast-bf16", reason + _against_fp16(rates)
    if Format.FP16 in rates:
        return "autocast-fp16", f"FP16 products run {rates[Format.FP16]:.1f}x as fast as FP32; use a GradScaler"
    if Format.TF32 in rates:
        return "tf32", "no 16-bit format is faster than FP32 here, TF32 is"
    return "fp32", f"no narrower format is {FAST}x faster than FP32 on this {device} device"


def _against_fp16(rates: Mapping[Format, float]) -> str:
    """What the single product says of FP16 beside BF16: of a whole step only a clear lead tells."""
    fp16, bf16 = rates.get(Format.FP16, 0.0), rates[Format.BF16]
    if fp16 > bf16 * (1 + WAITING_ERROR):
        return f"; FP16's run {fp16:.1f}x as fast, so measure autocast-fp16 with a GradScaler too"
    if fp16 * (1 + WAITING_ERROR) >= bf16:
        return f"; FP16's run {fp16:.1f}x as fast: which step is faster is too close to call"
    return ""


def _seconds(number_format: Format, device: str) -> float | None:
    """Best time of one square product; ``None`` where torch refuses."""
    if number_format is Format.TF32 and device == "cpu":
        return None
    restore = set_backend_flags(tf32=number_format is Format.TF32)
    try:
        return _timed(number_format, device)
    except (RuntimeError, NotImplementedError, ValueError, AttributeError):
        return None
    finally:
        restore()


def _timed(number_format: Format, device: str) -> float:
    size = SIZE[device]
    left = torch.randn(size, size, device=device).to(getattr(torch, number_format.torch_name))
    right = left.clone()
    samples = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        _multiply(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return min(samples[2:])  # the best one: other programs only make a product slower


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.dtype is not torch.float8_e4m3fn:
        return left @ right
    if left.device.type == "cpu":
        raise NotImplementedError("torch emulates FP8 products on the CPU")
    one = torch.ones((), device=left.device)
    return torch._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _packages() -> dict[str, str]:
    found = {}
    for name in TESTED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _notes(gpu: Gpu | None) -> tuple[str, ...]:
    notes = []
    if gpu is not None and gpu.notes:
        notes.append(gpu.notes)
    # amptune: ignore[AMP604] asked with emulation on purpose, to warn of the answer
    if gpu is not None and torch.cuda.is_bf16_supported(including_emulation=True) and not gpu.is_native(Format.BF16):
        notes.append("torch.cuda.is_bf16_supported() says True here: ask with including_emulation=False")
    device = "cuda" if gpu is not None else "cpu"
    made, here = table_version(device).split("+")[0], torch.__version__.split("+")[0]
    where = tried_on(device) or "no device (torch's own claims)"
    if made.rsplit(".", 1)[0] != here.rsplit(".", 1)[0]:
        notes.append(f"which ops lack 16-bit kernels was found with torch {made} on {where}; this is torch {here}")
    return tuple(notes)

"""What each GPU can do: peaks, bandwidth, native formats, and the alignment its matrix units ask for. No torch.

Sources of the numbers, by vendor document:

- V100, T4, A10, A100, L4, L40S, H100, H200: NVIDIA datasheets of those products; the dense figures, that is, half of
  what the datasheets of Ampere and later print "with sparsity".
- RTX 3090: NVIDIA Ampere GA102 architecture whitepaper; RTX 4090: NVIDIA Ada GPU architecture whitepaper; RTX 5090:
  NVIDIA RTX Blackwell GPU architecture whitepaper. GeForce tensor cores accumulate in FP32 at half the rate at which
  they accumulate in FP16; torch accumulates in FP32, so those are the figures here.
- B200: NVIDIA HGX and DGX B200 datasheets, per GPU. MI300X: AMD Instinct MI300X datasheet.
- L2 sizes: the architecture whitepapers; for L4, L40S, B200 and RTX 5090 as commonly reported (unsure).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Literal

from amptune.core.efficiency import Efficiency
from amptune.core.formats import Format
from amptune.errors import UsageError

GIB = 2**30
_F = Format


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One device, by public numbers.

    Attributes:
        key: name on the command line, such as ``h100``.
        name: the product the numbers are of.
        vendor: whose it is; ``cpu`` is the machine's processor, for which no peaks are tabulated.
        capability: CUDA compute capability, ``None`` off CUDA.
        peaks: format -> dense matrix product peak in TFLOP/s (10**12 multiply or add operations a second), with FP32
            accumulation, of formats that the matrix units or, for FP32, the vector units run natively.
        bandwidth: memory bandwidth in GB/s (10**9 bytes a second).
        memory: device memory in bytes.
        sms: streaming multiprocessors (NVIDIA) or compute units (AMD).
        l2: last-level cache in bytes.
        notes: what a user should know before trusting a number.
        measured: shares of peaks and bandwidth that were measured on this very device; ``None`` for its generation's.
    """

    key: str
    name: str
    vendor: Literal["nvidia", "amd", "cpu"]
    capability: tuple[int, int] | None
    peaks: Mapping[Format, float] = dataclasses.field(hash=False)
    bandwidth: float
    memory: int
    sms: int
    l2: int
    notes: str = ""
    measured: Efficiency | None = dataclasses.field(default=None, hash=False)

    @property
    def arch(self) -> str:
        """``sm_90`` and the like; the AMD target for AMD."""
        if self.capability is not None:
            return f"sm_{self.capability[0]}{self.capability[1]}"
        return "gfx942" if self.vendor == "amd" else "cpu"

    @property
    def is_cuda(self) -> bool:
        """Whether torch drives it through its CUDA device type (NVIDIA and AMD alike)."""
        return self.vendor != "cpu"

    def is_native(self, number_format: Format) -> bool:
        """Whether the matrix units multiply this format themselves, rather than by emulation or not at all."""
        return number_format in self.peaks

    def as_run(self, number_format: Format) -> Format:
        """The format of the kernels that run where products may use this one: FP32 where there is no TF32."""
        return Format.FP32 if number_format is Format.TF32 and not self.is_native(number_format) else number_format

    @property
    def best_16bit(self) -> Format:
        """BF16 where it is native, else FP16."""
        return Format.BF16 if self.is_native(Format.BF16) else Format.FP16


def _nvidia(
    key: str, name: str, capability: tuple[int, int], fp32: float, tf32: float, fp16: float, fp8: float,
    bandwidth: float, gib: int, sms: int, l2_mib: float, notes: str = "",
) -> Gpu:  # fmt: skip
    """A row of the table; a peak of 0 means that the format is not native. BF16 has FP16's rate from sm_80 on."""
    bf16 = fp16 if capability >= (8, 0) else 0.0
    rates = {_F.FP32: fp32, _F.TF32: tf32, _F.FP16: fp16, _F.BF16: bf16, _F.FP8_E4M3: fp8, _F.FP8_E5M2: fp8}
    peaks = {number_format: rate for number_format, rate in rates.items() if rate}
    return Gpu(key, name, "nvidia", capability, peaks, bandwidth, gib * GIB, sms, int(l2_mib * 2**20), notes)


_EMULATED_BF16 = "BF16 is emulated, and torch.cuda.is_bf16_supported() still answers True"
_TABLE: tuple[Gpu, ...] = (
    #       key        product                     sm     fp32   tf32    fp16    fp8    GB/s  GiB  SMs  L2 MiB
    _nvidia("v100", "Tesla V100 SXM2 32GB", (7, 0), 15.7, 0, 125.0, 0, 900, 32, 80, 6, _EMULATED_BF16),
    _nvidia("t4", "Tesla T4", (7, 5), 8.1, 0, 65.0, 0, 320, 16, 40, 4,
            _EMULATED_BF16 + "; its 70 W limit keeps sustained rates well below the peak"),
    _nvidia("rtx3090", "GeForce RTX 3090", (8, 6), 35.6, 35.6, 71.0, 0, 936, 24, 82, 6,
            "FP32 accumulation runs at half the tensor core rate, so TF32 gains nothing over FP32's vector units"),
    _nvidia("a10", "A10", (8, 6), 31.2, 62.5, 125.0, 0, 600, 24, 72, 6),
    _nvidia("a100", "A100 SXM4 80GB", (8, 0), 19.5, 156.0, 312.0, 0, 2039, 80, 108, 40),
    _nvidia("l4", "L4", (8, 9), 30.3, 60.0, 121.0, 242.5, 300, 24, 58, 48,
            "its 72 W limit keeps sustained rates well below the peak"),
    _nvidia("l40s", "L40S", (8, 9), 91.6, 183.0, 362.0, 733.0, 864, 48, 142, 96),
    _nvidia("rtx4090", "GeForce RTX 4090", (8, 9), 82.6, 82.6, 165.2, 330.3, 1008, 24, 128, 72,
            "FP32 accumulation runs at half the tensor core rate"),
    _nvidia("h100", "H100 SXM5 80GB", (9, 0), 66.9, 494.7, 989.4, 1978.9, 3350, 80, 132, 50),
    _nvidia("h200", "H200 SXM 141GB", (9, 0), 66.9, 494.7, 989.4, 1978.9, 4800, 141, 132, 50),
    _nvidia("b200", "B200 SXM 180GB", (10, 0), 75.0, 1125.0, 2250.0, 4500.0, 7700, 180, 148, 126,
            "also MXFP8, MXFP6, MXFP4 and NVFP4"),
    _nvidia("rtx5090", "GeForce RTX 5090", (12, 0), 104.8, 104.8, 209.5, 419.0, 1792, 32, 170, 96,
            "FP32 accumulation runs at half the tensor core rate; sm_120 kernels differ from sm_100's"),
    Gpu("mi300x", "Instinct MI300X", "amd", None,
        {_F.FP32: 163.4, _F.TF32: 653.7, _F.FP16: 1307.4, _F.BF16: 1307.4, _F.FP8_E4M3: 2614.9, _F.FP8_E5M2: 2614.9},
        5300, 192 * GIB, 304, 256 * 2**20,
        "its FP8 formats are the fnuz variants (e4m3fnuz ends at 240); its TF32 is called xf32"),
    Gpu("cpu", "the machine's processor", "cpu", None, {_F.FP32: 0.0, _F.BF16: 0.0}, 0.0, 0, 0, 0,
        "no peaks are tabulated: processors differ by a factor of 100; BF16 is fast with AMX or AVX512-BF16 alone"),
)  # fmt: skip
GPUS: Mapping[str, Gpu] = {gpu.key: gpu for gpu in _TABLE}
DEFAULT_GPUS = ("a100", "h100", "b200")
"""What analyze reports on when no GPU is present and none is named: the three current data centre generations."""

_ALIASES = {
    "v100-sxm2": "v100", "tesla-v100": "v100", "tesla-t4": "t4", "3090": "rtx3090", "4090": "rtx4090",
    "5090": "rtx5090", "a10g": "a10", "a100-80gb": "a100", "a100-40gb": "a100", "a100-sxm": "a100",
    "h100-sxm": "h100", "gh200": "h200", "mi300": "mi300x", "gb200": "b200", "l40": "l40s",
    "sm_70": "v100", "sm_75": "t4", "sm_80": "a100", "sm_86": "rtx3090", "sm_89": "rtx4090", "sm_90": "h100",
    "sm_100": "b200", "sm_120": "rtx5090",
}  # fmt: skip


def gpu_named(name: str) -> Gpu:
    """The GPU called ``name``, in any spelling of case, spaces and vendor prefix.

    Raises:
        UsageError: no GPU has this name; the message has the nearest one and the list.
    """
    key = _normalised(name)
    key = _ALIASES.get(key, key)
    if key in GPUS:
        return GPUS[key]
    near = difflib.get_close_matches(key, [*GPUS, *_ALIASES], n=1, cutoff=0.5)
    suggestion = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown GPU name {name!r}", hint=f"{suggestion}known: {', '.join(GPUS)}")


def gpus_named(names: tuple[str, ...]) -> tuple[Gpu, ...]:
    """The GPUs called ``names``, each once; ``all`` stands for the whole table except the CPU.

    Raises:
        UsageError: an unknown name.
    """
    chosen: dict[str, Gpu] = {}
    for name in (part for text in names for part in text.split(",") if part):
        found = [gpu for gpu in _TABLE if gpu.is_cuda] if name == "all" else [gpu_named(name)]
        chosen.update({gpu.key: gpu for gpu in found})
    return tuple(chosen.values())


def gpu_for_device(
    device_name: str, capability: tuple[int, int], memory: int, sms: int, bandwidth: float | None = None
) -> Gpu:
    """The table's GPU for what torch.cuda reports: memory in bytes, SM count, and bandwidth in GB/s where known.

    A variant of a product in the table, or a product that is not in it, gets the product's or its compute capability's
    row with the rates scaled by the number of SMs.
    """
    tokens = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    joined = re.sub(r"[^a-z0-9]+", "", device_name.lower())
    exact = next((gpu for gpu in _TABLE if gpu.key in tokens or (len(gpu.key) > 4 and gpu.key in joined)), None)
    model = exact or _nearest_capability(capability)
    scale = sms / model.sms
    return dataclasses.replace(
        model,
        key=exact.key if exact else re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-"),
        name=device_name,
        capability=capability,
        peaks={number_format: rate * scale for number_format, rate in model.peaks.items()},
        bandwidth=bandwidth or model.bandwidth * scale,
        memory=memory,
        sms=sms,
        notes=model.notes if exact else f"not in the table: {model.name} scaled by the number of SMs",
    )


def _nearest_capability(capability: tuple[int, int]) -> Gpu:
    """The first row of this compute capability, else of the newest one below it."""
    older = [gpu for gpu in _TABLE if gpu.capability is not None and gpu.capability <= capability]
    newest = max((gpu.capability for gpu in older if gpu.capability), default=(7, 0))
    return next(gpu for gpu in _TABLE if gpu.capability == newest)


def _normalised(name: str) -> str:
    key = re.sub(r"[\s_]+", "-", name.strip().lower()).replace("sm-", "sm_")
    for prefix in ("nvidia-", "geforce-", "amd-", "instinct-"):
        key = key.removeprefix(prefix)
    return key.replace("rtx-", "rtx")


# Alignment. cuBLAS and cuDNN load operands in 16-byte pieces: a leading dimension that is not a multiple of 16 bytes
# needs kernels with narrower loads (NVIDIA "Matrix Multiplication Background User's Guide", section 4.1: 8 elements
# for FP16, 4 for TF32, 16 for INT8; cuBLAS "Tensor Core Usage"). Since cuBLAS 11.0 and cuDNN 7.6.3 the tensor cores
# run anyway, only slower. FP8 products (torch.nn.functional.scaled_mm, cublasLtMatmul) refuse other sizes outright.
# The same guide gives 128 bytes as the best multiple on A100 and no figure for later GPUs; 128 is kept for them.
REQUIRED_BYTES = 16
BEST_BYTES_BEFORE_AMPERE = 16
BEST_BYTES = 128
FP8_MULTIPLE = 16
MX_BLOCK = 32
"""Elements along the reduction that share one scale in the OCP MX formats (OCP Microscaling specification 1.0)."""
NVFP4_BLOCK = 16


def multiple_for(number_format: Format) -> int:
    """Elements that a GEMM dimension should be a multiple of: 8 in 16 bits, 16 in FP8, 4 in TF32 and FP32."""
    return REQUIRED_BYTES // number_format.bytes


def best_multiple_for(number_format: Format, gpu: Gpu) -> int:
    """The larger multiple at which ``gpu`` runs best: 64 in 16 bits on A100 and later, 8 before."""
    old = gpu.capability is not None and gpu.capability < (8, 0)
    return (BEST_BYTES_BEFORE_AMPERE if old else BEST_BYTES) // number_format.bytes


def padded(value: int, multiple: int) -> int:
    """``value`` rounded up to a multiple."""
    return -(-value // multiple) * multiple

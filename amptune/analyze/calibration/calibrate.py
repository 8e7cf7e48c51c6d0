"""Measures in about two seconds what the GPU at hand reaches: the constants of the roofline, kernel by kernel.

Each probe runs one kind of kernel by itself, on random numbers (zeros draw less power and run faster). No model is
looked at, so predictions of models are predictions. Matrix products take their share of the peak from the probe;
those of convolutions, attention and a pointwise sum scale the table's shares, by what they reach here over what they
reached on the H200 that the table is from. The other probes of traffic are reported alone, and the ramp of short
reductions stays as the generation has it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from amptune.analyze.calibration.probes import gemm_ideal, ideals, product_probes
from amptune.analyze.calibration.probing import Probe
from amptune.analyze.calibration.traffic import layer_us, shortest_kernel_us, traffic_probes
from amptune.analyze.device import present_gpu
from amptune.core.efficiency import EFFICIENCY, Efficiency, Traffic
from amptune.core.formats import Format
from amptune.core.hardware import Gpu
from amptune.core.roofline import efficiency_of
from amptune.runtime import set_backend_flags

H200 = {
    "conv fp32": 0.5539, "conv tf32": 0.5236, "conv bf16": 0.6472, "conv fp16": 0.6277,
    "depthwise fp32": 0.0276, "depthwise bf16": 0.0267, "depthwise fp16": 0.0282,
    "attention fp32": 0.3947, "attention bf16": 0.2206, "attention fp16": 0.2200, "memory pointwise": 0.8412,
}  # fmt: skip
"""Shares that the probes reach on the H200 whose kernels the table is from (tests/benchmarks/reports)."""
_LEFT_OUT = frozenset({"memory batch-norm", "memory batch-norm-bf16", "memory layout"})
"""Probes of earlier calibrations."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was measured, and the constants that follow.

    ``layer_us``: time of the processor for a layer of the probe of launches, forward and backward.
    """

    gpu: Gpu
    probes: tuple[Probe, ...]
    efficiency: Efficiency
    layer_us: tuple[float, float]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All probes: time, ideal time and share, and the constants that are not shares."""
        return {
            "gpu": self.gpu.name,
            "torch": torch.__version__,
            "seconds": round(self.seconds, 2),
            "kernel_us": self.efficiency.kernel_us,
            "layer_us": list(self.layer_us),
            "probes": {
                probe.name: {
                    "us": round(probe.seconds * 1e6, 2),
                    "ideal_us": round(probe.ideal * 1e6, 2),
                    "share": round(probe.share, 4),
                }
                for probe in self.probes
            },
        }


def calibrate(gpu: Gpu) -> Calibration:
    """Measure the present GPU, which ``gpu`` describes (see :func:`amptune.analyze.device.present_gpu`).

    A probe that does not run (no kernel, no memory) leaves the constant of the GPU's generation in place.
    """
    start = time.perf_counter()
    restore = set_backend_flags(tf32=False)
    bare = dataclasses.replace(gpu, measured=None)
    try:
        probes = (*product_probes(bare), *traffic_probes(bare))
        shortest, layer = shortest_kernel_us(bare), layer_us()
    finally:
        restore()
        torch.cuda.empty_cache()
    shares = {probe.name: probe.share for probe in probes}
    found = _efficiency(bare, shares, shortest, _launches(layer))
    return Calibration(gpu, probes, found, layer, time.perf_counter() - start)


def calibrated(gpu: Gpu) -> Gpu:
    """The present GPU with the constants that were measured on it."""
    return dataclasses.replace(gpu, measured=calibrate(gpu).efficiency)


def with_present_measured(gpus: Sequence[Gpu]) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, the one that is present with the constants that were measured on it; and a note for the user."""
    present = present_gpu()
    if present is None or present.key not in {gpu.key for gpu in gpus}:
        return tuple(gpus), ""
    found = calibrate(present)
    measured = dataclasses.replace(present, measured=found.efficiency)
    note = f"{present.name} measured in {found.seconds:.1f} s for the predictions (--no-calibrate-gpu takes a table)"
    return tuple(measured if gpu.key == present.key else gpu for gpu in gpus), note


def constants_from(gpu: Gpu, data: Mapping[str, Any]) -> Efficiency:
    """The constants out of a calibration's JSON, for predictions on a machine without that GPU."""
    shares = {name: float(probe["share"]) for name, probe in data["probes"].items() if name not in _LEFT_OUT}
    for number_format in gpu.peaks:
        if probe := data["probes"].get(f"gemm {number_format}"):
            shares[f"gemm {number_format}"] = gemm_ideal(gpu, number_format) / (probe["us"] * 1e-6)
    shares |= {
        name: ideal / (data["probes"][name]["us"] * 1e-6)
        for name, ideal in ideals(gpu).items()
        if name in data["probes"]
    }
    if "layer_us" in data:
        ahead, behind = data["layer_us"]
    else:  # of an earlier calibration, by 4 and 7 kernels
        ahead, behind = (count * each for count, each in zip((4, 7), data["launch_us"], strict=True))
    return _efficiency(gpu, shares, data["kernel_us"], _launches((ahead, behind)))


def _efficiency(gpu: Gpu, shares: Mapping[str, float], shortest: float, launches: tuple[float, float]) -> Efficiency:
    known, table = efficiency_of(gpu), EFFICIENCY["hopper"]
    gemm = {each: shares.get(f"gemm {each}", share) for each, share in known.gemm.items()}
    against = {name: shares[name] / share for name, share in H200.items() if name in shares}

    def scaled(kind: str, each: Format) -> float:
        """TF32 and FP8 have no probe of their own where FP32 and BF16 stand for them."""
        near = {Format.TF32: Format.FP32}.get(each, Format.BF16)
        return against.get(f"{kind} {each}", against.get(f"{kind} {near}", 1.0))

    memory = against.get(f"memory {Traffic.POINTWISE}", 1.0)
    return dataclasses.replace(
        known,
        gemm=gemm | {Format.FP8_E5M2: gemm[Format.FP8_E4M3]},
        conv={each: _times(passes, scaled("conv", each)) for each, passes in table.conv.items()},
        depthwise={key: _times(passes, scaled("depthwise", key[0])) for key, passes in table.depthwise.items()},
        attention={each: _times(ways, scaled("attention", each)) for each, ways in table.attention.items()},
        memory={kind: _times(pair, memory) for kind, pair in table.memory.items()},
        misaligned={each: shares.get(f"misaligned {each}", share) for each, share in known.misaligned.items()},
        kernel_us=shortest,
        launch_us=(math.sqrt(known.launch_us[0] * launches[0]), math.sqrt(known.launch_us[1] * launches[1])),
    )


COLD = 2.5
"""Time of an op in a training step against one in the probe's chain of equal layers, whose code and data stay in the
caches, and which has no optimizer, loss or loop: 2.2 to 3.6 for the ten models whose steps the processor bound, beside
the probes of the same three runs (steps_*_h200.json)."""
LAYER_OPS = 20
"""Ops of a layer as the estimate counts them: 4 and 4 modules forward; backward 3, 3 and 1, the sum of two gradients,
and the gradients of 4 parameters."""


def _launches(layer: tuple[float, float]) -> tuple[float, float]:
    """One time for both directions: steps do not show the difference that the probe does.

    The constants take the middle of this and the table's: processors change their clock within seconds, and beside five
    H200s the probe said 28 to 40 us where the steps of the same runs said 26 to 33, the higher the one, the lower the
    other. A processor of another kind differs by more than that.
    """
    each = COLD * sum(layer) / LAYER_OPS
    return each, each


_Shares = TypeVar("_Shares", tuple[float, float], tuple[float, float, float])


def _times(shares: _Shares, factor: float) -> _Shares:
    return tuple(share * factor for share in shares)  # type: ignore[return-value]

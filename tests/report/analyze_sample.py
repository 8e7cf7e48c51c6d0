"""An analysis as large as wanted, for the tests of its page."""

import dataclasses

from amptune.core.finding import Finding, Location, Severity
from amptune.core.hardware import GPUS
from amptune.report.analyze_data import PageData, PageSite, Risk, Spread

KEPT = (Risk.KEPT, "runs in float32")
FINE = (Risk.FINE, "")


def block(index):
    """Four sites; block 3 is wider than the others, and its exponential overflows."""
    width = 1000 if index == 3 else 512
    name = f"layers.{index}"
    fails = (Risk.FAILS, "G203: exp overflows fp16")
    times = {"fp32": 2.0 + index / 100, "tf32": 1.0, "autocast-bf16": 0.5, "autocast-bf16+fixed": 0.4}
    return [
        PageSite(f"{name}.norm", "layer_norm", "norm", "4096x512", milliseconds={"fp32": 0.1, "autocast-bf16": 0.1},
                 risks={"bf16": KEPT, "fp16": KEPT, "fp8_e4m3": KEPT}),
        PageSite(f"{name}.fc", "linear", "gemm", f"4096x{width}x512", place="model.py:7", flops=6.4e9, intensity=300.0,
                 milliseconds=times, compute="bfloat16", risks={"bf16": FINE, "fp16": FINE, "fp8_e4m3": FINE},
                 rules=("G101",) if index == 3 else ()),
        PageSite(f"{name}#exp.0", "exp", "sensitive", "4096x512", place="model.py:8",
                 milliseconds={"fp32": 0.05, "autocast-bf16": 0.07},
                 risks={"bf16": KEPT, "fp16": fails if index == 3 else KEPT, "fp8_e4m3": KEPT},
                 spread=Spread(0.0, 2.0**20 if index == 3 else 7.4)),
        PageSite(f"{name}#tanh.0", "tanh", "sensitive", "4096x512", milliseconds={"fp32": 0.04, "autocast-bf16": 0.02},
                 risks={"bf16": FINE, "fp16": FINE, "fp8_e4m3": KEPT}, spread=Spread(0.0, 1.0)),
    ]  # fmt: skip


def finding(severity, message, rule="G203", **evidence):
    return Finding(rule, "a-rule", severity, message, Location("model.py", 8), "layers.3#exp.0", evidence)


FINDINGS = (
    finding(Severity.INFO, "something to know", "G407"),
    finding(Severity.ERROR, "exp overflows fp16", sites=["layers.3#exp.0", "layers.4#exp.0"]),
    finding(Severity.WARNING, "K is not a multiple of 8", "G101", saves_ms={"h100": 0.5}),
)


def numbers(step, speedup, **more):
    return {"step_ms": step, "memory_bytes": 2**31, "speedup": speedup, "bound": "gpu", "fits": True} | more


ESTIMATE = {
    "h100": {
        "fp32": numbers(20.0, 1.0),
        "fp32+fixed": numbers(20.0, 1.0),
        "autocast-bf16": numbers(5.0, 4.0),
        "autocast-bf16+fixed": numbers(4.0, 5.0),
        "fp8-tensorwise": numbers(2.0, 10.0, fits=False),
    },
    "t4": {"fp32": numbers(90.0, 1.0), "autocast-fp16": numbers(30.0, 3.0, bound="launch", gpu_ms=9.0)},
}


def sample(blocks=6, **changes):
    """An analysis of ``blocks`` blocks of four sites."""
    data = PageData(
        target="model.py",
        gpus=(GPUS["h100"], GPUS["t4"]),
        gpu=GPUS["h100"],
        half="autocast-bf16",
        mode="eager",
        train=True,
        estimate=ESTIMATE,
        findings=FINDINGS,
        sites=tuple(site for index in range(blocks) for site in block(index)),
        facts={"Sites": str(4 * blocks), "Parameters": "1,234"},
        notes=("an assumption",),
        tool="amptune 0",
    )
    return dataclasses.replace(data, **changes)

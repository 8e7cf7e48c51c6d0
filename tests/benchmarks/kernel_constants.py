"""The constants of the roofline that single kernels show: reads what kernel_times.py wrote, prints a share a kind.

    PYTHONPATH=.:rules python tests/benchmarks/kernel_constants.py tests/benchmarks/reports/kernels_h200.json

Each kernel's time less its start, against the time at the full peak or bandwidth: the median over the shapes that fill
the GPU is the share in amptune/core/efficiency.py. Beside it stand the lowest and the highest, as a warning of what one
share hides. No model is looked at.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amptune.core.attending import Attending
from amptune.core.efficiency import Traffic
from amptune.core.formats import Format
from amptune.core.graph import Gemm
from amptune.core.hardware import GPUS, Gpu
from amptune.core.roofline import Pass, efficiency_of, oriented, peak_of, shape_share

FEWEST_ELEMENTS = 2**23
"""Smaller tensors fit the cache and show the start of the kernel more than the bandwidth."""
ITEM = {"fp32": 4, "bf16": 2, "fp16": 2}
# Op and pass -> kind of traffic and bytes moved, in tensors of the op's size.
_UNITS: dict[tuple[str, str], tuple[Traffic, float]] = {
    ("add", "forward"): (Traffic.POINTWISE, 3), ("scale", "forward"): (Traffic.POINTWISE, 2),
    ("relu", "forward"): (Traffic.POINTWISE, 2), ("relu", "backward"): (Traffic.POINTWISE, 3),
    ("gelu", "forward"): (Traffic.POINTWISE, 2), ("gelu", "backward"): (Traffic.POINTWISE, 3),
    ("silu", "forward"): (Traffic.POINTWISE, 2), ("silu", "backward"): (Traffic.POINTWISE, 3),
    ("add_channels", "forward"): (Traffic.UNROLLED, 2), ("scale_rows", "forward"): (Traffic.UNROLLED, 2),
    ("add_layouts", "forward"): (Traffic.LAYOUT, 3), ("swap_heads", "forward"): (Traffic.LAYOUT, 2),
    ("transpose", "forward"): (Traffic.LAYOUT, 2), ("to_channels_last", "forward"): (Traffic.LAYOUT, 2),
    ("from_channels_last", "forward"): (Traffic.LAYOUT, 2), ("cat", "forward"): (Traffic.LAYOUT, 2),
    ("cat_channels", "forward"): (Traffic.LAYOUT, 4), ("layer_norm", "forward"): (Traffic.NORM, 2),
    ("layer_norm", "backward"): (Traffic.NORM, 5), ("group_norm", "forward"): (Traffic.NORM, 3),
    ("group_norm", "backward"): (Traffic.NORM, 5), ("sum_rows", "forward"): (Traffic.REDUCTION, 1),
    ("sum_columns", "forward"): (Traffic.REDUCTION, 1), ("sum_channels", "forward"): (Traffic.REDUCTION, 1),
    ("sum_channels_last", "forward"): (Traffic.REDUCTION, 1), ("mean_side", "forward"): (Traffic.REDUCTION, 1),
    ("softmax_64", "forward"): (Traffic.SOFTMAX, 2), ("softmax_64", "backward"): (Traffic.SOFTMAX, 3),
    ("softmax_512", "forward"): (Traffic.SOFTMAX, 2), ("softmax_512", "backward"): (Traffic.SOFTMAX, 3),
    ("softmax_32768", "forward"): (Traffic.SOFTMAX, 2), ("softmax_32768", "backward"): (Traffic.SOFTMAX, 3),
    ("embedding", "forward"): (Traffic.GATHER, 2), ("embedding", "backward"): (Traffic.GATHER, 3),
    ("batch_norm", "forward"): (Traffic.BATCH_NORM, 3), ("batch_norm", "backward"): (Traffic.BATCH_NORM, 5),
    ("batch_norm_last", "forward"): (Traffic.BATCH_NORM, 3), ("batch_norm_last", "backward"): (Traffic.BATCH_NORM, 5),
    ("dropout", "forward"): (Traffic.POINTWISE, 2.4), ("dropout", "backward"): (Traffic.POINTWISE, 2.4),
    ("upsample", "forward"): (Traffic.POINTWISE, 5), ("max_pool", "forward"): (Traffic.POINTWISE, 1.75),
    ("max_pool", "backward"): (Traffic.POINTWISE, 1.75), ("roll", "forward"): (Traffic.LAYOUT, 4),
}  # fmt: skip


def shares(row: Mapping[str, Any], gpu: Gpu) -> Iterable[tuple[tuple[str, ...], float]]:
    """Kind of kernel, and the share of the peak or bandwidth that one case reaches, pass by pass."""
    for label, measured in row["us"].items():
        seconds = (measured - efficiency_of(gpu).kernel_us) * 1e-6
        ideal = _ideal(row, label, gpu)
        if ideal and seconds > 0:
            yield _kind(row, label), ideal / seconds


def _kind(row: Mapping[str, Any], label: str) -> tuple[str, ...]:
    case, name = row["case"], row["format"]
    if case == "memory":
        kind = _UNITS[row["op"], label][0] if (row["op"], label) in _UNITS else Traffic.CAST
        return "memory", str(kind), row["op"], label, name
    if case == "conv":
        last = "channels-last" if row["channels_last"] else "contiguous"
        groups = "depthwise" if row["groups"] == row["inputs"] > 1 else "grouped" if row["groups"] > 1 else "conv"
        shape = f"{row['kernel']}x{row['kernel']}" if groups == "conv" else ""
        return groups, last, shape, label, name
    if case == "attention":
        return "attention", row["kind"], label, name
    return case, label, name


def _ideal(row: Mapping[str, Any], label: str, gpu: Gpu) -> float:
    case = row["case"]
    if case == "memory":
        return _ideal_move(row, label, gpu) if row["size"] >= FEWEST_ELEMENTS else 0.0
    number_format = Format.parse(row["format"])
    peak = peak_of(gpu, number_format)
    direction = {"forward": Pass.FORWARD, "input": Pass.INPUT, "weight": Pass.WEIGHT}.get(label)
    if case == "gemm" and direction:
        gemm = oriented(Gemm(row["m"], row["n"], row["k"], row["batch"]), direction)
        return gemm.flops / (peak * shape_share(gemm, number_format, gpu))
    if case == "conv" and direction:
        return _ideal_convolution(row, direction, number_format, gpu)
    if case == "attention":
        work = Attending(row["batch"] * row["heads"], row["queries"], row["keys"], row["size"], row["kind"] == "causal")
        return (2.5 if label == "backward" else 1.0) * work.flops / peak
    return 0.0


def _ideal_move(row: Mapping[str, Any], label: str, gpu: Gpu) -> float:
    item, op = ITEM[row["format"]], row["op"]
    if op.startswith("cast_to"):
        moved = row["size"] * (4 + 2)
    elif op == "add_mixed":
        moved = row["size"] * (item + 2 + item)
    elif (op, label) in _UNITS:
        moved = row["size"] * item * _UNITS[op, label][1]
    else:
        return 0.0
    return float(moved / (gpu.bandwidth * 1e9))


def _ideal_convolution(row: Mapping[str, Any], direction: Pass, number_format: Format, gpu: Gpu) -> float:
    side = row["side"] // row["stride"]
    gemm = Gemm(row["batch"] * side**2, row["outputs"] // row["groups"],
                row["inputs"] // row["groups"] * row["kernel"] ** 2, row["groups"])  # fmt: skip
    if row["groups"] == row["inputs"]:
        return gemm.flops / peak_of(gpu, Format.FP32)
    share = 1.0 if row["groups"] > 1 else shape_share(oriented(gemm, direction), number_format, gpu)
    return gemm.flops / (peak_of(gpu, number_format) * share)


def main() -> int:
    """Print a table: kind, median share, lowest, highest, cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", type=Path)
    parser.add_argument("--gpu", default="h200", choices=sorted(GPUS))
    args = parser.parse_args()
    found: dict[tuple[str, ...], list[float]] = collections.defaultdict(list)
    for row in json.loads(args.kernels.read_text(encoding="utf-8"))["rows"]:
        for kind, share in shares(row, GPUS[args.gpu]):
            found[kind].append(share)
    for kind, values in sorted(found.items()):
        middle, lowest, highest = statistics.median(values), min(values), max(values)
        print(f"{' '.join(kind):60s} {middle:7.4f} {lowest:7.4f} {highest:7.4f} {len(values):3d}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

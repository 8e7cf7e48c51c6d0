"""Predicted training steps against measured ones: prints each error, and the medians.

The measured steps are those of stock recipes on an H100 80GB SXM (torch 2.11, CUDA 13.0; forward, loss, backward and
fused AdamW; median of 12 after 5 warm-ups). The efficiencies of Hopper in amptune/core/roofline.py were set on these
numbers as a whole, so this is a check of fit and not of prediction; models that were not looked at belong here as soon
as they are measured.

    python tests/benchmarks/estimate_check.py [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from amptune.analyze.enrich import enrich
from amptune.analyze.estimate import Estimate, estimate_all
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import GPUS
from amptune.core.recipes import RECIPES

MODELS = Path(__file__).parent / "models"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model in one mode: milliseconds by recipe (``+fixed`` for the repaired model), and memory in GiB."""

    model: str
    mode: str
    step_ms: dict[str, float]
    memory_gib: dict[str, float] = dataclasses.field(default_factory=dict)
    arguments: dict[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


MEASURED = (
    Measured("nanogpt", "eager", {"fp32": 308.8, "tf32": 130.0, "autocast-bf16": 77.6, "autocast-fp16": 80.4,
                                  "autocast-bf16+fixed": 51.7}, {"autocast-bf16": 16.5}),
    Measured("bert", "eager", {"fp32": 281.1, "tf32": 119.6, "autocast-bf16": 57.7}, {"autocast-bf16": 13.2}),
    Measured("resnet50", "eager", {"autocast-bf16": 60.2, "autocast-fp16": 48.7, "autocast-bf16+fixed": 34.9,
                                   "autocast-fp16+fixed": 28.0, "fp32+fixed": 140.5, "tf32+fixed": 52.7}),
    Measured("vit", "eager", {"tf32": 70.6, "autocast-bf16": 35.3, "autocast-fp16": 42.9},
             note="what the measured model was is not recorded beyond ViT-B/16; fp16 was 40.8 to 45"),
    Measured("llama", "eager", {"fp32": 745.6, "tf32": 259.6, "autocast-bf16": 92.9}, {"autocast-bf16": 19.0}),
    Measured("nanogpt", "compile", {"autocast-bf16": 46.0, "autocast-bf16+fixed": 37.2}),
    Measured("nanogpt", "compile", {"autocast-bf16": 37.2, "fp8-tensorwise": 44.1, "fp8-rowwise": 50.6},
             arguments={"vocab": "50304"}),
    Measured("llama", "compile", {"autocast-bf16": 73.7, "fp8-tensorwise": 65.8},
             {"autocast-bf16": 14.7, "fp8-tensorwise": 27.7}),
    Measured("llama8b", "compile", {"autocast-bf16": 121.6, "fp8-tensorwise": 100.0, "fp8-rowwise": 113.7}),
)  # fmt: skip


def graph_of(entry: Measured) -> PrecisionGraph:
    """The captured model of one entry."""
    captured = capture(load_target(TargetSpec(str(MODELS / f"{entry.model}.py"), entry.arguments)))
    enrich(captured.graph, captured.graph_module)
    return captured.graph


def compare(entry: Measured) -> list[dict[str, Any]]:
    """One row for each measured number of an entry."""
    recipes = [RECIPES[name] for name in dict.fromkeys(key.removesuffix("+fixed") for key in entry.step_ms)]
    table = estimate_all(graph_of(entry), [GPUS["h100"]], recipes, mode=entry.mode)["h100"]  # type: ignore[arg-type]
    base = next(iter(entry.step_ms))
    return [_row(entry, name, table, base) for name in entry.step_ms]


def _row(entry: Measured, name: str, table: dict[str, Estimate], base: str) -> dict[str, Any]:
    predicted, measured = table[name], entry.step_ms[name]
    speedup = {"predicted": table[base].step_ms / predicted.step_ms, "measured": entry.step_ms[base] / measured}
    memory = entry.memory_gib.get(name)
    return {
        "model": entry.model + "".join(f" {value}" for value in entry.arguments.values()),
        "mode": entry.mode,
        "recipe": name,
        "measured_ms": measured,
        "predicted_ms": round(predicted.step_ms, 1),
        "error": round(predicted.step_ms / measured - 1, 3),
        "speedup_error": None if name == base else round(speedup["predicted"] / speedup["measured"] - 1, 3),
        "memory_error": round(predicted.memory.peak / GIB / memory - 1, 3) if memory else None,
    }


def medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median absolute errors."""
    return {
        key: statistics.median(abs(row[key]) for row in rows if row[key] is not None)
        for key in ("error", "speedup_error", "memory_error")
    }


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="all rows as JSON")
    as_json = parser.parse_args().json
    rows = [row for entry in MEASURED for row in compare(entry)]
    if as_json:
        print(json.dumps({"rows": rows, "median": medians(rows)}, indent=1))
        return 0
    header = ("model", "mode", "recipe", "measured_ms", "predicted_ms", "error", "speedup_error", "memory_error")
    print("".join(f"{name:>20s}" for name in header))
    for row in rows:
        print("".join(f"{_text(row[name], name):>20s}" for name in header))
    print("median absolute error: " + ", ".join(f"{key} {value:.1%}" for key, value in medians(rows).items()))
    return 0


def _text(value: Any, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:+.1%}" if name.endswith("error") else str(value)


if __name__ == "__main__":
    sys.exit(main())

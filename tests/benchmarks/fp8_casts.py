"""What the casts to FP8 take by themselves: the runtime's kernels, those that torch.compile makes, and torch's own.

    PYTHONPATH=.:rules python tests/benchmarks/fp8_casts.py [--json OUT.json]

Both forms of a matrix are made, as the gradient of a layer's output needs them. The table also gives the share of the
time in which the bytes could be moved that have to be: the matrix read twice, and two forms of one byte each written.
Whether the runtime's kernels give the same numbers as torch's own is checked for each row, for tiles of several sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from amptune import runtime

CASES = {  # what it is in a model: rows, columns, dtype
    "gradient of a head's logits": (8192, 32000, torch.bfloat16),
    "input of a Llama's down_proj": (8192, 8192, torch.bfloat16),
    "input of a block, 4096 wide": (8192, 4096, torch.bfloat16),
    "weight of an 8B's up_proj": (14336, 4096, torch.float32),
    "input of GPT-2's blocks": (16384, 768, torch.bfloat16),
}
TILES = ((128, 64), (64, 64), (64, 128), (128, 128), (256, 32))
REPEATS = 15
HEAD_START = 40_000_000
"""GPU clock cycles, 20 ms: Python queues all repeats behind them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ms")
    bandwidth = 2**31 / milliseconds(torch.empty(1 << 30, dtype=torch.int8, device="cuda").clone)
    print(f"a copy moves {bandwidth / 1e9:.2f} TB/s")
    tiles = "  ".join(f"{high}x{wide}" for high, wide in TILES)
    print(f"{'matrix':30} {'scaling':14}   bytes alone, torch's own, torch.compile; ours by tiles {tiles}")
    rows = [measured(case, scaling, bandwidth) for case in CASES for scaling in ("tensorwise", "rowwise")]
    if path:
        path.write_text(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}))


def measured(case: str, scaling: str, bandwidth: float) -> dict[str, Any]:
    height, width, dtype = CASES[case]
    matrix = torch.randn(height, width, device="cuda").to(dtype)
    fp8 = torch.float8_e5m2 if scaling == "tensorwise" and dtype == torch.bfloat16 else torch.float8_e4m3fn
    least = matrix.numel() * (2 * matrix.element_size() + 2) / bandwidth

    def plain() -> Any:
        return runtime._LOWER[scaling](matrix, fp8, True, True)

    compiled = torch.compile(runtime._LOWER[scaling], dynamic=True)
    found = {"own": milliseconds(plain), "compiled": milliseconds(lambda: compiled(matrix, fp8, True, True))}
    expected, differing = plain(), 0
    for tile in TILES:
        runtime._TILE = tile
        found[f"{tile[0]}x{tile[1]}"] = milliseconds(lambda: runtime._fused(matrix, fp8, scaling, True, True))
        for one, other in zip(runtime._fused(matrix, fp8, scaling, True, True), expected, strict=True):
            assert torch.equal(one.scale, other.scale), (case, scaling, tile)
            differing += int((one.data.view(torch.int8) != other.data.view(torch.int8)).sum())
    times = "  ".join(f"{ms:7.3f}" for ms in found.values())
    print(f"{case:30} {scaling:14} {least:7.3f} {times}   {differing} values differ", flush=True)
    return {"case": case, "scaling": scaling, "least_ms": least, "ms": found, "differing": differing}


def milliseconds(function: Callable[[], Any]) -> float:
    """Of the GPU alone, in the median."""
    for _ in range(3):
        function()
    torch.cuda._sleep(HEAD_START)
    marks = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


if __name__ == "__main__":
    main()

"""``amptune bench``: all stock recipes and a plan side by side, in one process, in turns."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from amptune.commands.guard import Finished
from amptune.commands.measuring import add_measurement, options_of
from amptune.commands.targets import add_state_and_batch, add_target, surviving
from amptune.commands.values import positive_int
from amptune.core.sizes import size_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_target(parser)
    add_state_and_batch(parser)
    add_measurement(parser)
    parser.add_argument("--plan", type=Path, help="plan.json to measure beside the stock recipes")
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N",
                        help="interleaved rounds (default 5)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON as well")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    return surviving(args, lambda finished: _work(args, finished))


def _work(args: argparse.Namespace, finished: Finished) -> int:
    from amptune.core.files import check_file, write_atomic

    if args.out:
        check_file(args.out)
    options = options_of(args)
    from amptune.tune.bench import bench
    from amptune.tune.study.progress import Progress

    progress = Progress(0)
    with progress.live():
        data = bench(options, args.plan, args.rounds, progress)
    finished()
    text = json.dumps(data, indent=2)
    print(text if args.format == "json" else table(data), flush=True)  # first: the disk may be full
    if args.out:
        write_atomic(args.out, text + "\n")
    return 0


def table(data: dict[str, Any]) -> str:
    """The rows for a terminal, fastest first."""
    device = data["device"]
    rounds = f"{data['rounds']} round{'' if data['rounds'] == 1 else 's'}"
    where = f"{device['gpu']}, torch {device['torch']}, {data['mode']} mode, {rounds}"
    times = f"{'ms/step':>9s} {'quartiles':>19s} {'speedup':>8s}"
    lines = [
        f"{data['target']} on {where}",
        f"{'recipe':36s} {times} {'memory':>10s} {'tensor cores':>12s} {'loss gap':>9s}  valid",
    ]
    rows = sorted(data["rows"], key=lambda row: row["step_ms"]["median"] if row["step_ms"] else float("inf"))
    lines += [_line(row, is_best=row["recipe"] == data["best_stock"]) for row in rows]
    lines.append("speedup: over the best valid stock recipe, marked *; median of paired rounds")
    return "\n".join(lines)


def _line(row: dict[str, Any], *, is_best: bool) -> str:
    step = row["step_ms"]
    times = f"{step['median']:9.2f} {step['low']:9.2f}-{step['high']:<9.2f}" if step else f"{'-':>9s} {'':19s}"
    speedup = f"{row['speedup_over_best_stock']:.3f}" if row["speedup_over_best_stock"] else "-"
    memory = size_text(row["memory_bytes"]) if row["memory_bytes"] else "-"
    share = f"{row['tensor_core_share']:.0%}" if row["tensor_core_share"] is not None else "-"
    gap = f"{row['loss_gap']:+.3%}" if row["loss_gap"] is not None else "-"
    name = row["recipe"] + (" *" if is_best else "")
    valid = "yes" if row["valid"] else f"no: {row['reason']}"
    return f"{name:36s} {times} {speedup:>8s} {memory:>10s} {share:>12s} {gap:>9s}  {valid}"

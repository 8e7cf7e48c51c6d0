"""Tune a model and keep the result as a report: device, versions, seed, repeats, every trial.

    python tests/benchmarks/tune_report.py gpt_cpu examples/gpt.py --budget 12
    GPT_SIZE=gpt2 python tests/benchmarks/tune_report.py gpt2_h100 examples/gpt.py --budget 50

Writes tests/benchmarks/reports/NAME.json (the search's result.json) and NAME.md.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPORTS = Path(__file__).parent / "reports"


def main() -> None:
    name, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "amptune", "tune", *arguments, "--out", out]
        subprocess.run(command, check=True)
        result = json.loads((Path(out) / "result.json").read_text())
    REPORTS.mkdir(exist_ok=True)
    (REPORTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result, f"amptune tune {' '.join(arguments)}")
    (REPORTS / f"{name}.md").write_text(text)
    print(text)


def markdown(result: dict[str, Any], command: str) -> str:
    """The report that a person reads."""
    device = ", ".join(f"{key} {value}" for key, value in result["device"].items() if value is not None)
    best = result["best"]
    lines = [
        f"# `{command}`",
        "",
        f"- device: {device}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}; seed {result['seed']}",
        f"- judged on {result['steps']} steps in up to 3 orders, tolerance {result['tolerance']:.1%}",
        f"- noise of the reference {result['noise']:.3%}, quality data: {result['quality_data']}",
        f"- verdict: **{result['verdict']}**, {result['speedup_over_best_stock']:.3f}x the best stock recipe",
        f"- at least {result['speedup_low']:.3f}x with 95 % confidence",
        f"- without loss and layout choices: {result['attribution']['without_loss_and_layout']}",
        *_in_parts(result),
        f"- search: {len(result['trials'])} trials in {result['seconds']:.0f} s, ended by: {result['stopped']}",
        f"- seconds in: {', '.join(f'{k} {v:.0f}' for k, v in result['seconds_in'].items())}",
        f"- seconds of a plan's trial (means): {_parts(result['trials'])}",
        f"- predicted against measured steps of plans, median error: {_share(result['prediction']['median_error'])}",
        "",
        "| candidate | ms a step (median) | quartiles | repeats | memory MiB | loss gap | valid |",
        "|---|---|---|---|---|---|---|",
        *(_row(entry["recipe"], entry) for entry in result["stock"]),
        _row(f"stock, repeated: {result['repeats']['stock']['recipe']}", result["repeats"]["stock"]),
        _row(f"best, repeated: {best['recipe']}", best),
        "",
        "| trial | kind | state | ms | queued in | predicted ms | loss gap | reason |",
        "|---|---|---|---|---|---|---|---|",
        *(_trial(trial) for trial in result["trials"]),
        "",
    ]
    return "\n".join(lines)


def _in_parts(result: dict[str, Any]) -> list[str]:
    if result.get("compiled") != "parts":
        return []
    gain = result["attribution"]["stock_in_parts"]
    said = "not measured" if gain is None else f"{gain}x"
    return [f"- the plan compiles parts of the model, each by itself; the best stock recipe compiled so: {said}"]


def _row(name: str, entry: dict[str, Any]) -> str:
    step = entry["step_ms"] or {"median": None, "low": None, "high": None, "repeats": 0}
    memory = "-" if entry["memory_bytes"] is None else f"{entry['memory_bytes'] / 2**20:.0f}"
    valid = "yes" if entry["valid"] else entry["reason"]
    return (
        f"| {name} | {_ms(step['median'])} | {_ms(step['low'])} to {_ms(step['high'])} | {step['repeats']} "
        f"| {memory} | {_share(entry['loss_gap'])} | {valid} |"
    )


def _trial(trial: dict[str, Any]) -> str:
    median = trial["step_ms"]["median"] if trial["step_ms"] else None
    return (
        f"| {trial['number']} | {trial['recipe'] or trial['kind']} | {trial['state']} | {_ms(median)} "
        f"| {_ms(trial.get('launch_ms'))} | {_ms(trial['predicted_ms'])} "
        f"| {_share(trial['loss_gap'])} | {trial['reason']} |"
    )


def _parts(trials: Sequence[dict[str, Any]]) -> str:
    plans = [trial["seconds"] for trial in trials if not trial["recipe"] and trial.get("seconds")]
    parts = dict.fromkeys(part for seconds in plans for part in seconds)
    return ", ".join(f"{part} {statistics.fmean(s.get(part, 0.0) for s in plans):.2f}" for part in parts) or "-"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3%}"


if __name__ == "__main__":
    main()

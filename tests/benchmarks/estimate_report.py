"""The comparison of predicted with measured steps as a page for people: what estimate_check.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ERRORS = {"error": "step time", "speedup_error": "speedup", "memory_error": "memory"}
HEAD = """# Predicted against measured training steps, {name}

Written by

    {command}

Measured: forward, loss, backward, fused AdamW, torch {torch}; median step, `max_memory_allocated`. Speedups are against
FP32 with TF32 off; `+fixed` is the model with aligned dimensions or convolutions in channels_last.

**All {count} models have been looked at by those who changed the estimate, and what was found is in it**: these are the
errors of today's code on models that it knows. Errors of predictions that were committed before anybody had measured
the steps are in first_sight_h200.md; the second table has the medians.

`calibrated`: constants measured on the GPU of each run by amptune's micro-benchmark, which looks at no model. `table`:
the constants of amptune/core/efficiency.py, from single kernels (kernel_times.py, kernels_h200.json and
kernels_further_h200.json); casts and row norms are from the profiled kernels of the `seen` models, whose structure was
set first, attention from single kernels and profiled steps; `blind` models were first predicted and then measured. The
cost of a launch is that with the least mean error of all steps, as is that kernels bound by memory take 1.1 times as
long in a step as alone; `leave one out`: the first set anew for each model on all the others. Steps that the processor
bound differ by up to a third between two formats of one model and one run (whisper, moe and swin in BF16 and FP16),
which no prediction can follow.

Gemma's steps are most likely those of fused attention, which transformers 5.17 takes for it without soft caps: no
tanh or softmax of the scores is in the memory measured. Later versions, of which the predictions are, multiply by hand.

The run of the first five blind models has rounded medians. T5's profiled kernels are those of attention by plain
products in FP32, as a learned bias that is strided in memory makes it; it is predicted so.

## Absolute errors: median and mean over all steps

| constants | models | steps | step time | mean | speedup | mean | memory | mean |
|---|---|---|---|---|---|---|---|---|"""
COLUMNS = (
    "| model | models | constants | mode | recipe | measured ms | predicted ms | error | speedup measured | predicted "
    "| error | GiB measured | predicted | error |"
)
Table = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def markdown(
    measured: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], medians: Table, means: Table,
    first: Table, left_out: Mapping[str, float | None], choices: Mapping[str, Mapping[str, Any]], command: str,
) -> str:  # fmt: skip
    """The comparison: ``medians`` and ``means`` by constants, group and kind of error; ``first`` by name of the
    predictions and constants; ``choices`` by constants."""
    name = measured["gpu"].get("name") or measured["gpu"]["key"]
    count = len({row["model"] for row in rows})
    lines = [HEAD.format(name=name, torch=measured["torch"], command=command, count=count)]
    for constants, groups in medians.items():
        for group, errors in groups.items():
            steps = sum(row["constants"] == constants and group in (row["group"], "all") for row in rows)
            cells = [percent(each[key]) for key in ERRORS for each in (errors, means[constants][group])]
            lines.append(f"| {constants} | {group} | {steps} | " + " | ".join(cells) + " |")
        lines.append(f"| {constants} | all, leave one out | - | - | - | {percent(left_out[constants])} | - | - | - |")
    lines += ["", "## The stock recipe that is predicted to be the fastest", ""]
    for constants, found in choices.items():
        behind = ", ".join(f"{model} {percent(share)} behind" for model, share in found["behind"].items()) or "none"
        near = found["models"] - len(found["behind"])
        lines.append(
            f"- {constants}: within 3 % of the fastest in {near} of {found['models']} models; in others, {behind}"
        )
        mean = f"{found['names'] / found['models']:.1f} recipes in the mean"
        named = f"a nearly fastest one is among them in {found['named']} of {found['models']}"
        alone = f"one alone is named for {found['alone']} models, rightly for {found['right']}"
        lines.append(f"  - analyze names what is too close to call, {mean}: {named}; {alone}")
    if first:
        lines += ["", "## As written down before those who changed the estimate had read the steps", "",
                  "| when | constants | step time | speedup | memory |", "|---|---|---|---|---|"]  # fmt: skip
        for when, table in first.items():
            for constants, errors in table.items():
                lines.append(f"| {when} | {constants} | " + " | ".join(percent(errors[key]) for key in ERRORS) + " |")
    lines += ["", "## Every step", "", COLUMNS, "|---" * (COLUMNS.count("|") - 1) + "|"]
    return "\n".join([*lines, *(_row(row) for row in rows)]) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    cells = [row["model"], row["group"], row["constants"], row["mode"], row["recipe"], row["measured_ms"],
             row["predicted_ms"], percent(row["error"], sign=True), row["measured_speedup"],
             row["predicted_speedup"], percent(row["speedup_error"], sign=True), row["measured_gib"],
             row["predicted_gib"], percent(row["memory_error"], sign=True)]  # fmt: skip
    return "| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |"


def percent(value: float | None, *, sign: bool = False) -> str:
    """A share as text."""
    return "-" if value is None else f"{value:+.1%}" if sign else f"{value:.1%}"

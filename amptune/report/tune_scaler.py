"""The loss scaler in the tune report: its settings, what it would have done, and the gradients it has to carry."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from amptune.core.plan import Plan
from amptune.core.scaler import GradientRecord
from amptune.report.numberline import ROW, SHOWN, format_row, plain, power, power_axis, power_grid, range_row, span
from amptune.report.page import Markup, join, table, tag
from amptune.report.svg import Axis, figure
from amptune.report.tune_data import number

HISTOGRAM = 90
LABELS = {
    "skipped_steps": "steps skipped for an overflow",
    "underflowed_share": "share of gradient values that become zero",
    "steps_to_settle": "steps until the scale settles",
    "final_scale": "scale at the end",
}


def scaler_report(plan: Plan, scaler: Mapping[str, Any] | None, record: GradientRecord | None) -> Markup:
    """Settings, simulation and ranges; one sentence when no scaler is needed.

    Args:
        plan: whose scaler it is.
        scaler: content of scaler.json; without it only the settings are shown.
        record: the recorded gradients, for their histogram; without it the range of scaler.json is shown.
    """
    if not plan.scaler.enabled:
        return tag("p", "No site computes in FP16, so the training loop needs no loss scaling.")
    amax = [value for value in _recorded(scaler).get("amax_log2") or () if number(value) is not None]
    counts = _exponents(record)
    return join(
        [
            tag("p", "The training loop needs ", tag("code", _call(plan)), "."),
            _simulation(scaler),
            _ranges(counts, amax, plan.scaler.init_scale),
        ]
    )


def _call(plan: Plan) -> str:
    settings = {key: value for key, value in plan.scaler.to_json().items() if key != "enabled"}
    return f"torch.amp.GradScaler({', '.join(f'{key}={_exact(value)}' for key, value in settings.items())})"


def _simulation(scaler: Mapping[str, Any] | None) -> Markup:
    simulation = (scaler or {}).get("simulation") or {}
    tuned, default = simulation.get("tuned"), simulation.get("default")
    steps = _recorded(scaler).get("steps")
    if not tuned or not default or not steps:
        return tag("p", "No gradients were recorded, so it was not simulated.", class_="note")
    rows = [[words, _value(key, tuned.get(key)), _value(key, default.get(key))] for key, words in LABELS.items()]
    caption = f"Simulated on the gradients of {steps} recorded steps"
    return table(caption, ["", "this scaler", "torch's defaults"], rows, class_="plain")


def _ranges(counts: Mapping[int, int], amax: list[float], scale: float) -> Markup:
    """The gradients' powers of two, as they are and scaled, above the range of each format."""
    if not counts and not amax:
        return Markup()
    low = float(min(counts, default=0)) if counts else min(amax)
    high = float(max(counts) + 1) if counts else max(amax)
    shift = math.log2(scale)
    axis = power_axis(min(low, low + shift, -30.0) - 4, max(high, high + shift, 18.0) + 4)
    top = HISTOGRAM if counts else 0
    height = top + (2 + len(SHOWN)) * ROW
    content = power_grid(axis, height) + (_histogram(counts, axis) if counts else [])
    words = "gradients, largest of each step" if not counts else "gradients"
    content += range_row(f"{words}, unscaled", low, high, None, axis, top, "gradient")
    content += range_row(f"{words}, times {plain(scale)}", low + shift, high + shift, None, axis, top + ROW, "scaled")
    for row, number_format in enumerate(SHOWN, 2):
        content += format_row(number_format, axis, top + row * ROW)
    description = f"Gradients from {power(low)} to {power(high)}; FP16 holds {power(-24)} to {power(16)}"
    chart = figure("Gradients against the range of each format", description, height, content, class_="chart ranges")
    note = "Dashed: subnormal numbers, which hold fewer digits. What is left of a range becomes zero, "
    return join([chart, tag("p", note, "what is right of it overflows.", class_="note")])


def _histogram(counts: Mapping[int, int], axis: Axis) -> list[Markup]:
    largest, total = max(counts.values()), sum(counts.values())
    bars = []
    for exponent, count in sorted(counts.items()):
        height = 1 + (HISTOGRAM - 10) * count / largest
        words = f"{power(exponent)} to {power(exponent + 1)}: {count / total:.3%} of the gradient values"
        bar = span(axis, exponent + 0.08, exponent + 0.92, HISTOGRAM - height, height, "gradient")
        bars.append(tag("g", tag("title", words), bar))
    return bars


def _exponents(record: GradientRecord | None) -> Counter[int]:
    counts: Counter[int] = Counter()
    for step in record.steps if record else ():
        counts.update(step.exponents)
    return counts


def _recorded(scaler: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (scaler or {}).get("recorded") or {}


def _value(key: str, value: object) -> str:
    known = number(value)
    if known is None:
        return "–"
    return f"{known:.3%}" if key == "underflowed_share" else plain(known)


def _exact(value: float) -> str:
    return str(int(value)) if abs(value) < 1e16 and value == int(value) else repr(value)

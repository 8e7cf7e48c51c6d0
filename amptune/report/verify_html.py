"""The page of ``amptune verify``: both losses, and the band that two FP32 seeds span."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from amptune.report.page import Markup, page, section, tag
from amptune.report.svg import Axis, Plot

_BINS = 200
"""How many points a curve has at most; each is a mean over its steps."""


def verify_page(data: dict[str, Any], text: str) -> str:
    """The page as text; ``data`` is verify's JSON, ``text`` its summary."""
    summary = [tag("p", line) for line in text.splitlines()]
    notes = [tag("p", note, class_="note") for note in data["notes"]]
    chart = loss_chart(data["losses"])
    title = f"amptune verify: {data['verdict']}"
    return page(title, tag("h1", title), *summary, section("Loss of each step", "loss", chart), *notes)


def loss_chart(losses: dict[str, Sequence[float | None]]) -> Markup:
    """Both curves on the noise band; empty where there are fewer than two steps."""
    original, other = (_binned(losses[name]) for name in ("original", "other_seed"))
    patched = _binned(losses["patched_in_fp32"])
    if len(original) < 2:
        return Markup()
    # The band around the original is as wide as the other seed's distance, smoothed over its neighbours.
    widths = _smoothed([abs(b - a) for (_, a), (_, b) in zip(original, other, strict=True)])
    values = [value for curve in (original, patched) for _, value in curve]
    plot = Plot(Axis.over([step for step, _ in original], "step", "count"), Axis.over(values, "loss"))
    band = [
        _stripe(plot, left, right, value - width, value + width)
        for ((left, value), (right, _)), width in zip(itertools.pairwise(original), widths, strict=False)
    ]
    lines = [*plot.line(original, "original"), *plot.line(patched, "patched")]
    words = "the band is how far an FP32 run with another seed is from the original"
    chart = plot.chart("Loss of the original and the patched model", words, [*band, *lines])
    legend = tag(
        "p",
        "Grey: original in FP32. Coloured: weights of the patched model, in the original's FP32 forward. "
        "The band: FP32 with another seed, from the same weights.",
        class_="note",
    )
    return Markup(chart + legend)


def _stripe(plot: Plot, left: float, right: float, low: float, high: float) -> Markup:
    start, end = plot.x.share(left), plot.x.share(right)
    top, bottom = plot.down(high), plot.down(low)
    return tag("rect", x=f"{100 * start:.2f}%", width=f"{100 * (end - start):.2f}%", y=top, height=bottom - top,
               class_="noise")  # fmt: skip


def _binned(losses: Sequence[float | None]) -> list[tuple[float, float]]:
    known = [(float(step), loss) for step, loss in enumerate(losses, 1) if loss is not None]
    size = max(1, -(-len(known) // _BINS))
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    return [
        (statistics.fmean(step for step, _ in group), statistics.fmean(loss for _, loss in group)) for group in groups
    ]


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _smoothed(values: Sequence[float], reach: int = 5) -> list[float]:
    return [_mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]

"""Number lines of powers of two: what each format can hold, and where values lie on it."""

from __future__ import annotations

import math

from amptune.core.formats import Format
from amptune.report.page import Markup, tag
from amptune.report.svg import Axis

ROW = 34
"""Pixels from one line to the next: words, and the range under them."""
SHOWN = (Format.FP16, Format.BF16, Format.FP8_E5M2, Format.FP8_E4M3, Format.FP32)
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power_axis(low: float, high: float) -> Axis:
    """An axis of powers of two."""
    first, last = math.floor(low), math.ceil(high)
    step = 16 if last - first <= 100 else 32
    ticks = tuple(float(value) for value in range(first, last + 1) if value % step == 0)
    return Axis(first, last, "", ticks, power)


def power_grid(axis: Axis, y: float) -> list[Markup]:
    """Lines down to ``y`` pixels, and the powers under them."""
    parts = [tag("line", x1="0", x2="100%", y1=y, y2=y, class_="axis")]
    for exponent in axis.ticks:
        share, x = axis.share(exponent), axis.percent(exponent)
        anchor = "start" if share < 0.04 else "end" if share > 0.96 else "middle"
        parts.append(tag("line", x1=x, x2=x, y1="0", y2=y, class_="grid"))
        parts.append(tag("text", axis.text(exponent), x=x, y=y + 18, text_anchor=anchor))
    return parts


def span(axis: Axis, low: float, high: float, y: float, height: float, classes: str) -> Markup:
    """A bar from one exponent to another, wide enough to be seen."""
    width = f"{max(100 * (axis.share(high) - axis.share(low)), 0.5):.2f}%"
    return tag("rect", x=axis.percent(low), width=width, y=y, height=height, class_=classes)


def range_row(
    words: str, low: float, high: float, normal: float | None, axis: Axis, y: float, classes: str
) -> list[Markup]:
    """Words on a line, the range under it; below ``normal`` the range is dashed.

    The words are HTML, which cuts what is wider than the window with an ellipsis; text of an SVG would stick out.
    """
    label = tag("div", tag("span", words), class_="label")
    parts = [tag("foreignObject", label, x="0", y=y, width="100%", height=ROW - 15)]
    if normal is not None and normal > low:
        parts.append(span(axis, low, normal, y + 19, 9, "subnormal"))
        low = normal
    return [*parts, span(axis, low, high, y + 19, 9, classes)]


def format_row(number_format: Format, axis: Axis, y: float) -> list[Markup]:
    """What a format can hold, its subnormal numbers dashed."""
    low, normal = math.log2(number_format.smallest_subnormal), math.log2(number_format.smallest_normal)
    high = math.log2(number_format.max)
    words = f"{number_format}: {power(low)} to {plain(number_format.max)}"
    return range_row(words, low, high, normal, axis, y, f"format-{number_format.label.replace('_', '-')}")


def plain(value: float) -> str:
    """A number without an exponent where that is short."""
    is_whole = abs(value) < 1e9 and (abs(value) >= 1000 or value == int(value))
    return f"{value:,.0f}" if is_whole else f"{value:.3g}"


def power(exponent: float) -> str:
    """``2⁻²⁴`` and the like."""
    return "2" + f"{exponent:.0f}".translate(_SUPERSCRIPT)

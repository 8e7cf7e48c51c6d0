"""Charts as inline SVG: across in percent of the width, so that text keeps its size on a phone; down in pixels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from amptune.report.page import Markup, tag

# Around (0, 0), each about as heavy as the others to the eye.
_SHAPES = {
    "square": "M-5-5H5V5H-5Z",
    "diamond": "M0-6.5 6.5 0 0 6.5-6.5 0Z",
    "circle": "M-5.5 0a5.5 5.5 0 1 1 11 0a5.5 5.5 0 1 1-11 0Z",
    "triangle": "M0-6.5 6.2 5H-6.2Z",
    "cross": "M-5-5 5 5M-5 5 5-5",
    "ring": "M-11 0a11 11 0 1 1 22 0a11 11 0 1 1-22 0Z",
    "up": "M-4-10 0-15 4-10",
    "down": "M-4 10 0 15 4 10",
    "left": "M-10-4-15 0-10 4",
    "right": "M10-4 15 0 10 4",
}


_FINEST = 1e-9
NUM_TICKS = 5
"""About how many ticks an axis has: so few that their words fit beside each other on a phone."""
CROWDED = 28
"""Letters of all tick labels beyond which every other one is left out, for the same reason."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """A linear scale from ``low`` to ``high`` with its ticks.

    Attributes:
        low, high: ends of the data range.
        label: what is shown, with its unit.
        ticks: values to mark.
        text: how a tick is written.
    """

    low: float
    high: float
    label: str
    ticks: tuple[float, ...]
    text: Callable[[float], str]

    @classmethod
    def over(cls, values: Iterable[float], label: str, unit: Literal["number", "count", "share"] = "number") -> Axis:
        """An axis that covers ``values`` (at least one) with round ends.

        A ``count`` has no ticks between whole numbers, a ``share`` is written in percent with its sign.
        """
        known = list(values)
        low, high = min(known), max(known)
        if high - low <= max(_FINEST, 1e-9 * max(abs(low), abs(high))):  # ticks between would be lost to rounding
            margin = abs(low) * 0.1 if abs(low) > _FINEST else 1.0
            low, high = low - margin, high + margin
        step = _round_step((high - low) / NUM_TICKS)
        step = max(1.0, step) if unit == "count" else step
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        ticks = tuple(low + i * step for i in range(round((high - low) / step) + 1))
        return cls(low, high, label, ticks, _share_text(step) if unit == "share" else _number_text(step))

    def share(self, value: float) -> float:
        """Where ``value`` lies, 0 at the low end and 1 at the high end; what is beyond is put at the edge."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def percent(self, value: float) -> str:
        """Its place across."""
        return f"{100 * self.share(value):.2f}%"

    def beyond(self, value: float, below: str, above: str) -> str:
        """``below`` or ``above`` when ``value`` is off the scale, else an empty string."""
        return below if value < self.low else above if value > self.high else ""


@dataclasses.dataclass(frozen=True)
class Point:
    """One mark of a scatter chart: ``classes`` colour it, ``shape`` is one of this module's, ``title`` is its words."""

    x: float
    y: float
    shape: str
    classes: str
    title: str
    ringed: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """The area of a chart between its axes, ``height`` pixels high; x and y are in the data's units."""

    x: Axis
    y: Axis
    height: float = 240

    def down(self, value: float) -> float:
        """Pixels from the top."""
        return self.height * (1 - self.y.share(value))

    def grid(self) -> list[Markup]:
        """Lines, tick labels and the names of both axes."""
        parts = [
            piece
            for value in self.y.ticks
            for piece in (
                tag("line", x1="0", x2="100%", y1=self.down(value), y2=self.down(value), class_="grid"),
                tag("text", self.y.text(value), x=-14, y=self.down(value) + 4, text_anchor="end"),
            )
        ]
        crowded = sum(len(self.x.text(value)) for value in self.x.ticks) > CROWDED
        for index, value in enumerate(self.x.ticks):
            place = self.x.percent(value)
            parts.append(tag("line", x1=place, x2=place, y1=self.height, y2=self.height + 5, class_="axis"))
            if not (crowded and index % 2):
                parts.append(tag("text", self.x.text(value), x=place, y=self.height + 19, text_anchor="middle"))
        parts.append(tag("line", x1="0", x2="100%", y1=self.height, y2=self.height, class_="axis"))
        parts.append(tag("text", self.x.label, x="100%", y=self.height + 38, text_anchor="end", class_="name"))
        parts.append(tag("text", self.y.label, x=-58, y=-22, class_="name"))
        return parts

    def mark(self, point: Point) -> Markup:
        """A mark with its words as a tooltip; an arrow says that the true place is beyond the edge."""
        x, y = self.x.percent(point.x), self.down(point.y)
        parts = [tag("title", point.title)]
        if point.ringed:
            parts.append(_use("ring", x, y, "ring"))
        parts.append(_use(point.shape, x, y, f"mark {point.classes}"))
        arrows = (self.y.beyond(point.y, "down", "up"), self.x.beyond(point.x, "left", "right"))
        parts += [_use(arrow, x, y, "beyond") for arrow in arrows if arrow]
        return tag("g", *parts)

    def line(self, points: Sequence[tuple[float, float]], classes: str) -> list[Markup]:
        """Straight segments from point to point."""
        return [
            tag("line", x1=self.x.percent(a), y1=self.down(b), x2=self.x.percent(c), y2=self.down(d), class_=classes)
            for (a, b), (c, d) in itertools.pairwise(points)
        ]

    def steps(self, points: Sequence[tuple[float, float]], classes: str) -> list[Markup]:
        """A staircase: each y holds until the next x."""
        corners = [corner for (a, b), (c, d) in itertools.pairwise(points) for corner in ((a, b), (c, b), (c, d))]
        return self.line(corners, classes)

    def band(self, low: float, high: float, classes: str) -> Markup:
        """A stripe across between two values of y."""
        top, bottom = self.down(high), self.down(low)
        return tag("rect", x="0", width="100%", y=top, height=bottom - top, class_=classes)

    def level(self, value: float, words: str, classes: str) -> list[Markup]:
        """A line across at a value of y, with words above it at the right."""
        y = self.down(value)
        return [
            tag("line", x1="0", x2="100%", y1=y, y2=y, class_=classes),
            tag("text", words, x="100%", y=y - 6, text_anchor="end", class_=f"note {classes}"),
        ]

    def chart(self, title: str, description: str, content: Iterable[str]) -> Markup:
        """The finished chart."""
        return figure(title, description, self.height, [*self.grid(), *content], class_="chart plot")


def figure(title: str, description: str, height: float, content: Iterable[str], *, class_: str = "chart") -> Markup:
    """An SVG with its title and description for those who do not see it. ``height`` is without the margins."""
    words = (tag("title", title), tag("desc", description))
    return tag("svg", *words, *content, class_=class_, role="img", aria_label=f"{title}. {description}",
               style=f"--height:{height:.0f}px")  # fmt: skip


def symbols() -> Markup:
    """The shapes that marks refer to; once in a page."""
    shapes = (tag("path", id=f"shape-{name}", d=path) for name, path in _SHAPES.items())
    return tag("svg", tag("defs", *shapes, *_hatches()), width=0, height=0, class_="symbols", aria_hidden="true")


def key(shape: str, classes: str, words: str) -> Markup:
    """One entry of a legend."""
    mark = tag("svg", _use(shape, "8", 8, f"mark {classes}"), width=16, height=16, aria_hidden="true")
    return tag("li", mark, words)


def legend(*entries: Markup) -> Markup:
    """What the marks mean."""
    return tag("ul", *entries, class_="legend")


def _use(shape: str, x: str, y: float, classes: str) -> Markup:
    return tag("use", href=f"#shape-{shape}", x=x, y=float(y), class_=classes)


def _hatches() -> list[Markup]:
    stripe = tag("path", d="M-2 2 2-2M0 8 8 0M6 10 10 6", class_="stripe")
    return [tag("pattern", stripe, id="hatch", width=8, height=8, patternUnits="userSpaceOnUse")]


def _number_text(step: float) -> Callable[[float], str]:
    decimals = _decimals(step)
    return lambda value: f"{value:,.{decimals}f}"


def _share_text(step: float) -> Callable[[float], str]:
    decimals = _decimals(100 * step)
    return lambda value: "0%" if abs(value) < step / 2 else f"{100 * value:+,.{decimals}f}%"


def _decimals(step: float) -> int:
    """How many decimals tell the multiples of a round step apart: 0.2 needs one, 0.25 two."""
    power = math.floor(math.log10(step) + 1e-9)
    needs_one_more = round(step / 10.0**power, 6) == 2.5
    return max(0, needs_one_more - power)


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not under ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))

"""Charts of an analysis: the roofline with the model's sites on it, and their values on the formats' number lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from amptune.core.formats import Format
from amptune.core.hardware import Gpu
from amptune.report.analyze_data import PageData, PageSite, Spread
from amptune.report.numberline import ROW, SHOWN, format_row, plain, power, power_axis, power_grid, range_row
from amptune.report.page import Markup, join, tag
from amptune.report.svg import Axis, Plot, Point, figure, key, legend

SHAPES = {"gemm": "square", "conv": "diamond", "attention": "circle", "rnn": "triangle"}
"""Mark of each family of ops; what is not a matrix product is a cross."""
CEILINGS = (Format.FP32, Format.TF32, Format.BF16, Format.FP16, Format.FP8_E4M3)
SMALLEST_SHARE = 0.002
"""Of the step: smaller sites are not drawn."""
NEAR = 14
"""Pixels between the middle of a mark and the foot of words that it would lie on."""
MOST_LINES = 24
"""Sites whose values are drawn, those with the largest first."""


@dataclasses.dataclass(frozen=True)
class _Spot:
    """Like sites as one mark."""

    site: PageSite
    count: int
    rate: float

    @property
    def words(self) -> str:
        several = f" and {self.count - 1} like it" if self.count > 1 else ""
        return (
            f"{self.site.id or 'the model'}{several}: {self.site.op} {self.site.shape}, "
            f"{self.rate / 1e12:,.3g} TFLOP/s at {self.site.intensity:,.3g} FLOP a byte"
        )


def roofline(data: PageData) -> Markup:
    """Predicted rate of each site over its arithmetic intensity, under the ceilings of its GPU; empty without one."""
    gpu = data.gpu
    spots = list(_spots(data))
    if gpu is None or not spots or not gpu.bandwidth:
        return Markup()
    top = max(gpu.peaks.values()) * 1e12
    ridge = top / (gpu.bandwidth * 1e9)
    x = _log_axis([ridge / 100, 2 * ridge, *(spot.site.intensity for spot in spots)], "FLOP a byte moved", _count)
    lowest = min(gpu.peaks[Format.FP32] * 1e12, *(spot.rate for spot in spots))
    y = _log_axis([top, max(top / 1e4, lowest / 1.5)], "FLOP/s", _rate)
    plot = Plot(x, y, height=340)
    shown = [number_format for number_format in CEILINGS if _has_own_peak(gpu, number_format)]
    content = [piece for number_format in shown for piece in _ceiling(plot, gpu, number_format)]
    content += [plot.mark(_point(spot)) for spot in sorted(spots, key=lambda spot: -spot.site.ms(data.half))]
    # Above the marks, to be read.
    content += [_ceiling_name(plot, gpu, number_format, spots) for number_format in shown]
    words = f"{len(spots)} kinds of sites under {data.half} on {gpu.name}, of which {_bound(spots, gpu)}"
    families = dict.fromkeys(spot.site.family for spot in spots)
    entries = [key(_shape(family), f"valid kind-{_shape(family)}", family) for family in families]
    note = (
        f"Predicted, {data.half}. The slope is the memory bandwidth, the levels are the dense peaks of the formats. "
        "A mark far under both lines is a site that misaligned dimensions, small tiles or casts hold back."
    )
    return join(
        [legend(*entries), plot.chart(f"Roofline of {gpu.name}", words, content), tag("p", note, class_="note")]
    )


def number_lines(data: PageData) -> Markup:
    """Magnitudes at the sites above what each format holds; empty where nothing is known of any site."""
    known = _like_spreads(site for site in data.sites if site.spread is not None and site.spread.high > 0)
    if not known:
        return Markup()
    shown = sorted(known, key=lambda entry: -_high(entry[0]))[:MOST_LINES]
    highest = max(_exponent(_high(site)) for site, _ in shown)
    axis = power_axis(-30.0, max(20.0, min(highest, 130.0) + 2))
    height = (len(shown) + len(SHOWN)) * ROW
    content = power_grid(axis, height)
    for row, number_format in enumerate(SHOWN):
        content += format_row(number_format, axis, row * ROW)
    for row, (site, count) in enumerate(shown, len(SHOWN)):
        content += _value_row(site, count, axis, row * ROW)
    words = f"{len(shown)} of {len(known)} kinds of sites whose values are bounded, the largest first"
    unknown = sum(site.spread is None for site in data.sites)
    note = (
        f"Bars: magnitudes that a site's values can have. Dashed: not bounded below, zero is possible. "
        f"Nothing is known of {unknown:,} of {len(data.sites):,} sites: their values depend on the inputs and weights."
    )
    chart = figure("Values on the formats' number lines", words, height, content, class_="chart ranges")
    return join([chart, tag("p", note, class_="note")])


def _spots(data: PageData) -> Iterator[_Spot]:
    groups: dict[tuple[str, str, float], list[PageSite]] = {}
    for site in data.sites:
        if site.flops and site.intensity and site.ms(data.half) > 0:
            groups.setdefault((site.op, site.shape, site.intensity), []).append(site)
    step = sum(site.ms(data.half) for site in data.sites)
    for sites in groups.values():
        spent = sum(site.ms(data.half) for site in sites)
        if spent >= SMALLEST_SHARE * step:
            yield _Spot(sites[0], len(sites), sum(site.flops for site in sites) / (spent * 1e-3))


def _point(spot: _Spot) -> Point:
    shape = _shape(spot.site.family)
    classes = "lost" if shape == "cross" else f"valid kind-{shape}"
    return Point(math.log10(spot.site.intensity), math.log10(max(spot.rate, 1.0)), shape, classes, spot.words)


def _shape(family: str) -> str:
    return SHAPES.get(family, "cross")


def _has_own_peak(gpu: Gpu, number_format: Format) -> bool:
    """Whether the GPU computes in the format; FP16 as fast as BF16 is shown with it."""
    peak = gpu.peaks.get(number_format)
    return bool(peak) and not (number_format is Format.FP16 and gpu.peaks.get(Format.BF16) == peak)


def _ceiling(plot: Plot, gpu: Gpu, number_format: Format) -> list[Markup]:
    """The bandwidth's slope up to the format's peak, and the peak from there on."""
    top, slope = math.log10(gpu.peaks[number_format] * 1e12), math.log10(gpu.bandwidth * 1e9)
    classes = f"ceiling format-{number_format.label.replace('_', '-')}"
    start = max(plot.x.low, plot.y.low - slope)
    points = [(start, min(start + slope, top)), (top - slope, top), (plot.x.high, top)]
    return plot.line(points, classes)


def _ceiling_name(plot: Plot, gpu: Gpu, number_format: Format, spots: Sequence[_Spot]) -> Markup:
    """At the right end of its level; where marks are in the way there alone, at the left one."""
    peak = gpu.peaks[number_format]
    label = "bf16, fp16" if number_format is Format.BF16 and gpu.peaks.get(Format.FP16) == peak else str(number_format)
    top = math.log10(peak * 1e12)
    start, y = max(plot.x.low, top - math.log10(gpu.bandwidth * 1e9)), plot.down(top) - 5
    marks = map(_point, spots)
    near = [mark.x for mark in marks if mark.x >= start and abs(plot.down(mark.y) - y) < NEAR]
    middle = (start + plot.x.high) / 2
    at_start = bool(near) and min(near) > middle
    place = {"x": plot.x.percent(start), "text_anchor": "start"} if at_start else {"x": "100%", "text_anchor": "end"}
    return tag("text", f"{label} {peak:,.0f} TFLOP/s", y=y, class_="note above", **place)


def _bound(spots: Sequence[_Spot], gpu: Gpu) -> str:
    memory = sum(spot.site.intensity < max(gpu.peaks.values()) * 1e12 / (gpu.bandwidth * 1e9) for spot in spots)
    return f"{memory} lie left of the ridge, where memory is the limit"


def _log_axis(values: Iterable[float], label: str, text: object) -> Axis:
    """An axis of powers of ten over positive values, in their logarithms."""
    known = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(known)), math.ceil(max(known))
    ticks = tuple(float(value) for value in range(low, high + 1))
    return Axis(low, high, label, ticks, text)  # type: ignore[arg-type]


def _count(exponent: float) -> str:
    return f"{10**exponent:,.0f}" if exponent >= 0 else f"{10**exponent:g}"


def _rate(exponent: float) -> str:
    value = 10.0**exponent
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if value >= factor:
            return f"{value / factor:,.0f} {unit}"
    return f"{value / 1e6:g} M"


def _like_spreads(sites: Iterable[PageSite]) -> list[tuple[PageSite, int]]:
    groups: dict[object, list[PageSite]] = {}
    for site in sites:
        groups.setdefault((site.op, site.place or site.id, site.spread), []).append(site)
    return [(members[0], len(members)) for members in groups.values()]


def _high(site: PageSite) -> float:
    return site.spread.high if site.spread else 0.0


def _exponent(value: float) -> float:
    return math.log2(value) if 0 < value < math.inf else 1024.0


def _value_row(site: PageSite, count: int, axis: Axis, y: float) -> list[Markup]:
    spread = site.spread or Spread(0.0, 0.0)
    several = f" ({count} sites)" if count > 1 else ""
    until = "not bounded" if math.isinf(spread.high) else f"up to {plain(spread.high)}"
    words = f"{site.id or 'the model'}{several}: {site.op}, {until}, {spread.how}"
    high = min(_exponent(spread.high), axis.high)
    low = _exponent(spread.low) if spread.low > 0 else axis.low
    normal = None if spread.low > 0 else high - 1
    return [tag("g", tag("title", f"{words}; {power(low)} to {power(high)}"),
                *range_row(words, min(low, high), high, normal, axis, y, "gradient"))]  # fmt: skip

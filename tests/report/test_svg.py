"""Axes are round and cover the data, and marks stand where the data says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptune.report.svg import Axis, Plot, Point
from tests.report.tune_sample import Page


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_an_axis_covers_its_values_with_few_even_round_ticks(values):
    axis = Axis.over(values, "x")
    slack = 1e-6 * (axis.high - axis.low)
    assert axis.low - slack <= min(values) <= max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks) <= 8
    steps = [b - a for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)
    leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
    assert min(abs(leading - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-2


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((84.0, 118.9), ["80", "90", "100", "110", "120"]),
        ((0.0, 0.01), ["0.000", "0.002", "0.004", "0.006", "0.008", "0.010"]),
        ((0.0, 12.5), ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]),
        ((0.0, 0.0), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ((9000.0, 12000.0), ["9,000", "10,000", "11,000", "12,000"]),
    ],
)
def test_ticks_are_written_with_the_decimals_they_need(values, labels):
    axis = Axis.over(values, "x")
    assert [axis.text(tick) for tick in axis.ticks] == labels


@pytest.mark.parametrize(
    ("values", "unit", "labels"),
    [
        ((-0.002, 0.0065), "share", ["-0.2%", "0%", "+0.2%", "+0.4%", "+0.6%", "+0.8%"]),
        ((0.0, 0.0000125), "share", ["0%", "+0.00025%", "+0.00050%", "+0.00075%", "+0.00100%", "+0.00125%"]),
        ((0.0, 3.0), "share", ["0%", "+100%", "+200%", "+300%"]),
        ((0, 1), "count", ["0", "1"]),
        ((0, 49), "count", ["0", "10", "20", "30", "40", "50"]),
    ],
)
def test_shares_and_counts_have_ticks_of_their_own(values, unit, labels):
    axis = Axis.over(values, "x", unit)
    assert [axis.text(tick) for tick in axis.ticks] == labels


@pytest.mark.parametrize(("high", "labels"), [(50, 6), (50_000, 3)])
def test_long_labels_are_left_out_in_turns_so_that_they_fit_a_phone(high, labels):
    plot = Plot(Axis.over([0, high], "x"), Axis.over([0, 1], "y"))
    words = Page(f"<main>{''.join(plot.grid())}</main>").all("text")
    assert sum(e.attributes["text-anchor"] == "middle" for e in words if "text-anchor" in e.attributes) == labels


def test_a_mark_stands_at_its_value_and_points_to_what_is_beyond():
    plot = Plot(Axis.over([0, 10], "x"), Axis.over([0, 10], "y"), height=200)
    inside = Page(f"<main>{plot.mark(Point(2.5, 7.5, 'circle', 'valid', 'words'))}</main>").all("use")
    assert [(m.attributes["x"], m.attributes["y"]) for m in inside] == [("25.00%", "50")]
    outside = Page(f"<main>{plot.mark(Point(12, -3, 'circle', 'valid', 'words'))}</main>").all("use")
    assert {m.attributes["href"] for m in outside} == {"#shape-circle", "#shape-right", "#shape-down"}
    assert {(m.attributes["x"], m.attributes["y"]) for m in outside} == {("100.00%", "200")}

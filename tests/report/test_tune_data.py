"""Results are read with their gaps, and numbers are written for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptune.report.tune_data import TuneData, fastest, ms, pareto, percent
from tests.report.tune_sample import won

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


def beats(one, other):
    return one != other and one[0] <= other[0] and one[1] <= other[1]


@given(POINTS)
def test_a_pareto_front_is_all_that_nothing_beats(points):
    assert pareto(points) == sorted(p for p in set(points) if not any(beats(q, p) for q in points))


def test_the_fastest_run_is_a_valid_one():
    data = TuneData.read(won())
    assert fastest(data.stock).name == "autocast-bf16", "autocast-fp16 is faster and not valid"
    assert fastest(()) is None


def test_the_threshold_is_the_larger_of_tolerance_and_noise():
    assert TuneData.read(won(tolerance=0.005, noise=0.0003)).threshold == 0.005
    assert TuneData.read(won(tolerance=0.005, noise=0.02)).threshold == 0.02


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ms(0.0123), "0.012 ms"),
        (ms(12.345), "12.35 ms"),
        (ms(312.44), "312.4 ms"),
        (ms(12345.6), "12,346 ms"),
        (ms(float("inf")), "–"),
        (ms(None), "–"),
        (percent(-0.00012), "-0.012%"),
        (percent(0.005, signed=False), "0.500%"),
        (percent(None), "–"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected

import pytest

from amptune.export.view import scale_literal


@pytest.mark.parametrize("scale", [2.0**13, 2.0**-3, 1.0, 1000.0])
def test_a_scale_is_written_as_what_it_is(scale: float) -> None:
    assert eval(scale_literal(scale)) == scale


def test_a_power_of_two_reads_as_one() -> None:
    assert scale_literal(8192.0) == "2.0**13"

"""Files of first_reading/ give what was read of them."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.first_reading import EXPECTED, FILES, differences, read

QUICK = ("boxes", "cell_counts", "click_through")
NAMES = sorted(json.loads(EXPECTED.read_text(encoding="utf-8")))


def test_each_file_has_its_expectations() -> None:
    assert [file.stem for file in sorted(FILES.glob("*.py"))] == NAMES


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=() if each in QUICK else pytest.mark.full) for each in NAMES]
)
def test_a_file_gives_what_was_read_of_it(name: str) -> None:
    reading = read(FILES / f"{name}.py")
    assert differences(name, reading) == []
    if name in QUICK:
        assert reading.named == list(reading.planted)

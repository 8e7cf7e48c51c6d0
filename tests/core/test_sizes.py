"""Bytes as a person reads them."""

from __future__ import annotations

import pytest

from amptune.core.sizes import size_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(22.1 * 2**30, "22.10 GiB"), (2**30 - 1, "1024.00 MiB"), (1536, "1.50 KiB"), (0, "0 B"), (None, "–")],
)
def test_bytes_are_in_the_largest_unit_that_they_reach(value: float | None, text: str) -> None:
    assert size_text(value) == text


def test_digits() -> None:
    assert size_text(3 * 2**30, digits=1) == "3.0 GiB"

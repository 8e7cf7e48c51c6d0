"""Mistyped names."""

from __future__ import annotations

import pytest

from amptune.core.nearest import nearest


@pytest.mark.parametrize(
    ("text", "known", "found"),
    [
        ("amp1o9", ("AMP209", "AMP109", "AMP119"), "AMP109"),
        ("selct", ("ignore", "select", "exclude"), "select"),
        ("zzz", ("ignore", "select"), None),
        ("x", (), None),
    ],
)
def test_nearest(text: str, known: tuple[str, ...], found: str | None) -> None:
    assert nearest(text, known) == found

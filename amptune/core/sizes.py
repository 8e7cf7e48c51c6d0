"""Bytes as a person reads them."""

from __future__ import annotations

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size_text(value: float | None, *, digits: int = 2) -> str:
    """Bytes in the largest unit that they reach one of, such as ``1.50 GiB``."""
    if value is None:
        return "–"
    for unit, factor in UNITS:
        if value >= factor:
            return f"{value / factor:.{digits}f} {unit}"
    return f"{value:.0f} B"

"""How much memory there is, and how to say it."""

from __future__ import annotations

import os

UNKNOWN_MACHINE = 4 << 30


def available_bytes() -> int:
    """Memory that is free now, as far as the system tells; 4 GiB where it does not."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MACHINE


def readable_bytes(count: int) -> str:
    """``12.3 GB``."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"

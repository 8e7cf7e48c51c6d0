"""Which recipes a prediction cannot tell apart: those whose steps are nearer to each other than predictions err."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KNOWN_ERROR = 0.07
"""Error of a predicted ratio of two steps of one model that four of five pairs of recipes keep to, where the GPU bounds
both: half of the models of tests/benchmarks/reports/estimate_h200.json, every second by name; 0.08 on the others."""
WAITING_ERROR = 0.25
"""The same where one of the two waits for the processor, which takes up to a third longer for one format than for
another within one run; 0.23 on the others."""
FIXED = "+fixed"


def error_between(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """The error that the predicted ratio of two steps is known to have."""
    return WAITING_ERROR if "launch" in (first.get("bound"), second.get("bound")) else KNOWN_ERROR


def nearly_fastest(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The recipe of one GPU that is predicted to be the fastest, and behind it all that may well be as fast.

    Args:
        table: recipe -> its entry in the ``estimate`` of analyze's JSON. Recipes that do not run or do not fit, and
            models that would be fixed first, are left out.
    """
    able = {
        name: entry for name, entry in table.items()
        if "reason" not in entry and entry.get("fits", True) and not name.endswith(FIXED)
    }  # fmt: skip
    order = sorted(able, key=lambda name: float(able[name]["step_ms"]))
    if not order:
        return []
    first = able[order[0]]
    return [
        name for name in order
        if able[name]["step_ms"] <= first["step_ms"] * (1 + error_between(first, able[name]))
    ]  # fmt: skip

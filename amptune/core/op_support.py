"""Which ops have no kernel for a 16-bit format, from the table that tests/benchmarks/op_support.py generates."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

Direction = Literal["forward", "backward"]


def lacks_kernel(op: str, dtype: str, device: str, direction: Direction = "forward") -> bool:
    """Whether ``op`` raises on tensors of ``dtype`` (torch's name) on ``device`` (cuda or cpu)."""
    gaps: Mapping[str, Any] = _table()["gaps"]
    return dtype in gaps.get(op, {}).get(device, {}).get(direction, ())


def table_version() -> str:
    """The torch version that the table was generated with."""
    return str(_table()["torch"])


@functools.cache
def _table() -> Mapping[str, Any]:
    text = importlib.resources.files("amptune").joinpath("data", "op_support.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data

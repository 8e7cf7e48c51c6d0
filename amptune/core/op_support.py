"""Which ops run in which format on which device, from the table that tests/benchmarks/op_support.py generates."""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any, Literal

Direction = Literal["forward", "backward"]

_REFUSED = frozenset("-!n")
"""Symbols of cells that raise, end the process, or are claimed not to run (the table's ``symbols`` has them all)."""


def lacks_kernel(op: str, dtype: str, device: str, direction: Direction = "forward") -> bool:
    """Whether ``op`` raises on tensors of ``dtype`` (torch's name) on ``device`` (cuda or cpu)."""
    return _symbol(op, dtype, device, direction) in _REFUSED


def ops_without_kernel(dtype: str, device: str, direction: Direction = "forward") -> tuple[str, ...]:
    """Names of all ops that raise in ``dtype`` and run in FP32, in alphabetical order."""
    return tuple(
        op
        for op in _table()["ops"]
        if lacks_kernel(op, dtype, device, direction) and not lacks_kernel(op, "float32", device, direction)
    )


def table_version(device: str = "cuda") -> str:
    """The torch version that the device's part of the table was generated with."""
    return str(_table()["devices"][device]["torch"])


def tried_with(device: str, installed: str) -> str:
    """The torch version behind the device's part, for a message; and the installed one where that is another."""
    made, here = table_version(device).split("+")[0], installed.split("+")[0]
    return f"torch {made}" if here in ("", made) else f"torch {made}; not tried with {here}, which is installed"


def tried_on(device: str) -> str:
    """The product that the device's part was tried on; empty where it only repeats what torch's tests claim."""
    return str(_table()["devices"][device]["name"])


def _symbol(op: str, dtype: str, device: str, direction: Direction) -> str:
    cells = str(_table()["ops"].get(op, {}).get(device, {}).get(direction, ""))
    formats = _table()["formats"]
    return cells[formats.index(dtype)] if cells and dtype in formats else "."


@functools.cache
def _table() -> Mapping[str, Any]:
    text = importlib.resources.files("amptune").joinpath("data", "op_support.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data

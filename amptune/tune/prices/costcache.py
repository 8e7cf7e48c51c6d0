"""Measured site costs on disk, by device and torch: a second search of a sibling model measures almost nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from amptune.core.files import cache_folder, write_atomic
from amptune.core.tables import SiteCost
from amptune.errors import InputError
from amptune.tune.running.device import Device

VERSION = 2
"""Changes with the way sites are measured, so that old numbers are not mixed with new ones."""
_FACTS = ("gpu", "capability", "driver", "torch", "cuda")


class CostCache:
    """Costs by signature and variant, in one file for each GPU, driver and torch.

    A CPU's costs are not kept: what else runs on the machine is in them. A damaged file counts as empty, and a folder
    that cannot be written costs time only.
    """

    def __init__(self, device: Device, folder: Path | None = None) -> None:
        self._path: Path | None = None
        if device.is_cuda:
            facts = device.describe()
            name = _digest([VERSION, *(facts.get(key) for key in _FACTS)])
            self._path = (folder or cache_folder()) / f"costs-{name}.json"
        self._entries: dict[str, Any] = self._load()
        self._num_loaded = len(self._entries)

    def get(self, *key: object) -> SiteCost | None:
        """The cost that was kept under ``key``."""
        entry = self._entries.get(_digest(key))
        try:
            return None if entry is None else SiteCost.from_json(entry)
        except TypeError:
            return None

    def add(self, cost: SiteCost, *key: object) -> None:
        """Keep a cost under ``key``."""
        self._entries[_digest(key)] = cost.to_json()

    def save(self) -> None:
        """Write what was added."""
        if self._path is None or len(self._entries) == self._num_loaded:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(self._entries))
        except (OSError, InputError):
            return  # a read-only home: the next search measures again

    def _load(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_bytes()) if self._path else {}
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def _digest(key: object) -> str:
    return hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()

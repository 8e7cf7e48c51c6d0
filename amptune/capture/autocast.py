"""The model's own autocast regions, as they are written: also one for a device that this machine does not have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.amp.autocast_mode import autocast


class AutocastRegions:
    """Which ``torch.autocast`` regions are open.

    On a machine without a GPU torch switches ``autocast("cuda")`` off when it is made, so the arguments are read
    rather than the state.
    """

    def __init__(self) -> None:
        self._open: list[str | bool] = []
        self._asked: dict[int, str | bool] = {}

    @property
    def current(self) -> str | bool | None:
        """Dtype of the innermost region; False where it switches autocast off; None outside of regions."""
        return self._open[-1] if self._open else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Follow the regions that open inside."""
        region_class: Any = autocast
        kept = region_class.__init__, region_class.__enter__, region_class.__exit__
        regions = self

        def init(
            region: autocast, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
        ) -> None:
            kept[0](region, device_type, dtype, enabled, cache_enabled)
            chosen = dtype or torch.get_autocast_dtype(device_type)
            regions._asked[id(region)] = str(chosen).removeprefix("torch.") if enabled else False

        def enter(region: autocast) -> Any:
            regions._open.append(regions._asked.get(id(region), False))
            return kept[1](region)

        def leave(region: autocast, *error: Any) -> Any:
            regions._open.pop()
            return kept[2](region, *error)

        region_class.__init__, region_class.__enter__, region_class.__exit__ = init, enter, leave
        try:
            yield
        finally:
            region_class.__init__, region_class.__enter__, region_class.__exit__ = kept

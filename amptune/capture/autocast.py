"""The model's own autocast regions, as they are written: also one for a device that this machine does not have."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.amp.autocast_mode import autocast


@contextlib.contextmanager
def arguments_kept() -> Iterator[None]:
    """Regions made inside know what they were asked for: the dtype, or False for one that switches autocast off.

    On a machine without a GPU torch switches ``autocast("cuda")`` off when it is made, so the arguments are kept
    rather than the state. A decorated forward's region is made when its file is imported, long before it opens.
    """
    region_class: Any = autocast
    make = region_class.__init__

    def init(region: Any, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        with warnings.catch_warnings():
            # What torch switches off here is judged as it is written.
            warnings.filterwarnings("ignore", message=".*Disabling autocast")
            make(region, device_type, dtype, enabled, cache_enabled)
        chosen = dtype or torch.get_autocast_dtype(device_type)
        region._amptune_asked = str(chosen).removeprefix("torch.") if enabled else False

    region_class.__init__ = init
    try:
        yield
    finally:
        region_class.__init__ = make


class AutocastRegions:
    """Which ``torch.autocast`` regions are open, by what each was asked for (see :func:`arguments_kept`)."""

    def __init__(self) -> None:
        self._open: list[str | bool] = []

    @property
    def current(self) -> str | bool | None:
        """Dtype of the innermost region; False where it switches autocast off; None outside of regions."""
        return self._open[-1] if self._open else None

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Follow the regions that open inside."""
        region_class: Any = autocast
        kept = region_class.__enter__, region_class.__exit__
        regions = self

        def enter(region: Any) -> Any:
            regions._open.append(getattr(region, "_amptune_asked", False))
            return kept[0](region)

        def leave(region: autocast, *error: Any) -> Any:
            regions._open.pop()
            return kept[1](region, *error)

        region_class.__enter__, region_class.__exit__ = enter, leave
        try:
            with arguments_kept():
                yield
        finally:
            region_class.__enter__, region_class.__exit__ = kept

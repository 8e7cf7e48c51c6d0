"""Limits that an allocation keeps."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Caps:
    """Upper limits on an assignment: bytes and error, each as ``Problem`` sums them."""

    bytes: float = math.inf
    error: float = math.inf

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return math.isfinite(self.bytes) or math.isfinite(self.error)


NO_CAPS = Caps()

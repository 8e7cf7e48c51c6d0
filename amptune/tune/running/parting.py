"""How far two FP32 runs get from each other: where that is clearly nothing, half of the second one will do."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Parting:
    """Compares the losses of a run, as they come, with those of an earlier one.

    ``foreseen`` is how far the runs may be apart in the end, relative to ``scale``: known after half of the steps, and
    infinite before. It is what the second quarter shows, times what it has grown since the first for each of the
    quarters to come. ``is_clear`` says that this is less than ``enough``.
    """

    def __init__(self, losses: Sequence[float], scale: float, enough: float) -> None:
        self._losses = losses
        self._scale = scale
        self._enough = enough
        self._gaps: list[float] = []
        self.foreseen = math.inf

    @property
    def is_clear(self) -> bool:
        """Whether the rest of the run would tell nothing more."""
        return self.foreseen < self._enough

    def add(self, loss: float) -> None:
        """The loss of the next step."""
        half = len(self._losses) // 2
        self._gaps.append(abs(loss - self._losses[len(self._gaps)]))
        if len(self._gaps) != half or half < 4 or not self._scale > 0 or not all(map(math.isfinite, self._gaps)):
            return
        early, late = max(self._gaps[: half // 2]), max(self._gaps[half // 2 :])
        if not late:
            self.foreseen = 0.0
        elif early:
            self.foreseen = late * max(1.0, late / early) ** 2 / self._scale

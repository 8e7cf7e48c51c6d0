"""A host whose steps take longer at some moments: a clock of its own, so that every run is the same."""

from __future__ import annotations

import dataclasses
import math
import random

from amptune.tune.running.timing import StepTime

SLOW = 1.33
"""A step that waits for Python took 27 or 36 ms (ViT-B/16 on an H200)."""


@dataclasses.dataclass
class Host:
    """Fast and slow moments that last ``dwell`` seconds on average, and half a percent of other noise.

    Attributes:
        calm: no slow moments.
        slow: how many times longer a step takes in slow ones.
        noise: of whole blocks of steps, as a share.
        drift: of the speed within a second, as a share.
        now: seconds.
    """

    seed: int
    dwell: float = 2.0
    calm: bool = False
    slow: float = SLOW
    noise: float = 0.0
    drift: float = 0.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._level = 1.0
        self._is_slow = self._random.random() < 0.5
        self._until = self._random.expovariate(1 / self.dwell)

    def step(self, host_ms: float, gpu_ms: float = 0.0) -> float:
        """Milliseconds of one step that takes so long to queue in a fast moment, and so long on the GPU."""
        self.wait(0.0)
        slow = self.slow if self._is_slow and not self.calm else 1.0
        found = max(gpu_ms, host_ms * slow * self._level) * (1 + 0.005 * self._random.gauss(0, 1))
        self.wait(found / 1e3)
        return found

    def block(self, host_ms: float, gpu_ms: float = 0.0, count: int = 8) -> StepTime:
        """Steps after a change of the candidate, which takes a moment."""
        self.wait(0.25)
        off = math.exp(self.noise * self._random.gauss(0, 1)) if self.noise else 1.0
        return StepTime.of([self.step(host_ms, gpu_ms) * off for _ in range(count)])

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        if self.drift:
            self._level *= math.exp(self.drift * math.sqrt(seconds) * self._random.gauss(0, 1))
        while self.now > self._until:
            self._is_slow = not self._is_slow
            self._until += self._random.expovariate(1 / self.dwell)

"""Settings of one search, as the command line gives them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from amptune.capture.target import TargetSpec


@dataclasses.dataclass(frozen=True)
class TuneOptions:
    """What to search, for how long, and what counts as training as well.

    Attributes:
        target: the model.
        out: folder of the results.
        budget: trials: stock recipes, front and search together; the final repeats come on top.
        timeout: seconds for the trials and the final repeats, ``None`` for no limit; see ``timelimit``.
        trial_timeout: seconds after which a trial counts as hung.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        seed: of the weights, the order of the batches and the sampler.
        tolerance: largest loss gap to the FP32 reference, relative, that is still valid.
        steps: training steps (K) that a trial is judged on.
        compile_with: backend of torch.compile for compile mode; ``None`` measures in eager mode.
        objective: what the best plan has least of: ``time`` of a step, or peak ``memory``.
        max_memory: bytes that a valid candidate may take at its peak; ``None`` for no limit.
        params: ``bf16`` to measure the recipes with parameters in BF16 as well; ``None`` leaves them out.
        existing: what to do with an ``out`` that holds a study: refuse it, continue it, or start anew.
    """

    target: TargetSpec
    out: Path
    budget: int = 50
    timeout: float | None = None
    trial_timeout: float = 600.0
    device: str = "cpu"
    seed: int = 0
    tolerance: float = 0.005
    steps: int = 20
    compile_with: str | None = None
    objective: Literal["time", "memory"] = "time"
    max_memory: int | None = None
    params: Literal["bf16"] | None = None
    existing: Literal["refuse", "resume", "overwrite"] = "refuse"

    @property
    def mode(self) -> str:
        """``eager`` or ``compile``: how the model runs, and so what its measurements are valid for."""
        return "compile" if self.compile_with else "eager"

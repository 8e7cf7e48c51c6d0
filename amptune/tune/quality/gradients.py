"""Records the gradients that FP16 would have to hold, for the choice of the loss scale.

They are taken from an FP32 run: there nothing has overflowed or underflowed yet, so the record shows true magnitudes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from amptune.apply import held_values
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.core.scaler import GradientRecord, GradientStep
from amptune.tune.running.batches import Batches
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.state import dense
from amptune.tune.running.training import Workbench, seed_everything, training


def record_gradients(bench: Workbench, plan: Plan, batches: Batches, seed: int) -> GradientRecord:
    """Magnitudes of grad_output and weight gradients of the plan's FP16 sites over the training steps, unscaled."""
    paths = [name for name, site in plan.sites.items() if site.format is Format.FP16 and site.how != "source"]
    held = held_values(bench.model)
    tensors = [held[path] for path in paths if path in held]
    # Of what a forward computes itself, the module that does.
    modules = [bench.model.get_submodule(path.partition("#")[0]) for path in paths if path not in held]
    steps = []
    with training(bench, Candidate("fp32")) as run:
        recorder = _Recorder()
        handles = [module.register_forward_hook(recorder.watch_output) for module in modules]
        try:
            seed_everything(seed)
            for batch in batches.train:
                recorder.clear()
                run.step(batch)
                recorder.add_gradients([*tensors, *(p for module in modules for p in module.parameters(recurse=False))])
                steps.append(recorder.step())
        finally:
            for handle in handles:
                handle.remove()
    return GradientRecord(tuple(steps))


def exponent_histogram(tensor: torch.Tensor) -> tuple[float, Counter[int]]:
    """log2 of the largest magnitude, and floor(log2|x|) -> count over the finite elements that are not zero."""
    values = dense(tensor.detach()).float().abs().flatten()
    if not bool(torch.isfinite(values).all()):
        return math.inf, Counter()
    values = values[values > 0]
    if not values.numel():
        return -math.inf, Counter()
    exponents = torch.frexp(values).exponent.to(torch.int64) - 1
    lowest = int(exponents.min())
    counts = torch.bincount(exponents - lowest).tolist()
    return math.log2(values.max().item()), Counter({lowest + i: n for i, n in enumerate(counts) if n})


class _Recorder:
    """Collects the histogram of one step."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._amax = -math.inf
        self._counts: Counter[int] = Counter()

    def watch_output(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        """Forward hook: record the gradient of each output when backward reaches it."""
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(self._hook())

    def add_gradients(self, weights: Sequence[torch.Tensor]) -> None:
        """Record the gradients of weights, where they have any."""
        for weight in weights:
            if weight.grad is not None:
                self._add(weight.grad)

    def step(self) -> GradientStep:
        """What was collected since ``clear``."""
        return GradientStep(self._amax, dict(self._counts))

    def _hook(self) -> Callable[[torch.Tensor], None]:
        return self._add

    def _add(self, tensor: torch.Tensor) -> None:
        amax, counts = exponent_histogram(tensor)
        self._amax = max(self._amax, amax)
        self._counts += counts

"""Training whose every step sees other weights than the ones that it moves: each off at random by a rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from amptune.tune.running.training import Workbench


@contextlib.contextmanager
def shaken(bench: Workbench, relative: float, seed: int) -> Iterator[None]:
    """Runs of ``bench`` have normal noise of a relative size on the weights, anew for the forward and backward of each
    step; the optimizer moves the weights without it, as it does master weights."""
    generator = torch.Generator(bench.device.torch).manual_seed(seed)

    @contextlib.contextmanager
    def shake() -> Iterator[None]:
        named = bench.model.named_parameters()
        weights = {name: p for name, p in named if p.requires_grad and p.is_floating_point()}
        kept = bench.keep("shaken", {name: weight.detach() for name, weight in weights.items()})
        try:
            for weight in weights.values():
                noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
                weight.detach().mul_(noise.mul_(relative).add_(1))
            yield
        finally:
            for name, weight in weights.items():
                weight.detach().copy_(kept[name])  # of what it has now: a forward may give it other ``data``
            bench.kept.pop("shaken")

    bench.shake = shake
    try:
        yield
    finally:
        bench.shake = contextlib.nullcontext

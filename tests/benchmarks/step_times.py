"""Times training steps of the benchmark models on the GPU at hand: what estimate_check.py compares predictions with."""

# amptune: ignore-file[AMP404] goes with set_float32_matmul_precision, and old and new settings do not mix
from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree

from amptune.capture import TargetSpec, load_target
from amptune.core.recipes import RECIPES, Recipe

DEVICE = "cuda"
MODELS = Path(__file__).parent / "models"
WARM_UPS = 3
FEWEST, MOST = 5, 25
SECONDS = 0.8
"""What the timed steps of one recipe may take, above the fewest."""
PROFILED = ("fp32", "tf32", "autocast-bf16")
KERNELS = 40
"""Kernels of a profiled step that are kept, by time."""
MEASURED = ("fp32", "tf32", "autocast-bf16", "autocast-fp16")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the benchmark.

    Attributes:
        model: file under tests/benchmarks/models.
        seen: whether the structure of the estimate was ever adjusted while looking at this model's measured steps; the
            others are the test.
        fixed: constructor arguments that repair its dimensions.
        channels_last: whether the repaired model has its convolutions in channels_last.
        arguments: constructor arguments.
        eager: whether its eager steps are measured; one is known from compiled runs alone.
    """

    model: str
    seen: bool = False
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    channels_last: bool = False
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    eager: bool = True

    @property
    def spec(self) -> TargetSpec:
        """The model as the user has it."""
        return TargetSpec(str(MODELS / f"{self.model}.py"), dict(self.arguments))


ENTRIES = (
    Entry("nanogpt", seen=True, fixed={"vocab": "50304"}),
    Entry("bert", seen=True, fixed={"vocab": "30528"}),
    Entry("resnet50", seen=True, channels_last=True),
    Entry("llama", seen=True),
    Entry("vit"),
    Entry("gpt2", fixed={"vocab": "50304"}),
    Entry("unet", channels_last=True),
    Entry("lstm"),
    Entry("convnext", channels_last=True),
    Entry("t5"),
    Entry("llama8b", seen=True, eager=False),
)


def measure(entry: Entry, *, profile: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """One row for each recipe of the model, and for BF16 autocast of the repaired one."""
    yield from _rows(entry, entry.spec, False, MEASURED, profile)
    if entry.fixed or entry.channels_last:
        spec = dataclasses.replace(entry.spec, arguments={**entry.arguments, **entry.fixed})
        yield from _rows(entry, spec, entry.channels_last, ("autocast-bf16",), profile, suffix="+fixed")


def _rows(
    entry: Entry, spec: TargetSpec, channels_last: bool, recipes: tuple[str, ...], profile: Callable[[], bool],
    suffix: str = "",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    target = load_target(spec)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model, batch = target.make_model(), target.make_batch()
    model, batch = (
        model.to(DEVICE).train(),
        _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), batch),
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch = _pytree.tree_map_only(torch.Tensor, _in_channels_last, batch)
    for name in recipes:
        yield {"model": entry.model, "recipe": name + suffix, "mode": "eager"} | _one(
            lambda recipe: _loss(target, model, batch, recipe), model, RECIPES[name], profile
        )


def _in_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _loss(target: Any, model: torch.nn.Module, batch: Any, recipe: Recipe) -> torch.Tensor:
    half = getattr(torch, recipe.autocast.torch_name) if recipe.autocast else torch.bfloat16
    with torch.autocast(DEVICE, dtype=half, enabled=recipe.autocast is not None):
        loss: torch.Tensor = target.loss(target.call(model, batch), batch)
    return loss


def _one(
    loss: Callable[[Recipe], torch.Tensor], model: torch.nn.Module, recipe: Recipe, profile: Callable[[], bool]
) -> dict[str, Any]:
    """Median step, peak memory and the kernels of one step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    scaler = torch.amp.GradScaler(DEVICE, enabled=recipe.name == "autocast-fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss(recipe)).backward()
        scaler.step(optimizer)
        scaler.update()

    with tf32(recipe.tf32):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UPS):
            step()
        times = _timed(step)
        memory = torch.cuda.max_memory_allocated()
        row = {
            "step_ms": {
                "median": statistics.median(times),
                "low": min(times),
                "high": max(times),
                "repeats": len(times),
            },
            "memory_bytes": memory,
        }
        if recipe.name in PROFILED and profile():
            row["kernels"] = _kernels(step)
    optimizer.zero_grad(set_to_none=True)
    return row


@contextlib.contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Both TF32 flags on or off."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _timed(step: Callable[[], None]) -> list[float]:
    """Milliseconds of each step, queued without waiting in between, as a training loop queues them."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    count = max(FEWEST, min(MOST, round(SECONDS / (time.perf_counter() - start))))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    events[-1].synchronize()
    return [float(before.elapsed_time(after)) for before, after in itertools.pairwise(events)]


def _kernels(step: Callable[[], None]) -> dict[str, Any]:
    """What ran on the GPU in one step: total milliseconds, number of kernels, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    found = sorted(profiler.key_averages(), key=lambda event: -event.device_time_total)
    found = [event for event in found if event.device_time_total]
    return {
        "gpu_ms": sum(event.device_time_total for event in found) / 1e3,
        "count": sum(event.count for event in found),
        "longest": [[event.key[:110], event.count, round(event.device_time_total, 1)] for event in found[:KERNELS]],
    }

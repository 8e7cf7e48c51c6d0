"""Times training steps of the benchmark models on the GPU at hand: what estimate_check.py compares predictions with."""

# amptune: ignore-file[AMP404] goes with set_float32_matmul_precision, and old and new settings do not mix
from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree

from amptune.capture import TargetSpec, load_target
from amptune.core.recipes import RECIPES, Recipe
from tests.benchmarks import device_times

MODELS = Path(__file__).parent / "models"
WARM_UPS = 3
FEWEST, MOST = 5, 25
SECONDS = 0.8
"""What the timed steps of one recipe may take, above the fewest."""
PROFILED = ("fp32", "tf32", "autocast-bf16")
TAKEN_APART = ("fp32", "tf32", "autocast-bf16")
"""Recipes whose step is profiled op by op."""
FEW = 2
"""Samples of a step that is bound by launching kernels, so that its time is the processor's."""
MEASURED = ("fp32", "tf32", "autocast-bf16", "autocast-fp16")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the benchmark.

    Attributes:
        model: file under tests/benchmarks/models.
        seen: whether the structure of the estimate was ever adjusted while looking at this model's measured steps.
        fixed: constructor arguments that repair its dimensions.
        channels_last: whether the repaired model has its convolutions in channels_last.
        arguments: constructor arguments.
        eager: whether its eager steps are measured; one is known from compiled runs alone.
        blind: whether its predictions were written down before it was measured.
        unseen: set of models whose predictions are committed before their steps are measured, 0 for none.
        strided_bias: whether its measured kernels are those of a learned attention bias that is strided in memory.
    """

    model: str
    seen: bool = False
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    channels_last: bool = False
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    eager: bool = True
    blind: bool = False
    unseen: int = 0
    strided_bias: bool = False

    @property
    def spec(self) -> TargetSpec:
        """The model as the user has it."""
        return TargetSpec(str(MODELS / f"{self.model}.py"), dict(self.arguments))


ENTRIES = (
    Entry("nanogpt", seen=True, fixed={"vocab": "50304"}),
    Entry("bert", seen=True, fixed={"vocab": "30528"}),
    Entry("resnet50", seen=True, channels_last=True),
    Entry("llama", seen=True),
    Entry("vit", seen=True),
    Entry("gpt2", seen=True, fixed={"vocab": "50304"}),
    Entry("unet", seen=True, channels_last=True),
    Entry("lstm", seen=True),
    Entry("convnext", seen=True, channels_last=True),
    Entry("t5", seen=True, strided_bias=True),
    Entry("llama8b", seen=True, eager=False),
    Entry("efficientnet", blind=True, channels_last=True),
    Entry("swin", blind=True),
    Entry("deberta", blind=True),
    Entry("whisper", blind=True),
    Entry("gru", blind=True, channels_last=True),
    Entry("mixer", blind=True, unseen=1),
    Entry("mlp", blind=True, unseen=1),
    Entry("latent", blind=True, unseen=1, channels_last=True),
    Entry("deeplab", blind=True, unseen=2, channels_last=True),
    Entry("mobilenet", blind=True, unseen=2, channels_last=True),
    Entry("conformer", blind=True, unseen=2, channels_last=True),
    Entry("recommender", blind=True, unseen=2),
    Entry("graphnet", blind=True, unseen=2),
    Entry("moe", blind=True, unseen=2),
    Entry("decoder", blind=True, unseen=2),
    Entry("video", blind=True, unseen=2),
    Entry("vae", blind=True, unseen=2, channels_last=True),
    Entry("clip", blind=True, unseen=3),
    Entry("hubert", blind=True, unseen=3),
    Entry("segformer", blind=True, unseen=3, channels_last=True),
    Entry("gemma", blind=True, unseen=3),
    Entry("edsr", blind=True, unseen=3, channels_last=True),
    Entry("wavenet", blind=True, unseen=3),
    Entry("statespace", blind=True, unseen=3, fixed={"vocab": "50304"}),
    Entry("nerf", blind=True, unseen=3),
    Entry("tabular", blind=True, unseen=3),
    Entry("fourier", blind=True, unseen=3),
    Entry("qwen", blind=True, unseen=4),
    Entry("dit", blind=True, unseen=4),
    Entry("dgcnn", blind=True, unseen=4, channels_last=True),
    Entry("gat", blind=True, unseen=4),
    Entry("fcos", blind=True, unseen=4, channels_last=True),
    Entry("patchtst", blind=True, unseen=4),
    Entry("codec", blind=True, unseen=4),
    Entry("glow", blind=True, unseen=4, channels_last=True),
    Entry("volume", blind=True, unseen=4),
    Entry("sam", blind=True, unseen=4),
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is measured beside the time and memory of steps.

    Attributes:
        kernels: the kernels of each step by name, asked anew for each step.
        ops: the ops of a step with what they launched, for the recipes of ``TAKEN_APART``.
        launches: the time of a step on few samples.
        steps: the steps themselves.
    """

    kernels: Callable[[], bool] = lambda: False
    ops: bool = False
    launches: bool = False
    steps: bool = True


class Steps:
    """Training steps of one model on the device."""

    def __init__(self, spec: TargetSpec, *, channels_last: bool = False) -> None:
        self._target = load_target(spec)
        torch.manual_seed(0)
        with torch.device(device_times.DEVICE):
            model, batch = self._target.make_model(), self._target.make_batch()
        self.model = model.to(device_times.DEVICE).train()
        self._batch = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device_times.DEVICE), batch)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self._batch = _pytree.tree_map_only(torch.Tensor, _in_channels_last, self._batch)

    @contextlib.contextmanager
    def under(self, recipe: Recipe, *, samples: int | None = None) -> Iterator[Callable[[], None]]:
        """A step under a recipe with an optimizer of its own, on the first samples of the batch or on all."""
        batch = self._batch
        if samples is not None:
            batch = _pytree.tree_map_only(torch.Tensor, lambda tensor: tensor[:samples].contiguous(), batch)
        model = self.model
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
        scaler = torch.amp.GradScaler(device_times.DEVICE, enabled=recipe.name == "autocast-fp16")

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(self._loss(batch, recipe)).backward()
            scaler.step(optimizer)
            scaler.update()

        with tf32(recipe.tf32):
            yield step
        optimizer.zero_grad(set_to_none=True)

    def _loss(self, batch: Any, recipe: Recipe) -> torch.Tensor:
        half = getattr(torch, recipe.autocast.torch_name) if recipe.autocast else torch.bfloat16
        with torch.autocast(device_times.DEVICE, dtype=half, enabled=recipe.autocast is not None):
            loss: torch.Tensor = self._target.loss(self._target.call(self.model, batch), batch)
        return loss


def measure(entry: Entry, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """One row for each recipe of the model, and for BF16 autocast of the repaired one."""
    variants = [("", False, MEASURED, entry.spec)]
    if entry.fixed or entry.channels_last:
        spec = dataclasses.replace(entry.spec, arguments={**entry.arguments, **entry.fixed})
        variants.append(("+fixed", entry.channels_last, ("autocast-bf16",), spec))
    for suffix, channels_last, recipes, spec in variants:
        steps = Steps(spec, channels_last=channels_last)
        for name in recipes:
            row = {"model": entry.model, "recipe": name + suffix, "mode": "eager"}
            if found := _one(steps, RECIPES[name], wanted):
                yield row | found


def _in_channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _one(steps: Steps, recipe: Recipe, wanted: Wanted) -> dict[str, Any]:
    """Median step, peak memory and what a step ran."""
    row: dict[str, Any] = {}
    with steps.under(recipe) as step:
        if wanted.steps:
            device_times.forget_peak()
            for _ in range(WARM_UPS):
                step()
            row["step_ms"] = _summary(_timed(step))
            row["memory_bytes"] = device_times.peak_memory()
        if recipe.name in PROFILED and wanted.kernels():
            row["kernels"] = device_times.kernels_of(step)
        if recipe.name in TAKEN_APART and wanted.ops:
            if not wanted.steps:
                step()
            row["ops"] = device_times.ops_of(step)
    if recipe.name in TAKEN_APART and wanted.launches:
        with steps.under(recipe, samples=FEW) as step:
            for _ in range(WARM_UPS):
                step()
            row["few_samples_ms"] = _summary(_timed(step, seconds=SECONDS / 2))
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


def _timed(step: Callable[[], None], *, seconds: float = SECONDS) -> list[float]:
    """Milliseconds of each step, queued without waiting in between, as a training loop queues them."""
    device_times.synchronize()
    start = time.perf_counter()
    step()
    device_times.synchronize()
    count = max(FEWEST, min(MOST, round(seconds / (time.perf_counter() - start))))
    return device_times.repeated(step, count)


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "low": min(times), "high": max(times), "repeats": len(times)}

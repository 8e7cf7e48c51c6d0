"""How well a plan's summed rounding errors say how noisy its gradients are: what ``tune/quality/noise.py`` rests on.

    PYTHONPATH=.:rules python tests/benchmarks/gradient_noise.py     # 10 CPU minutes; writes reports/gradient_noise.md

Five small networks on the CPU, trained for ten steps. Plans are drawn at random: BF16, FP16 or what autocast would
lower, some groups back in FP32, and none to all of the linears in FP8. Products of FP8 operands are computed in FP32:
the rounding of the operands is that of FP8, the products of a GPU sum a little less exactly. Each plan's gradients
at the reference's weights are compared as in a trial.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from amptune import runtime
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.choice import BF16, FP8, FP16, FP32, Choice
from amptune.core.formats import Format
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.choices.buildspace import build_space
from amptune.tune.choices.space import Space
from amptune.tune.quality.gate import compare_gradients
from amptune.tune.quality.quality import _bars
from amptune.tune.quality.reference import measure_reference
from amptune.tune.quality.sensitivity import measure_sensitivity
from amptune.tune.quality.trained import gradients_at
from amptune.tune.running.batches import load_batches
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.running.training import Workbench

REPORT = Path(__file__).parent / "reports" / "gradient_noise.md"
PLANS = 40
STEPS = 10
IDS = """
def make_batch():
    ids = torch.randint(0, 500, (4, 128))
    return {"input_ids": ids, "labels": ids}
"""
MODELS = {
    "llama": """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

def make_model():
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=256, intermediate_size=896, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=512, use_cache=False))
""" + IDS,
    "bert": """
import torch
from transformers import BertConfig, BertForMaskedLM

def make_model():
    return BertForMaskedLM(BertConfig(
        vocab_size=512, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024))
""" + IDS,
    "vit": """
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

def make_model():
    return ViTForImageClassification(ViTConfig(
        num_labels=96, hidden_size=192, num_hidden_layers=4, num_attention_heads=4, intermediate_size=768,
        image_size=64, patch_size=8))

def make_batch():
    return torch.randn(16, 3, 64, 64), torch.randint(0, 96, (16,))

def loss_fn(output, batch):
    return F.cross_entropy(output.logits, batch[1])
""",
    "mlp with skips": """
import torch
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(64, 256), nn.Linear(256, 64)
        self.blocks = nn.ModuleList(Block(256) for _ in range(6))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

def make_model():
    return Net()

def make_batch():
    x = torch.randn(512, 64)
    return x, (x @ torch.randn(64, 64)).argmax(1)

def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
""",
    "gpt": (Path(__file__).parents[2] / "examples" / "gpt.py").read_text(),
}  # fmt: skip


class WithFp8(Device):
    """A CPU that is taken to multiply in FP8."""

    def formats(self) -> tuple[Format, ...]:
        return Format.BF16, Format.FP16

    def fp8_choices(self) -> tuple[Choice, ...]:
        return tuple(FP8)


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan: whether it has FP8, its error, and the worst and the median gradient's share of what is allowed."""

    has_fp8: bool
    error: float
    worst: float
    typical: float


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> torch.Tensor:
    found = (a.float() * scale_a) @ (b.float() * scale_b)
    return (found if bias is None else found + bias.float()).to(dtype)


def measured(source: str) -> Iterator[Row]:
    """Random plans of one network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.py"
        path.write_text(source)
        target, device = load_target(TargetSpec(str(path))), WithFp8("cpu")
        bench = Workbench.build(target, device, seed=0)
        batches = load_batches(target, STEPS, device.torch)
        reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
        space = build_space(bench, capture(load_target(TargetSpec(str(path)))).graph, batches.train[0])
        offered = {site: group.site_choices(site) for group in space.module_groups() for site in group.sites}
        errors = measure_sensitivity(bench, offered, batches.train[0], seed=0)
        table = CostTable({site: dict.fromkeys(found, SiteCost(1.0)) for site, found in offered.items()}, {})
        rng = random.Random(0)
        for _ in range(PLANS):
            point = drawn(space, rng)
            plan = space.decode(point, table, {})
            if plan.uses_fp16:
                plan = dataclasses.replace(plan, scaler=dataclasses.replace(plan.scaler, init_scale=errors.loss_scale))
            candidate = plan_candidate(plan)
            gradients = gradients_at(bench, candidate, batches, reference.state, seed=0).named
            bars = _bars(bench, candidate, batches, reference, seed=0)
            noise = compare_gradients(reference.gradients, gradients, bars).noise
            if noise is not None and noise.typical > 0:
                has_fp8 = any(choice.format.is_fp8 for choice in space.site_choices(point).values())
                yield Row(has_fp8, errors.total(space.site_choices(point)), noise.worst, noise.typical)


def drawn(space: Space, rng: random.Random) -> dict[str, str]:
    """A random point."""
    base, share = rng.choice(("bf16", "fp16", "autocast")), rng.choice((0.0, 0.0, 0.25, 0.5, 0.75, 1.0))
    low, scaling = FP16 if base == "fp16" else BF16, rng.choice((*FP8, None))
    chosen: dict[str, str] = {}
    for group in space.module_groups():
        choice = low if base != "autocast" or group.multiplies else FP32
        if group.fp8 and rng.random() < share:
            choice = scaling or rng.choice(FP8)
        elif rng.random() < 0.15:
            choice = FP32
        chosen[group.name] = choice.label if choice in group.choices else FP32.label
    return space.made_legal(space.point(chosen))


HEADER = """\
# What the sum of rounding errors says of the noise in gradients

`python tests/benchmarks/gradient_noise.py`; CPU, torch {torch}. Per network and kind of plan: mean and standard
deviation of the logarithm of the worst gradient's share over the plan's summed error, and of the worst share over that
of the median gradient, with the largest. A share is the noise to signal of a gradient over what its bar allows.

| network | plans | how many | log(share / error): mean | standard deviation | log(worst / median): mean | largest |
|---|---|---|---|---|---|---|
"""


def line(name: str, kind: str, rows: list[Row]) -> str:
    by_error = [math.log(row.worst / row.error) for row in rows]
    apart = [math.log(row.worst / row.typical) for row in rows]
    figures = (statistics.fmean(by_error), statistics.stdev(by_error), statistics.fmean(apart), max(apart))
    return f"| {name} | {kind} | {len(rows)} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |\n"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    runtime._scaled_mm = _product  # type: ignore[assignment]
    text = HEADER.format(torch=torch.__version__)
    for name, source in MODELS.items():
        rows = [row for row in measured(source) if row.error > 0]
        for kind, has_fp8 in (("with FP8", True), ("16 bits", False)):
            text += line(name, kind, [row for row in rows if row.has_fp8 is has_fp8])
        print(text, flush=True)
    REPORT.write_text(text)


if __name__ == "__main__":
    main()

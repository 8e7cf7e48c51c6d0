"""A small model as a user would write it, and plans for it of every kind that an exporter meets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan

MODEL = '''
"""Two blocks, an embedding and a head; learns whether a sum is positive."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(F.softmax(x, dim=-1).mean(dim=1) + x.mean(dim=1)))


def make_model():
    torch.manual_seed(0)
    return Net()


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])


def train_batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        ids = torch.randint(16, (16, 8), generator=generator)
        yield ids, (ids.sum(dim=1) > 60).long()


def make_optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)


def evaluate(model):
    ids, labels = next(train_batches())
    with torch.no_grad():
        return 100 * (model(ids).argmax(dim=-1) == labels).float().mean().item()
'''

TRAINER_MODEL = (
    MODEL.partition("def loss_fn")[0]
    .replace("def forward(self, ids):", "def forward(self, ids, labels=None):")
    .replace(
        "        return self.head(self.norm(F.softmax(x, dim=-1).mean(dim=1) + x.mean(dim=1)))",
        "        logits = self.head(self.norm(F.softmax(x, dim=-1).mean(dim=1) + x.mean(dim=1)))\n"
        "        return {'loss': F.cross_entropy(logits.float(), labels), 'logits': logits}",
    )
    + "def make_batch():\n    return {'ids': torch.zeros(4, 8, dtype=torch.long), 'labels': torch.zeros(4).long()}\n"
)
"""The same with the loss in its output, as transformers' Trainer wants it."""

MODULES = (
    "embed", *(f"blocks.{number}.{part}" for number in range(3) for part in ("norm", "fc1", "fc2")), "norm", "head"
)  # fmt: skip
TUNED = ScalerConfig(enabled=True, init_scale=2.0**10, growth_interval=500)


def plan(low: Format, **high: Format) -> Plan:
    """All modules in ``low`` but those named (dots as double underscores); the scaler is on where FP16 is there."""
    named = {path.replace("__", "."): number_format for path, number_format in high.items()}
    sites = {path: SitePlan(named.get(path, low)) for path in MODULES}
    made = Plan(sites=sites, target="net.py")
    return dataclasses.replace(made, scaler=TUNED if made.uses_fp16 else ScalerConfig())


def stock(low: Format) -> Plan:
    """One autocast region around the whole model."""
    scaler = TUNED if low is Format.FP16 else ScalerConfig()
    return Plan(sites={"": SitePlan(low, how="autocast")}, scaler=scaler, target="net.py")


_MIXED = plan(Format.BF16, embed=Format.FP32, head=Format.FP32, blocks__1__fc1=Format.FP16, blocks__2__norm=Format.FP32)
_PINNED = {
    "blocks.0.fc2": SitePlan(Format.BF16, pad=24),
    "#softmax.0": SitePlan(Format.FP32, how="source", why="sums many terms"),
}
_FP8 = {
    "blocks.1.fc1": SitePlan(Format.FP8_E4M3, "tensorwise"),
    "blocks.1.fc2": SitePlan(Format.FP8_E4M3, "tensorwise"),
    "blocks.2.fc1": SitePlan(Format.FP8_E4M3, "rowwise"),
    "blocks.2.fc2": SitePlan(Format.FP8_E4M3, "rowwise_gw_hp"),
}

PLANS: dict[str, Plan] = {
    "fp32": plan(Format.FP32),
    "bf16": plan(Format.BF16),
    "fp16": plan(Format.FP16),
    "mixed": dataclasses.replace(_MIXED, sites={**_MIXED.sites, **_PINNED}, tf32=True),
    "fp8": dataclasses.replace(plan(Format.BF16), sites={**plan(Format.BF16).sites, **_FP8}),
    "stock-bf16": stock(Format.BF16),
    "stock-fp16": stock(Format.FP16),
    "odd-scaler": dataclasses.replace(
        plan(Format.FP16),
        scaler=ScalerConfig(enabled=True, init_scale=1000.0, growth_factor=1.5, backoff_factor=0.25, growth_interval=7),
    ),
    "region": dataclasses.replace(
        plan(Format.BF16),
        sites={**plan(Format.BF16).sites, "blocks.1#gelu.0": SitePlan(Format.BF16, how="autocast")},
    ),
    "empty": Plan(target="net.py"),
    "package": dataclasses.replace(plan(Format.BF16), target="pack.models:build"),
    "images": dataclasses.replace(plan(Format.BF16), channels_last=True, output_format=Format.FP32),
    "in-parts": dataclasses.replace(plan(Format.BF16), compile_parts=("blocks.0", "blocks.1")),
}


def write(folder: Path, name: str, source: str = MODEL) -> Path:
    """``net.py`` and the plan in ``folder``; returns the plan's path."""
    (folder / "net.py").write_text(source)
    path = folder / "plan.json"
    path.write_text(json.dumps(PLANS[name].to_json("amptune test")))
    return path

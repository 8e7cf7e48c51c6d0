"""Which tensors of four dimensions the fixed model has in channels_last."""

from __future__ import annotations

from pathlib import Path

from amptune.analyze.estimate import FIXED, estimate_all
from amptune.analyze.sitefacts.enrich import enrich
from amptune.analyze.stepcost.images import in_channels_last
from amptune.analyze.stepcost.kernels import Setting
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.graph import PrecisionGraph
from amptune.core.hardware import gpus_named
from amptune.core.recipes import RECIPES, STOCK

HYBRID = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.qk = nn.Linear(64, 128)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        a, b = h.chunk(2, 1)
        gated = a * torch.sigmoid(b)
        q, k = self.qk(h.flatten(2).transpose(1, 2)).view(len(x), -1, 2, 8, 8).permute(2, 0, 3, 1, 4)
        turned = q * torch.cos(q) + torch.cat([-k, q], -1)[..., :8]
        return gated.mean() + turned.mean()
"""
HANDOVER = """

def make_model():
    return Model()


def make_batch():
    return torch.randn({batch})


def loss_fn(output, batch):
    return output
"""
HEADS = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        q, k = (f(x).view(16, 1024, 8, 8).transpose(1, 2) for f in (self.q, self.k))
        return (q * torch.cos(torch.ones(1024, 8, device=x.device)) + torch.cat([-k, q], -1)[..., :8]).sum()
"""


def captured(text: str, batch: str, folder: Path) -> PrecisionGraph:
    file = folder / "model.py"
    file.write_text(text + HANDOVER.format(batch=batch))
    found = capture(load_target(TargetSpec(str(file))))
    enrich(found.graph, found.graph_module)
    return found.graph


def test_images_are_what_convolutions_hand_on_as_it_lies(tmp_path: Path) -> None:
    graph = captured(HYBRID, "4, 8, 32, 32", tmp_path)
    fixed = Setting(RECIPES["fp32"], fixed=True)
    images = {site.id for site in graph if site.inputs and in_channels_last(site, fixed)}
    assert images == {"conv", "norm", "#relu.0", "#sigmoid.0", "#mul.0"}
    plain = Setting(RECIPES["fp32"])
    assert not [site.id for site in graph if site.inputs and in_channels_last(site, plain)]


def test_heads_of_an_attention_gain_nothing_from_channels_last(tmp_path: Path) -> None:
    graph = captured(HEADS, "16, 1024, 64", tmp_path)
    table = estimate_all(graph, gpus_named(("h100",)), STOCK)["h100"]
    gpu_ms = {name: each.gpu_ms for name, each in table.items()}
    assert gpu_ms["autocast-bf16"] > 0
    assert [gpu_ms[name + FIXED] for name in ("fp32", "autocast-bf16")] == [gpu_ms["fp32"], gpu_ms["autocast-bf16"]]

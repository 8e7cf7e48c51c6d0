"""Light curves of variable stars: a transformer whose positions are observation times in days."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def time_features(days, width):
    freq = torch.exp(torch.arange(0, width, 2, device=days.device) * (-math.log(1000.0) / width))
    phase = days.to(torch.bfloat16)[..., None] * freq.to(torch.bfloat16)  # planted: G211
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class Star(nn.Module):
    def __init__(self, width=192, depth=4, classes=12):
        super().__init__()
        self.inp = nn.Linear(2, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, classes)
        self.width = width

    def forward(self, flux, days):
        h = self.inp(flux) + time_features(days, self.width).to(flux.dtype)
        return self.out(self.body(h).mean(1))


def make_model():
    return Star()


def make_batch():
    torch.manual_seed(0)
    days = 58000 + torch.sort(torch.rand(32, 200) * 400, dim=1).values
    return {"flux": torch.randn(32, 200, 2), "days": days, "labels": torch.randint(0, 12, (32,))}


def run(model, batch):
    return model(batch["flux"], batch["days"])


def loss_fn(out, batch):
    return F.cross_entropy(out, batch["labels"])

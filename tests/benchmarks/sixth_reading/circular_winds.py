"""Wind directions on a grid with a von Mises likelihood. Planted: log(I0(kappa)) is taken literally; I0 is over FP32's
largest number from kappa = 92 on, which sharp forecasts have (infinite loss), and over FP16's from 13.5."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Mixer(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.depth = nn.Conv2d(ch, ch, 7, padding=3, groups=ch)
        self.norm = nn.GroupNorm(1, ch)
        self.up, self.down = nn.Conv2d(ch, 4 * ch, 1), nn.Conv2d(4 * ch, ch, 1)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(self.depth(x)))))


class Winds(nn.Module):
    def __init__(self, fields=16, ch=64, depth=3):
        super().__init__()
        self.stem = nn.Conv2d(fields, ch, 3, padding=1)
        self.blocks = nn.Sequential(*[Mixer(ch) for _ in range(depth)])
        self.head = nn.Conv2d(ch, 3, 1)

    def forward(self, x):
        out = self.head(self.blocks(self.stem(x)))
        heading, raw = out[:, :2], out[:, 2]
        mu = torch.atan2(heading[:, 1] + 1e-3, heading[:, 0] + 1e-3)
        kappa = F.softplus(raw) + 1e-3
        return mu, kappa


def von_mises_nll(mu, kappa, angle):
    log_norm = math.log(2 * math.pi) + torch.log(torch.i0(kappa))  # planted: G203|G201|G204
    return log_norm - kappa * torch.cos(angle - mu)


def make_model():
    return Winds()


def make_batch():
    return torch.randn(4, 16, 48, 96), (torch.rand(4, 48, 96) * 2 - 1) * math.pi


def loss_fn(output, batch):
    return von_mises_nll(*output, batch[1]).mean()

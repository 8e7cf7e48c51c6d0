"""Glow: norms with log scales, invertible mixing by a matrix with its log determinant, affine couplings. Careful."""

import math

import torch
from torch import nn


class Step(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.log_scale, self.shift = (nn.Parameter(torch.zeros(1, channels, 1, 1)) for _ in range(2))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        places = x.shape[2] * x.shape[3]
        x = (x + self.shift) * torch.exp(self.log_scale)
        logdet = places * (self.log_scale.sum() + torch.linalg.slogdet(self.mix)[1])
        x = torch.einsum("bchw,dc->bdhw", x, self.mix)
        a, b = x.chunk(2, 1)
        log_s, t = self.net(a).chunk(2, 1)
        log_s = 2 * torch.tanh(log_s.float() / 2)
        return torch.cat([a, b * log_s.exp() + t], 1), logdet + log_s.flatten(1).sum(1)


class Glow(nn.Module):
    def __init__(self, width=256, depth=4):
        super().__init__()
        self.steps = nn.ModuleList(Step(48, width) for _ in range(depth))

    def forward(self, image):
        x = nn.functional.pixel_unshuffle(image, 4)
        total = torch.zeros(len(x), device=x.device)
        for step in self.steps:
            x, logdet = step(x)
            total = total + logdet
        return x, total


def make_model():
    return Glow()


def make_batch():
    return torch.rand(32, 3, 32, 32) - 0.5, torch.zeros(32)


def loss_fn(output, batch):
    z, logdet = output
    prior = -0.5 * (z.float() ** 2 + math.log(2 * math.pi)).flatten(1).sum(1)
    return -(prior + logdet).mean() / (3 * 32 * 32 * math.log(2))

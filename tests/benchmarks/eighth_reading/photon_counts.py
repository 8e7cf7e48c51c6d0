"""Fluorescence microscopy: noisy frames denoised after a variance-stabilising transform (Anscombe). Planted: a
camera's readings, its offset taken away, fall below -3/8 where there is no light; the root of those is NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm(self.conv1(x))))


class Anscombe(nn.Module):
    """Stabilises the variance of Poisson counts, and goes back by the asymptotically unbiased inverse."""

    def forward(self, counts):
        return 2.0 * torch.sqrt(counts + 3.0 / 8.0)  # planted: G206

    @staticmethod
    def inverse(d):
        d = d.clamp(min=1.0)
        return 0.25 * d**2 + 0.25 * (1.5**0.5) / d - 11.0 / 8.0 / d**2 + 0.625 * (1.5**0.5) / d**3 - 0.125


class Denoiser(nn.Module):
    def __init__(self, width=32, depth=4, frames=3):
        super().__init__()
        self.stabilise = Anscombe()
        self.first = nn.Conv2d(frames, width, 3, padding=1)
        self.body = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, electrons):
        stable = self.stabilise(electrons)
        centre = stable[:, stable.shape[1] // 2, None]
        correction = self.last(self.body(self.first(stable / 10.0)))
        return self.stabilise.inverse(centre + 10.0 * correction)


def make_model():
    return Denoiser()


def make_batch():
    light = F.interpolate(torch.rand(4, 1, 8, 8) ** 2, size=(64, 64), mode="bilinear", align_corners=False) * 40.0
    readings = torch.poisson(light.expand(-1, 3, -1, -1)) + 1.6 * torch.randn(4, 3, 64, 64)
    return readings, light


def loss_fn(output, batch):
    clean = batch[1]
    return ((output - clean) ** 2 / (clean + 1.0)).mean()

"""Depth with its own uncertainty, Gaussian likelihood by hand. Planted: the variance is a relu in 16 bits and 1e-8,
which FP16 does not have, under a logarithm and a quotient."""

import torch
import torch.nn.functional as F
from torch import nn


class DepthNet(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU())
            for a, b in ((4 * width, 2 * width), (2 * width, width), (width, width))
        )
        self.mean, self.spread = nn.Conv2d(width, 1, 3, 1, 1), nn.Conv2d(width, 1, 3, 1, 1)

    def forward(self, image):
        x = image
        for layer in self.down:
            x = layer(x)
        for layer in self.up:
            x = F.interpolate(layer(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.mean(x), F.relu(self.spread(x))


def make_model():
    return DepthNet()


def make_batch():
    return torch.rand(8, 3, 128, 160), torch.rand(8, 1, 128, 160) * 10


def loss_fn(output, batch):
    mean, variance = output
    variance = variance + 1e-8
    far = (batch[1] - mean) ** 2
    return 0.5 * (torch.log(variance) + far / variance).mean()  # planted: G204|G205

"""Denoising score matching on images with noise over four decades, weighted by its square, a network conditioned on the
logarithm of the noise. Careful."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Score(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.register_buffer("turns", torch.randn(width // 2) * 4)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(4))
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image, noise, level):
        sigma = (0.01 * (50 / 0.01) ** level).view(-1, 1, 1, 1)
        noisy = image + sigma * noise
        angle = torch.log(sigma.flatten())[:, None] * self.turns * 2 * math.pi
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))[:, :, None, None]
        x = self.stem(noisy / (1 + sigma**2).sqrt())
        for norm, layer in zip(self.norms, self.body, strict=True):
            x = x + layer(F.silu(norm(x) + time))
        return self.out(x)


def make_model():
    return Score()


def make_batch():
    image = torch.rand(32, 3, 32, 32)
    return {"image": image, "noise": torch.randn_like(image), "level": torch.rand(32)}


def loss_fn(output, batch):
    return F.mse_loss(output.float(), -batch["noise"])

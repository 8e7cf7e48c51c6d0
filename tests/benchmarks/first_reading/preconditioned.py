"""Diffusion with Karras' preconditioning and a pseudo-Huber loss. Careful: the weights are written so that no noise
level divides by zero, the noise level's logarithm has its lower bound, and all of it stays in FP32."""

import math

import torch
import torch.nn.functional as F
from torch import nn

DATA = 0.5


class Block(nn.Module):
    def __init__(self, width, condition):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.shift = nn.Linear(condition, 2 * width)
        self.norm = nn.GroupNorm(32, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, c):
        scale, shift = self.shift(c)[..., None, None].chunk(2, dim=1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        return (x + self.second(F.silu(h))) * math.sqrt(0.5)


class Denoiser(nn.Module):
    def __init__(self, width=128, depth=4, condition=256):
        super().__init__()
        self.register_buffer("rates", torch.randn(condition // 2) * 4)
        self.condition = nn.Sequential(nn.Linear(condition, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, condition) for _ in range(depth))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, noisy, sigma):
        sigma = sigma.view(-1, 1, 1, 1)
        total = sigma**2 + DATA**2
        angles = 2 * math.pi * (sigma.flatten().log() / 4)[:, None] * self.rates
        c = self.condition(torch.cat([angles.cos(), angles.sin()], 1))
        x = self.stem(noisy * total.rsqrt())
        for block in self.blocks:
            x = block(x, c)
        return noisy * DATA**2 / total + self.out(x).float() * sigma * DATA * total.rsqrt()


def make_model():
    return Denoiser()


def make_batch():
    clean = torch.randn(32, 3, 32, 32).clamp(-1, 1)
    sigma = torch.exp(torch.randn(32) * 1.2 - 1.2).clamp(0.002, 80.0)
    return (clean + sigma[:, None, None, None] * torch.randn_like(clean), sigma), clean


def loss_fn(output, batch):
    (_, sigma), clean = batch
    weight = (sigma**2 + DATA**2) / (sigma * DATA) ** 2
    c = 0.00054 * math.sqrt(clean[0].numel())
    distance = torch.sqrt((output - clean).pow(2).flatten(1).sum(1) + c**2) - c
    return (weight * distance).mean()

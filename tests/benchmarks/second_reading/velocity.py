"""Diffusion with velocity as the target and a cosine schedule by cumprod. Planted: the steps (up to 999) are cast to
the 16 bits of the features before they are multiplied by frequencies and enter a sine."""

import math

import torch
import torch.nn.functional as F
from torch import nn

STEPS = 1000


class Residual(nn.Module):
    def __init__(self, inner, outer, time):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1))
        self.time = nn.Linear(time, outer)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x, time):
        return self.skip(x) + self.second(self.first(x) + self.time(time)[:, :, None, None])


class Velocity(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        steps = torch.arange(STEPS + 1) / STEPS
        curve = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
        self.register_buffer("products", torch.cumprod(1 - betas, 0))
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = Residual(width, 2 * width, 4 * width)
        self.middle = Residual(2 * width, 2 * width, 4 * width)
        self.up = Residual(4 * width, width, 4 * width)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def waves(self, t, like):
        scale = torch.exp(-math.log(10000) * torch.arange(self.width // 2, device=t.device) / (self.width // 2 - 1))
        turns = t.to(like.dtype)[:, None] * scale.to(like.dtype)  # planted: G211|G219
        return torch.cat([turns.sin(), turns.cos()], -1)

    def forward(self, clean, noise, t):
        a = self.products[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * clean + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean
        x = self.stem(noisy)
        time = self.time(self.waves(t, x))
        first = self.down(x, time)
        x = F.interpolate(self.middle(F.avg_pool2d(first, 2), time), scale_factor=2.0)
        return self.out(self.up(torch.cat([x, first], 1), time)), target


def make_model():
    return Velocity()


def make_batch():
    clean = torch.rand(16, 3, 32, 32) * 2 - 1
    return {"clean": clean, "noise": torch.randn_like(clean), "t": torch.randint(0, STEPS, (16,))}


def loss_fn(output, batch):
    return F.mse_loss(output[0].float(), output[1])

"""Camera poses are refined together with a small radiance field (as in BARF): a rotation vector and a shift per view.
Planted: Rodrigues' formula divides by the angle, which is zero for every view before the first step: 0 / 0 in FP32."""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    views: int = 48
    bands: int = 6
    width: int = 128
    samples: int = 32
    near: float = 2.0
    far: float = 6.0


def skew(v):
    zero = torch.zeros_like(v[..., 0])
    rows = [zero, -v[..., 2], v[..., 1], v[..., 2], zero, -v[..., 0], -v[..., 1], v[..., 0], zero]
    return torch.stack(rows, dim=-1).reshape(*v.shape[:-1], 3, 3)


def rotation(w):
    theta = w.norm(dim=-1, keepdim=True)[..., None]
    k = skew(w)
    eye = torch.eye(3, device=w.device)
    a = torch.sin(theta) / theta  # planted: G205
    b = (1 - torch.cos(theta)) / (theta * theta).clamp(min=1e-12)
    return eye + a * k + b * k @ k


class Field(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.register_buffer("freqs", math.pi * 2.0 ** torch.arange(cfg.bands))
        inputs = 6 * cfg.bands
        self.net = nn.Sequential(nn.Linear(inputs, cfg.width), nn.ReLU(), nn.Linear(cfg.width, cfg.width), nn.ReLU())
        self.out = nn.Linear(cfg.width, 4)

    def forward(self, x):
        turns = (x[..., None] * self.freqs).flatten(-2)
        h = self.net(torch.cat([turns.sin(), turns.cos()], dim=-1))
        rgb, density = self.out(h).float().split([3, 1], dim=-1)
        return rgb.sigmoid(), F.softplus(density - 1).squeeze(-1)


class Refined(nn.Module):
    def __init__(self, cfg=None):
        super().__init__()
        self.cfg = cfg or Config()
        self.turn = nn.Parameter(torch.zeros(self.cfg.views, 3))
        self.shift = nn.Parameter(torch.zeros(self.cfg.views, 3))
        self.field = Field(self.cfg)

    def forward(self, view, origin, direction):
        r = rotation(self.turn[view])
        origin = origin + self.shift[view]
        direction = (r @ direction[..., None]).squeeze(-1)
        depth = torch.linspace(self.cfg.near, self.cfg.far, self.cfg.samples, device=origin.device)
        points = origin[:, None] + direction[:, None] * depth[:, None]
        rgb, density = self.field(points)
        step = (self.cfg.far - self.cfg.near) / self.cfg.samples
        optical = torch.cumsum(density * step, dim=-1)
        reached = torch.exp(-F.pad(optical[..., :-1], (1, 0)))
        weight = reached * -torch.expm1(-density * step)
        return (weight[..., None] * rgb).sum(1)


def make_model():
    return Refined()


def make_batch():
    rays = 1024
    direction = F.normalize(torch.randn(rays, 3), dim=-1)
    return (torch.randint(0, 48, (rays,)), torch.randn(rays, 3) * 0.1, direction), torch.rand(rays, 3)


def loss_fn(output, batch):
    return F.mse_loss(output, batch[1])

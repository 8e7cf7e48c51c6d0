"""Restores smudged fingerprints: a small U-shaped net whose picture is compared with the clean one, as are the
directions of its ridges and how clear they are. Pictures lie in [0, 1], the background is 0."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm = nn.GroupNorm(8, cout)

    def forward(self, x):
        return F.gelu(self.norm(self.conv(x)))


class Restorer(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.stem = Block(1, width)
        self.down = Block(width, 2 * width, 2)
        self.middle = nn.Sequential(Block(2 * width, 2 * width), Block(2 * width, 2 * width))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.out = nn.Conv2d(2 * width, 1, 3, 1, 1)

    def forward(self, smudged, area):
        s = self.stem(smudged)
        h = self.up(self.middle(self.down(s)))
        return torch.sigmoid(self.out(torch.cat((s, h), 1))) * area


def ridges_of(picture):
    """Smoothed products of the slopes: how strong the ridges are, and twice their direction."""
    dx = picture[..., 1:-1, 2:] - picture[..., 1:-1, :-2]
    dy = picture[..., 2:, 1:-1] - picture[..., :-2, 1:-1]
    xx, yy, xy = (F.avg_pool2d(p, 7, 1) for p in (dx * dx, dy * dy, dx * dy))
    return xx + yy, xx - yy, 2.0 * xy


def coherence(picture, eps=1e-4):
    strength, along, across = ridges_of(picture)
    return torch.sqrt(along.square() + across.square()) / (strength + eps)  # planted: G206


def make_model():
    return Restorer()


def make_batch():
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    phase = torch.rand(4, 1, 1, 1, generator=g) * 2 * math.pi
    area = (((x - 48) ** 2 + (y - 48) ** 2) < 40**2).float().expand(4, 1, 96, 96)
    ridges = (0.5 + 0.5 * torch.sin(0.6 * x + 0.3 * y + phase)) * area
    smudged = (ridges + 0.2 * torch.randn(ridges.shape, generator=g)).clamp(0, 1)
    return {"smudged": smudged, "area": area, "clean": ridges}


def loss_fn(output, batch):
    clean = batch["clean"]
    ordered = F.l1_loss(coherence(output.float()), coherence(clean))
    strength, along, across = ridges_of(output.float())
    turned = torch.atan2(across, along) - torch.atan2(*reversed(ridges_of(clean)[1:]))
    direction = ((1.0 - torch.cos(turned)) * strength.detach()).mean()
    return F.l1_loss(output.float(), clean) + 0.1 * ordered + direction

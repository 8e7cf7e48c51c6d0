"""A radiance field rendered along rays. Planted: the depth is divided by the weights' sum for the disparity, which is
zero on rays that meet nothing."""

import torch
import torch.nn.functional as F
from torch import nn


class Waves(nn.Module):
    def __init__(self, octaves):
        super().__init__()
        self.register_buffer("turns", 2.0 ** torch.arange(octaves))

    def forward(self, x):
        angles = (x[..., None] * self.turns).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], -1)


class Field(nn.Module):
    def __init__(self, width=256, depth=4):
        super().__init__()
        self.place, self.way = Waves(10), Waves(4)
        self.lift = nn.Linear(63, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.colour = nn.Sequential(nn.Linear(width + 27, width // 2), nn.ReLU(), nn.Linear(width // 2, 3))

    def forward(self, points, ways):
        h = F.relu(self.lift(self.place(points)))
        for layer in self.layers:
            h = F.relu(layer(h))
        density = F.relu(self.density(h).squeeze(-1).float())
        return density, self.colour(torch.cat([self.feature(h), self.way(ways)], -1)).float().sigmoid()


class Renderer(nn.Module):
    def __init__(self, near=2.0, far=6.0, samples=64):
        super().__init__()
        self.near, self.far, self.samples, self.field = near, far, samples, Field()

    def forward(self, origins, ways):
        depth = torch.linspace(self.near, self.far, self.samples, device=origins.device).expand(len(origins), -1)
        points = origins[:, None] + ways[:, None] * depth[..., None]
        density, colour = self.field(points, ways[:, None].expand_as(points))
        steps = torch.cat([depth[:, 1:] - depth[:, :-1], torch.full_like(depth[:, :1], 1e10)], 1)
        alpha = 1 - torch.exp(-density * steps)
        through = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-10], 1), 1)
        weights = alpha * through
        seen = (weights * depth).sum(1)
        disparity = 1 / torch.clamp(seen / weights.sum(1), min=1e-10)  # planted: G205
        return (weights[..., None] * colour).sum(1), disparity


def make_model():
    return Renderer()


def make_batch():
    ways = F.normalize(torch.randn(1024, 3), dim=-1)
    return (torch.zeros(1024, 3), ways), (torch.rand(1024, 3), torch.rand(1024) * 0.3 + 0.17)


def loss_fn(output, batch):
    colour, disparity = output
    return F.mse_loss(colour, batch[1][0]) + 0.1 * F.l1_loss(disparity, batch[1][1])

"""A deep equilibrium network: a fixed point without gradients by repeated calls until it moves little, then one call
with them. Careful."""

import torch
import torch.nn.functional as F
from torch import nn


class Cell(nn.Module):
    def __init__(self, channels, inner):
        super().__init__()
        self.first = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.second = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, c) for c in (inner, channels, channels))
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, z, x):
        y = self.norms[0](F.relu(self.first(z)))
        return self.norms[2](F.relu(z + self.norms[1](x + self.second(y))))


class Equilibrium(nn.Module):
    def __init__(self, channels=48, classes=16, rounds=12, near=1e-2):
        super().__init__()
        self.rounds, self.near = rounds, near
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GroupNorm(8, channels))
        self.cell = Cell(channels, 64)
        self.head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels * 16, classes))

    def forward(self, image):
        x = self.stem(image)
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(self.rounds):
                old, z = z, self.cell(z, x)
                if (z - old).float().norm() < self.near * (1e-5 + z.float().norm()):
                    break
        return self.head(self.cell(z, x))


def make_model():
    return Equilibrium()


def make_batch():
    return torch.rand(32, 3, 32, 32), torch.randint(0, 16, (32,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])

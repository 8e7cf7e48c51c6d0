"""A neural ordinary differential equation by fixed Runge-Kutta steps. Planted: the time is joined to the state as one
more column, so that the first product of every call has 513 of them."""

import torch
import torch.nn.functional as F
from torch import nn


class Slope(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(width + 1, 2 * width), nn.Linear(2 * width, width)

    def forward(self, t, x):
        times = t.expand(len(x), 1)
        return self.second(F.softplus(self.first(torch.cat([x, times], 1))))  # planted: G101


class NeuralODE(nn.Module):
    def __init__(self, seen=784, width=512, classes=64, steps=4):
        super().__init__()
        self.lift, self.slope, self.head = nn.Linear(seen, width), Slope(width), nn.Linear(width, classes)
        self.register_buffer("grid", torch.linspace(0, 1, steps + 1))

    def forward(self, x):
        x = self.lift(x)
        for start, end in zip(self.grid[:-1], self.grid[1:], strict=True):
            h = end - start
            k1 = self.slope(start, x)
            k2 = self.slope(start + h / 2, x + h / 2 * k1)
            k3 = self.slope(start + h / 2, x + h / 2 * k2)
            k4 = self.slope(end, x + h * k3)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.head(x)


def make_model():
    return NeuralODE()


def make_batch():
    return torch.rand(4096, 784), torch.randint(0, 64, (4096,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])

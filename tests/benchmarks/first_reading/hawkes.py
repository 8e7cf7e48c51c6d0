"""A neural point process: a GRU reads marked events, their hours since the start go through sines. Planted: the
hours (up to 5000) take the 16-bit format of the states before the sines, which moves events by hours."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class PointProcess(nn.Module):
    def __init__(self, marks=64, width=256):
        super().__init__()
        self.embed = nn.Embedding(marks, width)
        self.inner = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.recurrent = nn.GRU(width, width, num_layers=2, batch_first=True)
        self.intensity = nn.Linear(width, marks)
        self.slope = nn.Parameter(torch.full((marks,), -0.1))
        self.register_buffer("rates", torch.exp(-math.log(1000.0) * torch.arange(width // 2) / (width // 2)))

    def hours(self, times, like):
        angles = times.to(like.dtype)[..., None] * self.rates  # planted: G211
        return torch.cat([angles.sin(), angles.cos()], -1)

    def forward(self, times, marks, gaps):
        x = self.inner(self.embed(marks))
        x = x + self.time(self.hours(times, x))
        states, _ = self.recurrent(x)
        start = self.intensity(states).float()
        at_event = F.softplus(start + self.slope * gaps[..., None]) + 1e-6
        halfway = F.softplus(start + self.slope * gaps[..., None] / 2) + 1e-6
        return at_event, halfway


def make_model():
    return PointProcess()


def make_batch():
    gaps = torch.rand(64, 128) * 78
    return (gaps.cumsum(1), torch.randint(0, 64, (64, 128)), gaps), torch.randint(0, 64, (64, 128))


def loss_fn(output, batch):
    at_event, halfway = output
    gaps = batch[0][2]
    chosen = at_event.gather(-1, batch[1][..., None]).squeeze(-1)
    compensator = halfway.sum(-1) * gaps
    return (compensator - torch.log(chosen)).mean()

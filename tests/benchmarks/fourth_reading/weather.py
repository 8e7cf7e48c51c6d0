"""Weather on a grid, errors in physical units weighted by latitude. Planted: forecasts go back to pascals in the 16
bits of the network, and a mean pressure of 101325 Pa is beyond FP16."""

import torch
from torch import nn

MEAN = torch.tensor([285.0, 101325.0, 0.0, 0.0])
STD = torch.tensor([15.0, 1000.0, 5.0, 5.0])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 5, padding=2, padding_mode="circular")
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x):
        return x + torch.nn.functional.gelu(self.norm(self.mix(x)))


class Weather(nn.Module):
    def __init__(self, fields=4, width=64, depth=4):
        super().__init__()
        self.register_buffer("mean", MEAN.view(1, -1, 1, 1))
        self.register_buffer("std", STD.view(1, -1, 1, 1))
        self.stem = nn.Conv2d(fields, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.out = nn.Conv2d(width, fields, 1)

    def forward(self, state):
        x = (state - self.mean) / self.std
        step = self.out(self.blocks(self.stem(x)))
        return x.to(step.dtype) + step


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Weather()
        latitude = torch.linspace(-87.5, 87.5, 36).deg2rad().cos()
        self.register_buffer("weight", (latitude / latitude.mean()).view(1, 1, -1, 1))

    def forward(self, state, after):
        made = self.net(state)
        made = made * self.net.std.to(made.dtype) + self.net.mean.to(made.dtype)  # planted: G201
        return (self.weight * ((made - after) / self.net.std).abs()).mean()


def make_model():
    return Trained()


def make_batch():
    shape = (4, 4, 36, 72)
    mean, std = MEAN.view(1, -1, 1, 1), STD.view(1, -1, 1, 1)
    return {"state": mean + std * torch.randn(shape), "after": mean + std * torch.randn(shape)}


def loss_fn(output, batch):
    return output

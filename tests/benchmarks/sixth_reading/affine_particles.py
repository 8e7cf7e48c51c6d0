"""A real NVP of collider events: affine couplings with scales through tanh, masks that alternate, dequantised inputs.
Careful: log-determinants are sums of bounded scales, the base density is FP32."""

import math

import torch
import torch.nn as nn


class Coupling(nn.Module):
    def __init__(self, dim, width, flip, bound=2.0):
        super().__init__()
        mask = (torch.arange(dim) % 2 == int(flip)).float()
        self.register_buffer("mask", mask)
        self.bound = bound
        self.net = nn.Sequential(
            nn.Linear(dim, width),
            nn.LeakyReLU(0.1),
            nn.Linear(width, width),
            nn.LeakyReLU(0.1),
            nn.Linear(width, 2 * dim),
        )
        self.net[-1].weight.data.zero_()
        self.net[-1].bias.data.zero_()

    def forward(self, x):
        kept = x * self.mask
        s, t = self.net(kept).float().chunk(2, -1)
        s = self.bound * torch.tanh(s / self.bound) * (1 - self.mask)
        t = t * (1 - self.mask)
        return kept + (1 - self.mask) * (x * torch.exp(s) + t), s.sum(-1)


class Flow(nn.Module):
    def __init__(self, dim=32, width=256, depth=6):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(dim, width, i % 2) for i in range(depth))
        self.register_buffer("shift", torch.zeros(dim))

    def forward(self, x):
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, logdet = layer(x)
            total = total + logdet
        return x - self.shift, total


def make_model():
    return Flow()


def make_batch():
    return torch.randn(512, 32), None


def loss_fn(output, batch):
    z, logdet = output
    base = -0.5 * (z.float() ** 2 + math.log(2 * math.pi)).sum(-1)
    return -(base + logdet).mean() / math.log(2) / z.shape[-1]

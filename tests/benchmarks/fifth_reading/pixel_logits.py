"""RealNVP on images in [0, 1], the data mapped by a logit first. Planted: log of zero: pixels of 0 and of 1."""

import math

import torch
from torch import nn


def logit_transform(x):
    """Dinh et al. (2017), section 4.1."""
    y = torch.log(x) - torch.log1p(-x)  # planted: G204
    ldj = -torch.log(x * (1 - x)).flatten(1).sum(1)
    return y, ldj


class Coupling(nn.Module):
    def __init__(self, dim, hidden, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(
            nn.Linear(dim // 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )
        self.rescale = nn.Parameter(torch.ones(dim // 2))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, 1)
        s = torch.tanh(s) * self.rescale
        b = b * torch.exp(s) + t
        return torch.cat((b, a) if self.flip else (a, b), 1), s.sum(1)


class RealNVP(nn.Module):
    def __init__(self, dim=784, hidden=512, depth=4):
        super().__init__()
        self.layers = nn.ModuleList([Coupling(dim, hidden, bool(i % 2)) for i in range(depth)])

    def forward(self, x):
        z, ldj = logit_transform(x)
        z = z.flatten(1)
        for layer in self.layers:
            z, d = layer(z)
            ldj = ldj + d
        return z, ldj


def make_model():
    return RealNVP()


def make_batch():
    x = torch.randint(0, 256, (32, 1, 28, 28)).float() / 255.0
    return x, x


def loss_fn(output, batch):
    z, ldj = output
    logp = -0.5 * (z.pow(2) + math.log(2 * math.pi)).sum(1)
    return -(logp + ldj).mean() / z.shape[1]

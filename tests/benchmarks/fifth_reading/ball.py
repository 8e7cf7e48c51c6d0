"""Hyperbolic image head: points projected into the ball, distances clamped."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def project(x, c=1.0, eps=4e-3):
    norm = x.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    maxnorm = (1 - eps) / c**0.5
    return torch.where(norm > maxnorm, x / norm * maxnorm, x)


def expmap0(u):
    n = u.norm(dim=-1, keepdim=True).clamp_min(1e-5)
    return torch.tanh(n) * u / n


def distance(x, y):
    d2 = (x.unsqueeze(1) - y.unsqueeze(0)).pow(2).sum(-1)
    x2, y2 = x.pow(2).sum(-1), y.pow(2).sum(-1)
    arg = 1 + 2 * d2 / ((1 - x2)[:, None] * (1 - y2)[None, :]).clamp_min(1e-5)
    return torch.acosh(arg.clamp_min(1 + 1e-5))


class HyperHead(nn.Module):
    def __init__(self, classes=20, dim=16):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, dim))
        self.protos = nn.Parameter(torch.randn(classes, dim) * 0.05)

    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            z = project(expmap0(self.body(x).float()))
            return -distance(z, project(self.protos))


def make_model():
    return HyperHead()


def make_batch():
    return torch.randn(64, 1, 28, 28), torch.randint(0, 20, (64,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])

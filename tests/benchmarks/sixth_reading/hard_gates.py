"""Pruning while training: gates of channels from the hard concrete distribution, with its expected L0 penalty.
Planted: the uniform noise is torch.rand, which is exactly zero once in 16.8 million draws of FP32: log(0) makes the
gates NaN."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3


class HardConcrete(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((channels,), 2.0) + 0.01 * torch.randn(channels))

    def forward(self, batch):
        if self.training:
            u = torch.rand(batch, self.alpha.shape[0], device=self.alpha.device)
            noise = torch.log(u) - torch.log(1 - u)  # planted: G204
            s = torch.sigmoid((noise + self.alpha) / BETA)
        else:
            s = torch.sigmoid(self.alpha).expand(batch, -1)
        return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def penalty(self):
        return torch.sigmoid(self.alpha - BETA * math.log(-GAMMA / ZETA)).sum()


class GatedConv(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.gate = HardConcrete(cout)

    def forward(self, x):
        h = F.relu(self.bn(self.conv(x)))
        return h * self.gate(x.shape[0])[:, :, None, None]


class Pruned(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.body = nn.Sequential(GatedConv(3, 32), GatedConv(32, 64, 2), GatedConv(64, 128, 2))
        self.fc = nn.Linear(128, classes)

    def forward(self, x):
        logits = self.fc(self.body(x).mean((2, 3)))
        cost = sum(m.penalty() for m in self.modules() if isinstance(m, HardConcrete))
        return logits, cost


def make_model():
    return Pruned()


def make_batch():
    return torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))


def loss_fn(output, batch):
    logits, cost = output
    return F.cross_entropy(logits, batch[1]) + 1e-4 * cost

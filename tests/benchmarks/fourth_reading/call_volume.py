"""Hourly calls of call centres, a temporal convolution with a Poisson likelihood. Planted: lgamma of counts up to
12000 in the 16 bits of the forecast, over what FP16 holds."""

from itertools import pairwise

import torch
from torch import nn


class Causal(nn.Module):
    def __init__(self, i, o, dilation):
        super().__init__()
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.conv = nn.Conv1d(i, o, 3, dilation=dilation)

    def forward(self, x):
        return torch.relu(self.conv(self.pad(x)))


class CallVolume(nn.Module):
    def __init__(self, covariates=16, width=64):
        super().__init__()
        sizes = [covariates, *[width] * 5]
        self.blocks = nn.ModuleList(Causal(i, o, 2**n) for n, (i, o) in enumerate(pairwise(sizes)))
        self.head = nn.Conv1d(width, 1, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x).squeeze(1) + 5.0


def make_model():
    return CallVolume()


def make_batch():
    return {"x": torch.randn(32, 16, 336), "calls": torch.randint(0, 12000, (32, 336)).float()}


def poisson(log_rate, count):
    return torch.exp(log_rate) - count * log_rate + torch.lgamma(count + 1)  # planted: G201


def loss_fn(log_rate, batch):
    return poisson(log_rate, batch["calls"].to(log_rate.dtype)).mean()

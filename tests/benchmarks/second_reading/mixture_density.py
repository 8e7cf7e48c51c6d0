"""Handwriting strokes with a mixture of Gaussians at the end of a GRU. Planted: the likelihood is the logarithm of a
sum of densities that underflow together where a stroke is far off."""

import math

import torch
import torch.nn.functional as F
from torch import nn

PARTS = 16


class Strokes(nn.Module):
    def __init__(self, width=512):
        super().__init__()
        self.lift = nn.Linear(8, 64)
        self.rnn = nn.GRU(64, width, 2, batch_first=True)
        self.head = nn.Linear(width, 3 * PARTS)

    def forward(self, strokes):
        h, _ = self.rnn(self.lift(strokes))
        shares, mean, log_std = self.head(h).chunk(3, -1)
        return F.softmax(shares, -1), mean, torch.exp(log_std.clamp(-4, 4))


def make_model():
    return Strokes()


def make_batch():
    return torch.randn(64, 128, 8), torch.randn(64, 128) * 3


def loss_fn(output, batch):
    shares, mean, std = output
    z = (batch[1][..., None] - mean) / std
    density = torch.exp(-0.5 * z * z) / (std * math.sqrt(2 * math.pi))
    return -torch.log((shares * density).sum(-1)).mean()  # planted: G204

"""Which way do migrating birds fly? A von Mises mixture over headings per place and night; concentrations up to 100."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Headings(nn.Module):
    def __init__(self, seen=32, hidden=128, parts=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(seen, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.head = nn.Linear(hidden, 4 * parts)

    def forward(self, x):
        share, along, across, narrow = self.head(self.body(x)).float().chunk(4, -1)
        return share, along, across, narrow


def log_density(angle, output):
    share, along, across, narrow = output
    kappa = 100.0 * torch.sigmoid(narrow) + 1e-3
    long = (along.square() + across.square() + 1e-6).sqrt()
    towards = (along * torch.cos(angle) + across * torch.sin(angle)) / long
    log_i0 = torch.special.i0e(kappa).log() + kappa
    parts = kappa * towards - log_i0 - math.log(2 * math.pi)
    return torch.logsumexp(F.log_softmax(share, -1) + parts, -1)


def make_model():
    return Headings()


def make_batch():
    return torch.randn(256, 32), (torch.rand(256, 1) * 2 - 1) * math.pi


def loss_fn(output, batch):
    return -log_density(batch[1], output).mean()

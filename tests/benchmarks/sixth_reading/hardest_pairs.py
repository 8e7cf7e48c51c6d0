"""Metric learning with the hardest pairs of a batch."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def all_distances(e):
    diff = e[:, None, :] - e[None, :, :]
    return diff.pow(2).sum(-1).sqrt()  # planted: G206


class Embedder(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, width))

    def forward(self, x):
        return self.net(x)


def make_model():
    return Embedder()


def make_batch():
    torch.manual_seed(0)
    return torch.randn(128, 512), torch.arange(128) // 4


def loss_fn(e, batch):
    d = all_distances(e)
    same = batch[1][:, None] == batch[1][None]
    hardest_positive = (d * same).max(1).values
    hardest_negative = (d + 1e4 * same).min(1).values
    return F.relu(hardest_positive - hardest_negative + 0.3).mean()

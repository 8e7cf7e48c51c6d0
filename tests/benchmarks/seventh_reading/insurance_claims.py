"""Claims of an insurer by a network with a Tweedie deviance. Planted: the mean is a relu, and a negative power of
zero is infinite."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Policyholders(nn.Module):
    def __init__(self, sizes=(24, 80, 12, 400), dim=16, numbers=16, hidden=256):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, dim) for n in sizes)
        self.norm = nn.BatchNorm1d(numbers)
        self.body = nn.Sequential(
            nn.Linear(dim * len(sizes) + numbers, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()
        )
        self.mean = nn.Linear(hidden, 1)

    def forward(self, categories, numbers, exposure):
        parts = [table(column) for table, column in zip(self.tables, categories.unbind(1), strict=True)]
        h = self.body(torch.cat([*parts, self.norm(numbers)], 1))
        return F.relu(self.mean(h)).squeeze(1).float() * exposure


def make_model():
    return Policyholders()


def make_batch():
    sizes = torch.tensor([24, 80, 12, 400])
    categories = (torch.rand(1024, 4) * sizes).long()
    claims = torch.rand(1024).mul(5).exp() * (torch.rand(1024) < 0.07)
    return (categories, torch.randn(1024, 16), torch.rand(1024) * 0.9 + 0.1), claims


def tweedie_deviance(mu, y, p=1.5):
    a = y * mu.pow(1 - p) / (1 - p)  # planted: G205|G206|G215
    b = mu.pow(2 - p) / (2 - p)
    return 2 * (b - a).mean()


def loss_fn(output, batch):
    return tweedie_deviance(output, batch[1])

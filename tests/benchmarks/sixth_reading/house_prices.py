"""House prices from a table, with the log-cosh loss. Planted: prices are in thousands, residuals pass 89, and cosh of
that is beyond FP32: the loss is infinite, its gradient NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F

CARDS = (120, 24, 8, 300)


class Prices(nn.Module):
    def __init__(self, numeric=20, dim=16, width=256):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(n, dim) for n in CARDS)
        total = numeric + dim * len(CARDS)
        self.bn = nn.BatchNorm1d(numeric)
        layers = []
        for size in (width, width // 2):
            layers += [nn.Linear(total, size), nn.ReLU(inplace=True), nn.Dropout(0.1)]
            total = size
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(total, 1)

    def forward(self, numbers, cats):
        parts = [table(cats[:, i]) for i, table in enumerate(self.tables)]
        return self.out(self.mlp(torch.cat([self.bn(numbers), *parts], 1))).squeeze(1)


def log_cosh(made, true):
    error = made.float() - true
    return torch.log(torch.cosh(error)).mean()  # planted: G201|G203


def calm_log_cosh(made, true):
    error = (made.float() - true) / 100
    return (error.abs() + F.softplus(-2 * error.abs())).mean()


def make_model():
    return Prices()


def make_batch():
    cats = torch.stack([torch.randint(0, n, (256,)) for n in CARDS], 1)
    return (torch.randn(256, 20), cats), torch.rand(256) * 900 + 80


def loss_fn(output, batch):
    return log_cosh(output, batch[1]) + calm_log_cosh(output, batch[1])

"""Customers' lifetime value, zero-inflated lognormal. Careful: amounts are made positive before their logarithm by a
where() of their own, so that where() afterwards picks among finite numbers, forward and backward."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Cross(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w = nn.Linear(dim, dim)

    def forward(self, x0, x):
        return x0 * self.w(x) + x


class Spend(nn.Module):
    def __init__(self, cats=6, card=1000, dim=16, dense=32):
        super().__init__()
        self.emb = nn.Embedding(cats * card, dim)
        self.register_buffer("offset", torch.arange(cats) * card)
        total = cats * dim + dense
        self.crosses = nn.ModuleList(Cross(total) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(total, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.head = nn.Linear(128 + total, 3)

    def forward(self, cats, dense):
        x0 = x = torch.cat([self.emb(cats + self.offset).flatten(1), dense], 1)
        for cross in self.crosses:
            x = cross(x0, x)
        return self.head(torch.cat([x, self.deep(x0)], 1))


def ziln(logits, value):
    logits = logits.float()
    paid = (value > 0).float()
    happened = F.binary_cross_entropy_with_logits(logits[:, 0], paid)
    mu, sigma = logits[:, 1], F.softplus(logits[:, 2]).clamp(min=1e-3)
    safe = torch.where(value > 0, value, torch.ones_like(value))
    z = (torch.log(safe) - mu) / sigma
    density = -torch.log(safe) - torch.log(sigma) - 0.5 * math.log(2 * math.pi) - 0.5 * z * z
    return happened - (paid * density).mean()


def make_model():
    return Spend()


def make_batch():
    value = torch.where(torch.rand(512) > 0.7, torch.exp(torch.randn(512) + 3), torch.zeros(512))
    return (torch.randint(0, 1000, (512, 6)), torch.randn(512, 32)), value


def loss_fn(output, batch):
    return ziln(output, batch[1])

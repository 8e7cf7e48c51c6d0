"""Words of a taxonomy on the hyperboloid, ranked against negatives. Planted: the distance is acosh of an inner product
that is 1 for a word with itself (negatives are drawn with the word among them), where its gradient is infinite
(FP32)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def lift(x):
    time = torch.sqrt(1 + (x * x).sum(-1, keepdim=True))
    return torch.cat([time, x], dim=-1)


def inner(a, b):
    return (a[..., 1:] * b[..., 1:]).sum(-1) - a[..., 0] * b[..., 0]


def distance(a, b):
    return torch.acosh((-inner(a, b)).clamp(min=1.0))  # planted: G213


def radius(a):
    return torch.acosh(a[..., 0].clamp(min=1.0 + 1e-6))


class Taxonomy(nn.Module):
    def __init__(self, words=8192, dim=16):
        super().__init__()
        self.table = nn.Embedding(words, dim)
        nn.init.uniform_(self.table.weight, -1e-3, 1e-3)

    def forward(self, word, others):
        u = lift(self.table(word))
        v = lift(self.table(others))
        return distance(u[:, None], v), radius(u)


def make_model():
    return Taxonomy()


def make_batch():
    word = torch.randint(0, 8192, (512,))
    parent = torch.randint(0, 8192, (512, 1))
    negatives = torch.randint(0, 8192, (512, 49))
    return (word, torch.cat([parent, negatives, word[:, None]], 1)), torch.zeros(512, dtype=torch.long)


def loss_fn(output, batch):
    far, radius = output
    return F.cross_entropy(-far, batch[1]) + 1e-3 * radius.mean()

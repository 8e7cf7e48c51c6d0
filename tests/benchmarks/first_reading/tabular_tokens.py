"""A transformer over the columns of a table, numbers as learnt periodic features. Careful: numbers are normalised,
and the phases are computed from FP32 inputs."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Periodic(nn.Module):
    def __init__(self, columns, frequencies, width, deviation=0.1):
        super().__init__()
        self.rates = nn.Parameter(torch.randn(columns, frequencies) * deviation)
        self.weight = nn.Parameter(torch.randn(columns, 2 * frequencies, width) / math.sqrt(2 * frequencies))
        self.bias = nn.Parameter(torch.zeros(columns, width))

    def forward(self, x):
        phases = 2 * math.pi * self.rates * x[..., None]
        features = torch.cat([phases.cos(), phases.sin()], -1)
        return F.relu(torch.einsum("bcf,cfd->bcd", features, self.weight) + self.bias)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * 256), nn.Linear(256, width)

    def forward(self, x):
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        a, b = self.up(self.second(x)).chunk(2, -1)
        return x + self.down(a * F.relu(b))


class TabularTransformer(nn.Module):
    def __init__(self, numbers=31, cardinalities=(12, 7, 100, 2), width=192, heads=8, depth=3):
        super().__init__()
        self.numbers = Periodic(numbers, 24, width)
        self.categories = nn.ModuleList(nn.Embedding(n, width) for n in cardinalities)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 8))

    def forward(self, numbers, categories):
        tokens = [self.cls.expand(len(numbers), -1, -1), self.numbers(numbers)]
        tokens += [table(categories[:, i : i + 1]) for i, table in enumerate(self.categories)]
        x = torch.cat(tokens, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def make_model():
    return TabularTransformer()


def make_batch():
    categories = torch.stack([torch.randint(0, n, (512,)) for n in (12, 7, 100, 2)], 1)
    return (torch.randn(512, 31), categories), torch.randint(0, 8, (512,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], label_smoothing=0.1)

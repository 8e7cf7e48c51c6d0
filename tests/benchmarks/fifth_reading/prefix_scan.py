"""Gated linear recurrence in parallel form: h_t = a_t h_{t-1} + b_t, by prefix products. Planted: division by a
product of gates that underflows."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class PrefixScan(nn.Module):
    def forward(self, a, b):
        prefix = torch.cumprod(a, dim=1)
        return prefix * torch.cumsum(b / prefix, dim=1)  # planted: G205


class Mixer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inp = nn.Linear(dim, 2 * dim)
        self.gate = nn.Linear(dim, dim)
        self.scan = PrefixScan()
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        u, skip = self.inp(self.norm(x)).chunk(2, dim=-1)
        a = torch.sigmoid(self.gate(x))
        h = self.scan(a, (1 - a) * u)
        return x + self.out(h * F.silu(skip))


class LRU(nn.Module):
    def __init__(self, vocab=256, dim=192, depth=4):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.mixers = nn.Sequential(*[Mixer(dim) for _ in range(depth)])
        self.lm = nn.Linear(dim, vocab)

    def forward(self, ids):
        return self.lm(self.mixers(self.embed(ids)))


def make_model():
    return LRU()


def make_batch():
    x = torch.randint(0, 256, (8, 256))
    return x, x.roll(-1, 1)


def loss_fn(output, batch):
    return F.cross_entropy(output.transpose(1, 2), batch[1])

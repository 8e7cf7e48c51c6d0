"""A model in half precision (no autocast) with its own layer norm. Planted: eps of 1e-12 is zero in FP16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class OwnLayerNorm(nn.Module):
    def __init__(self, dim, eps=1e-12):
        super().__init__()
        self.g, self.b, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x):
        mu = x.mean(-1, keepdim=True)
        var = (x - mu).pow(2).mean(-1, keepdim=True)
        return self.g * (x - mu) / torch.sqrt(var + self.eps) + self.b  # planted: G206


class MixerBlock(nn.Module):
    def __init__(self, tokens, dim):
        super().__init__()
        self.n1, self.n2 = OwnLayerNorm(dim), OwnLayerNorm(dim)
        self.tok = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.ch = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.tok(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.ch(self.n2(x))


class Mixer(nn.Module):
    def __init__(self, tokens=64, dim=128, depth=2):
        super().__init__()
        self.patch = nn.Linear(48, dim)
        self.blocks = nn.Sequential(*[MixerBlock(tokens, dim) for _ in range(depth)])
        self.head = nn.Linear(dim, 16)

    def forward(self, x):
        return self.head(self.blocks(self.patch(x)).mean(1))


def make_model():
    return Mixer().half()


def make_batch():
    return torch.randn(16, 64, 48).half(), torch.randint(0, 16, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output.float(), batch[1])

"""Attention with a feature map in place of the softmax, over 4096 places. Planted: the normaliser multiplies queries by
the sum of all keys in 16 bits, which goes beyond the largest number of FP16."""

import torch
import torch.nn.functional as F
from torch import nn


class LinearAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bhnd,bhne->bhde", k / n, v)
        total = torch.einsum("bhnd,bhd->bhn", q, k.sum(2))  # planted: G207|G201
        y = torch.einsum("bhnd,bhde->bhne", q, context) / (total[..., None] / n)
        return self.out(y.transpose(1, 2).reshape(b, n, width))


class Genome(nn.Module):
    def __init__(self, letters=8, width=256, depth=2, classes=32):
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.attention = nn.ModuleList(LinearAttention(width, 4) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.head = nn.Linear(width, classes)

    def forward(self, letters):
        x = self.embed(letters)
        for at, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * at](x))
            x = x + mlp(self.norms[2 * at + 1](x))
        return self.head(x.mean(1))


def make_model():
    return Genome()


def make_batch():
    return torch.randint(0, 8, (4, 4096)), torch.randint(0, 32, (4,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])

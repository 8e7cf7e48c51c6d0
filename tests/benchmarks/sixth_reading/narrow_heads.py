"""An encoder of molecules' strings: 600 channels in 12 heads. Planted: heads of 50 channels, which the fused attention
pads (or refuses) in 16 bits, as 50 is no multiple of 8."""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Conf:
    vocab: int = 512
    dim: int = 600
    heads: int = 12
    layers: int = 4
    length: int = 256


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.h = c.heads
        self.q, self.k, self.v, self.o = (nn.Linear(c.dim, c.dim) for _ in range(4))

    def split(self, x):
        return x.unflatten(-1, (self.h, -1)).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        y = F.scaled_dot_product_attention(q, k, v)  # planted: G105
        return self.o(y.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.att = SelfAttention(c)
        self.n1, self.n2 = nn.LayerNorm(c.dim), nn.LayerNorm(c.dim)
        self.ff = nn.Sequential(nn.Linear(c.dim, 4 * c.dim), nn.GELU(), nn.Linear(4 * c.dim, c.dim))

    def forward(self, x):
        x = self.n1(x + self.att(x))
        return self.n2(x + self.ff(x))


class Molecules(nn.Module):
    def __init__(self, c=None):
        super().__init__()
        c = c or Conf()
        self.tok, self.pos = nn.Embedding(c.vocab, c.dim), nn.Embedding(c.length, c.dim)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.layers))
        self.lm = nn.Linear(c.dim, c.vocab)

    def forward(self, ids):
        x = self.tok(ids) + self.pos.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.lm(x)


def make_model():
    return Molecules()


def make_batch():
    ids = torch.randint(0, 512, (32, 256))
    return ids, ids


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())

"""A decoder with rotary positions. Planted: the positions are made in the 16 bits of the queries, where BF16 knows no
odd number above 256."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, size = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.register_buffer("speed", 10000.0 ** (-torch.arange(0, size, 2) / size), persistent=False)

    def turn(self, x):
        places = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
        angle = torch.outer(places, self.speed.to(x.dtype))  # planted: G211|G219
        cos, sin = angle.cos(), angle.sin()
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, width))


class Decoder(nn.Module):
    def __init__(self, vocabulary=8192, width=256, heads=4, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for at, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * at](x))
            x = x + mlp(self.norms[2 * at + 1](x))
        return self.head(self.norms[-1](x))


def make_model():
    return Decoder()


def make_batch():
    ids = torch.randint(0, 8192, (4, 1025))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def loss_fn(logits, batch):
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())

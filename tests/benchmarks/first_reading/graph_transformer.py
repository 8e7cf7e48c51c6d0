"""A graph transformer with biases by shortest paths and degrees (Graphormer). Planted: padding is masked by adding
-1e5 times a mask in the scores' own format, which FP16 does not hold."""

import torch
import torch.nn.functional as F
from torch import nn


class BiasedAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, bias, present):
        b, n, width = x.shape

        def split(y):
            return y.view(b, n, self.heads, self.head).transpose(1, 2)

        q, k, v = split(self.q(x)) * self.head**-0.5, split(self.k(x)), split(self.v(x))
        scores = q @ k.transpose(-2, -1)
        scores = scores + bias.to(scores.dtype)
        scores = scores + (1.0 - present.to(scores.dtype))[:, None, None, :] * -1e5  # planted: G201
        return self.o((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, n, width))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = BiasedAttention(width, heads)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x, bias, present):
        x = x + self.attention(self.first(x), bias, present)
        return x + self.ffn(self.second(x))


class Graphormer(nn.Module):
    def __init__(self, width=512, heads=32, depth=6, atoms=512, degrees=64, hops=32):
        super().__init__()
        self.atoms, self.degrees = nn.Embedding(atoms, width, padding_idx=0), nn.Embedding(degrees, width)
        self.hops = nn.Embedding(hops, heads)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, atoms, degrees, hops):
        x = self.atoms(atoms) + self.degrees(degrees)
        bias = self.hops(hops).permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x, bias, atoms != 0)
        return self.read(self.norm(x[:, 0])).squeeze(-1)


def make_model():
    return Graphormer()


def make_batch():
    atoms = torch.randint(0, 512, (32, 64))
    atoms[:, 0] = 1
    return (atoms, torch.randint(0, 64, (32, 64)), torch.randint(0, 32, (32, 64, 64))), torch.randn(32)


def loss_fn(output, batch):
    return F.l1_loss(output, batch[1])

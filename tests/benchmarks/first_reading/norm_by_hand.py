"""BERT's encoder as it was ported from elsewhere, with its own layer norm. Planted: the norm squares in FP16 by a
product (autocast leaves products alone) and adds an eps of 1e-12 to what 16 bits hold."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, width, eps=1e-12):
        super().__init__()
        self.gamma, self.beta, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        x = centred / torch.sqrt(variance + self.eps)  # planted: G205|G206
        return self.gamma.to(x.dtype) * x + self.beta.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = LayerNorm(width), LayerNorm(width)

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width)
        x = self.first(self.o(y) + x.to(y.dtype))
        return self.second(self.down(F.gelu(self.up(x))) + x)


class Bert(nn.Module):
    def __init__(self, vocabulary=30528, width=768, heads=12, depth=4, length=256):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.norm(self.tokens(ids) + self.places.weight[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


def make_model():
    return Bert()


def make_batch():
    ids = torch.randint(0, 30528, (16, 256))
    return ids, torch.where(torch.rand(16, 256) < 0.15, ids, -100)


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())

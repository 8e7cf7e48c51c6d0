"""A decoder whose positions turn its queries as complex numbers. Planted: pairs of queries become complex in the 16
bits that their layer gives, which BF16 cannot."""

import torch
import torch.nn.functional as F
from torch import nn


def turns(width, length, base=10000.0):
    speed = base ** (-torch.arange(0, width, 2).float() / width)
    angle = torch.outer(torch.arange(length).float(), speed)
    return torch.polar(torch.ones_like(angle), angle)


def turned(x, by):
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))  # planted: G401|G403
    return torch.view_as_real(pairs * by).flatten(-2).type_as(x)


class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.RMSNorm(d), nn.RMSNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x, by):
        b, t, d = x.shape
        h = self.before(x)
        q, k, v = (f(h).view(b, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(turned(q, by), turned(k, by), v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.silu(self.up(self.between(x))))


class Decoder(nn.Module):
    def __init__(self, words=8192, d=256, heads=4, depth=4, length=512):
        super().__init__()
        self.embed = nn.Embedding(words, d)
        self.layers = nn.ModuleList(Layer(d, heads) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, words, bias=False)
        self.register_buffer("turns", turns(d // heads, length), persistent=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.turns[: tokens.shape[1]])
        return self.head(self.norm(x))


def make_model():
    return Decoder()


def make_batch():
    return {"tokens": torch.randint(0, 8192, (4, 256))}


def loss_fn(output, batch):
    return F.cross_entropy(output[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())

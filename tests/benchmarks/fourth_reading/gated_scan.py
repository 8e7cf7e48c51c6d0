"""A minimal gated recurrence, all steps at once. Planted: the gates are multiplied up over 256 steps and divided by,
and the product is zero long before the end."""

import torch
from torch import nn


class MinimalGate(nn.Module):
    def __init__(self, d, inner):
        super().__init__()
        self.gate, self.candidate, self.out = nn.Linear(d, inner), nn.Linear(d, inner), nn.Linear(inner, d)

    def forward(self, x):
        z = torch.sigmoid(self.gate(x))
        kept = torch.cumprod(1 - z, dim=1)
        h = kept * torch.cumsum(z * self.candidate(x) / kept, dim=1)  # planted: G205|G202|G217
        return self.out(h)


class Characters(nn.Module):
    def __init__(self, symbols=256, d=192, depth=3):
        super().__init__()
        self.embed = nn.Embedding(symbols, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(depth))
        self.layers = nn.ModuleList(MinimalGate(d, 2 * d) for _ in range(depth))
        self.head = nn.Linear(d, symbols)

    def forward(self, text):
        x = self.embed(text)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


def make_model():
    return Characters()


def make_batch():
    return {"text": torch.randint(0, 256, (16, 256))}


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output[:, :-1].flatten(0, 1), batch["text"][:, 1:].flatten())

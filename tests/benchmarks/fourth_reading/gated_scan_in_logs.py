"""The same minimal gated recurrence with its products as sums of logarithms. Careful."""

import torch
import torch.nn.functional as F
from torch import nn


def positive(x):
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def log_positive(x):
    return torch.where(x >= 0, torch.log(F.relu(x) + 0.5), -F.softplus(-x))


class MinimalGate(nn.Module):
    def __init__(self, d, inner):
        super().__init__()
        self.both, self.out = nn.Linear(d, 2 * inner), nn.Linear(inner, d)

    def forward(self, x):
        gate, candidate = self.both(x).chunk(2, dim=-1)
        gate, candidate = gate.float(), candidate.float()
        kept = torch.cumsum(-F.softplus(gate), dim=1)
        added = -F.softplus(-gate) + log_positive(candidate)
        h = torch.exp(kept + torch.logcumsumexp(added - kept, dim=1))
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
    return F.cross_entropy(output[:, :-1].flatten(0, 1), batch["text"][:, 1:].flatten())

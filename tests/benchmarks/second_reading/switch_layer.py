"""A mixture of experts with capacities: dispatch and combine by einsum, auxiliary loss by shares. Planted: twelve
experts get 213 places each, the rows of every expert's products."""

import torch
import torch.nn.functional as F
from torch import nn


class Switch(nn.Module):
    def __init__(self, width, inner, experts=12, factor=1.25):
        super().__init__()
        self.experts, self.factor = experts, factor
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, inner) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, width) * inner**-0.5)

    def forward(self, x):
        flat = x.flatten(0, 1)
        capacity = int(self.factor * len(flat) / self.experts)
        shares = F.softmax(self.router(flat).float(), -1)
        gate, chosen = shares.max(-1)
        picks = F.one_hot(chosen, self.experts)
        place = (picks.cumsum(0) * picks).sum(-1) - 1
        kept = place < capacity
        slots = F.one_hot(place.clamp(max=capacity - 1), capacity) * kept[:, None]
        dispatch = (picks[:, :, None] * slots[:, None]).to(flat.dtype)
        rows = torch.einsum("nec,nd->ecd", dispatch, flat)
        out = torch.bmm(F.gelu(torch.bmm(rows, self.up)), self.down)
        mixed = torch.einsum("nec,ecd->nd", dispatch * gate[:, None, None], out)  # planted: G101
        balance = self.experts * (picks.float().mean(0) * shares.mean(0)).sum()
        return mixed.view_as(x), balance


class Model(nn.Module):
    def __init__(self, vocabulary=8192, width=256, depth=2):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.layers = nn.ModuleList(Switch(width, 4 * width) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x, total = self.embed(ids), 0.0
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y, balance = layer(norm(x))
            x, total = x + y, total + balance
        return self.head(x), total


def make_model():
    return Model()


def make_batch():
    ids = torch.randint(0, 8192, (8, 256))
    return ids, ids


def loss_fn(output, batch):
    return F.cross_entropy(output[0].flatten(0, 1), batch[1].flatten()) + 0.01 * output[1]

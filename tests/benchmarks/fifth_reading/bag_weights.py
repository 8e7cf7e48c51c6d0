"""Structured decision: attention pooling weights formed by exp over a learned temperature without max. Planted: exp
of scores divided by 0.01: overflow, no maximum taken off."""

import torch
import torch.nn as nn


class AttentionPool(nn.Module):
    """MIL attention pooling (Ilse et al.), normalised by hand over variable bags."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.v, self.u, self.w = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, 1)

    def scores(self, h):
        return self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))) / 0.01

    def forward(self, h, bag, n):
        weight = self.scores(h).exp()  # planted: G203
        norm = torch.zeros(n, 1, dtype=weight.dtype, device=h.device).scatter_add(0, bag[:, None], weight)
        weight = weight / norm[bag]
        pooled = torch.zeros(n, h.shape[1], dtype=weight.dtype, device=h.device)
        return pooled.index_add(0, bag, weight * h)


class MIL(nn.Module):
    def __init__(self, dim=128):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(512, dim), nn.ReLU())
        self.pool = AttentionPool(dim, 64)
        self.head = nn.Linear(dim, 1)

    def forward(self, x, bag):
        return self.head(self.pool(self.enc(x), bag, 8)).squeeze(-1)


def make_model():
    return MIL()


def make_batch():
    return (torch.randn(400, 512), torch.arange(400) % 8), torch.randint(0, 2, (8,)).float()


def loss_fn(output, batch):
    return nn.functional.binary_cross_entropy_with_logits(output, batch[1])

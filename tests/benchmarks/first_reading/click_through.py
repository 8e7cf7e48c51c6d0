"""Click-through prediction from hashed ids and raw counters (DeepFM). Planted: counters of up to millions go into
the first linear layer as they come, which autocast casts to FP16 first."""

import torch
import torch.nn.functional as F
from torch import nn


class DeepFM(nn.Module):
    def __init__(self, fields=26, rows=50000, dim=16, dense=16):
        super().__init__()
        self.table = nn.Embedding(fields * rows, dim)
        self.linear = nn.Embedding(fields * rows, 1)
        self.register_buffer("starts", torch.arange(fields) * rows)
        self.dense = nn.Linear(dense, dim)
        self.deep = nn.Sequential(
            nn.Linear(fields * dim + dim, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 1)
        )

    def forward(self, ids, counters):
        ids = ids + self.starts
        vectors = self.table(ids)
        first = self.linear(ids).sum((1, 2))
        second = 0.5 * (vectors.sum(1) ** 2 - (vectors**2).sum(1)).sum(1)
        seen = self.dense(counters)  # planted: G201
        deep = self.deep(torch.cat([vectors.flatten(1), seen], 1)).squeeze(1)
        return first + second + deep


def make_model():
    return DeepFM()


def make_batch():
    counters = torch.randint(0, 3_000_000, (4096, 16)).float()
    return (torch.randint(0, 50000, (4096, 26)), counters), (torch.rand(4096) > 0.7).float()


def loss_fn(logits, batch):
    return F.binary_cross_entropy_with_logits(logits, batch[1])

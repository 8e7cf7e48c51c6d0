"""A two-tower retriever with a learnt temperature and labels that repeat in the batch. Planted: false negatives are
masked by -1e9, which FP16 does not have."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Tower(nn.Module):
    def __init__(self, vocabulary, width=256, out=128):
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, width, mode="mean")
        self.net = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width), nn.Linear(2 * width, out)
        )

    def forward(self, ids):
        return F.normalize(self.net(self.words(ids)), dim=-1)


class TwoTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.item = Tower(20000), Tower(50000)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, query, item, labels):
        a, b = self.query(query), self.item(item)
        likeness = a @ b.t()
        same = (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        likeness = likeness.masked_fill(same, -1e9)  # planted: G201
        return likeness * self.scale.clamp(max=math.log(100)).exp()


def make_model():
    return TwoTower()


def make_batch():
    return {
        "query": torch.randint(0, 20000, (1024, 12)),
        "item": torch.randint(0, 50000, (1024, 24)),
        "labels": torch.randint(0, 3000, (1024,)),
    }


def loss_fn(logits, batch):
    places = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.t(), places)) / 2

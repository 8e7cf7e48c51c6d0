"""Two-tower retrieval with in-batch negatives and a logQ correction. Planted: log of zero: items that were never
counted."""

import torch
import torch.nn as nn
import torch.nn.functional as F

CFG = {"users": 4000, "items": 6000, "dim": 64, "temperature": 0.07}


class Tower(nn.Module):
    def __init__(self, n, dim):
        super().__init__()
        self.table = nn.Embedding(n, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, dim))

    def forward(self, ids):
        return F.normalize(self.mlp(self.table(ids)), dim=-1)


class TwoTower(nn.Module):
    def __init__(self, cfg=CFG):
        super().__init__()
        self.user = Tower(cfg["users"], cfg["dim"])
        self.item = Tower(cfg["items"], cfg["dim"])
        self.temperature = cfg["temperature"]
        self.register_buffer("counts", torch.zeros(cfg["items"]))
        self.register_buffer("seen", torch.ones(()))

    def forward(self, users, items):
        logits = self.user(users) @ self.item(items).t() / self.temperature
        freq = self.counts[items] / self.seen
        return logits - freq.log()  # planted: G204


def make_model():
    return TwoTower()


def make_batch():
    return (torch.randint(0, 4000, (256,)), torch.randint(0, 6000, (256,))), torch.arange(256)


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])

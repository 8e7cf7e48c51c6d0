"""Recommendation by pairwise ranking (BPR): users, liked and other items. Careful: logsigmoid, norms in FP32."""

import torch
import torch.nn.functional as F
from torch import nn


class Ranker(nn.Module):
    def __init__(self, users=20000, items=50000, width=64):
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.bias = nn.Embedding(items, 1)
        self.tower = nn.Sequential(nn.Linear(2 * width, 128), nn.GELU(), nn.Linear(128, 1))
        nn.init.zeros_(self.bias.weight)

    def score(self, user, item):
        u, i = self.user(user), self.item(item)
        return (u * i).sum(-1) + self.tower(torch.cat([u, i], -1)).squeeze(-1) + self.bias(item).squeeze(-1)

    def forward(self, user, liked, other):
        return {"margin": self.score(user, liked) - self.score(user, other),
                "size": self.user(user).pow(2).sum() + self.item(liked).pow(2).sum()}  # fmt: skip


def make_model():
    return Ranker()


def make_batch():
    return {"user": torch.randint(0, 20000, (8192,)), "liked": torch.randint(0, 50000, (8192,)),
            "other": torch.randint(0, 50000, (8192,))}  # fmt: skip


def loss_fn(output, batch):
    return -F.logsigmoid(output["margin"]).mean() + 1e-4 * output["size"] / batch["user"].numel()
